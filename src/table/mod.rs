//! The state of all processes, in memory that they share.

pub mod heap;
pub mod layout;
pub mod marks;
pub mod memory;
pub mod node;
pub mod ops;
#[cfg(not(loom))]
pub mod shared;
pub mod slots;
mod sync;
pub mod units;
pub mod whereabouts;
pub mod writer;

#[cfg(test)]
mod tests;
