//! The atomics of the shared memory.
//!
//! These are the machine's own; or those of `loom`, which tries every order of events; or those of the tests,
//! which can stop a thread between any two accesses.

#[cfg(all(test, not(loom)))]
pub use super::tests::steps::AtomicU64;
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(any(test, loom)))]
pub use std::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub use std::sync::atomic::{Ordering, fence};
