//! The control channel, from its bytes to its commands.
//!
//! [`pipe`] reads bytes and names their sender. [`frame`] cuts the bytes of one sender into payloads.
//! [`receive`] keeps one framer per sender and yields whole messages, a bounded number at a time. [`pickle`]
//! recognises the payloads that may be decoded without running code, and [`command`] parses the text that
//! such a payload holds.
//!
//! Bytes go in, messages come out. No module here knows of [`monitor`](crate::monitor), which waits for the
//! channel.

pub mod command;
pub mod frame;
pub mod pickle;
#[cfg(unix)]
mod pipe;
#[cfg(unix)]
pub mod receive;
