//! The native core of `sanic-worker`: the parts of its process manager that are performance-critical or
//! depend on the exact behaviour of the kernel.
//!
//! The crate is read by folder:
//!
//! - [`control`] turns the bytes of the control channel into commands. [`monitor`] waits for that channel,
//!   for the exits of processes ([`exit_watch`]) and for wakeups, all in one system call.
//! - [`state`] is the shared state of all processes, a lock-free table in shared memory.
//! - [`scan`] finds files that changed.
//! - [`responder`] answers the questions of other processes whether this one is stuck.
//! - [`parent_watch`] ends a child whose main process is gone.
//! - `python` exposes these to Python. It uses every other module, and no other module knows Python: the
//!   crate also builds, and is tested, without the feature `python`.

pub mod control;
#[cfg(unix)]
mod exit_watch;
#[cfg(unix)]
pub mod monitor;
#[cfg(unix)]
pub mod parent_watch;
#[cfg(all(feature = "python", unix))]
mod python;
#[cfg(all(unix, not(loom)))]
pub mod responder;
#[cfg(unix)]
pub mod scan;
#[cfg(unix)]
pub mod state;
