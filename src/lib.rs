//! The native core of `sanic-worker`: what of its process manager is hot, or must be exact about the
//! kernel.
//!
//! The modules know no Python; that is for `py` alone, so that the crate also builds, and is tested,
//! without the feature `python`. Bytes take this way: [`frame`] cuts what comes down the pipe into
//! payloads, [`pickle`] recognises the texts among them, [`command`] says what a text means, and
//! [`monitor`] waits for them, for the exits of processes and for wakes, all at once. Files take
//! another: [`modules`] says which the loaded modules come from, [`walk`] looks at one directory and the
//! [`name`]s in it, but for what is [`ignored`], and [`scan`] says what has changed among all that is
//! watched. In a child, [`lifeline`] watches the main process.

pub mod command;
pub mod frame;
#[cfg(unix)]
pub mod ignored;
#[cfg(unix)]
mod intake;
#[cfg(unix)]
pub mod lifeline;
#[cfg(unix)]
pub mod modules;
#[cfg(unix)]
pub mod monitor;
#[cfg(unix)]
pub mod name;
pub mod pickle;
#[cfg(unix)]
mod pipe;
#[cfg(unix)]
pub mod scan;
#[cfg(unix)]
mod share;
#[cfg(unix)]
mod sign;
#[cfg(unix)]
pub mod table;
#[cfg(unix)]
pub mod walk;

#[cfg(all(feature = "python", unix))]
mod py;
