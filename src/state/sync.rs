//! What is shared: atomics of the machine; or, to try every order of events, of `loom`; or, to stop a thread
//! between any two of its accesses, of the tests.

#[cfg(all(test, not(loom)))]
pub use super::tests::steps::AtomicU64;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(any(test, loom)))]
pub use std::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub use std::sync::atomic::{Ordering, fence};
