//! The shared state: a table of entries in memory that all processes of a server map.
//!
//! From the words of the memory up to the table that Python sees, each module uses only those before it:
//!
//! 1. [`heap`] fills and copies blocks; [`layout`] places every part of the memory; [`memory`] gives access
//!    to it.
//! 2. [`segments`] holds the owners of blocks, [`records`] the processes that write, [`numbers`] those that
//!    they write about themselves, [`questions`] those that others put to them, [`dirty_bits`] the changed
//!    buckets. [`liveness`] tells whether a process
//!    has exited.
//! 3. [`node`] encodes entries as words. [`read`] reads entries while they may change. [`sheet`] writes and
//!    reads cells, which are beside the entries.
//! 4. [`reclaim`] returns the space of exited processes. [`writer`] publishes a change with one
//!    compare-and-swap.
//! 5. [`change`] defines the changes of an entry, and [`table`] is the table as one process has it.

pub mod change;
pub mod dirty_bits;
pub mod heap;
pub mod layout;
pub mod liveness;
pub mod memory;
pub mod node;
pub mod numbers;
pub mod questions;
pub mod read;
pub mod reclaim;
pub mod records;
pub mod segments;
pub mod sheet;
mod sync;
#[cfg(not(loom))]
pub mod table;
pub mod writer;

#[cfg(test)]
mod tests;
