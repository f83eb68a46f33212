//! Whether a process is running, as far as the kernel tells.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::records::Identity;

/// The state of a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// The pid belongs to this process.
    Running(Identity),
    /// The pid belongs to no process, or to one that has exited and was not reaped.
    Exited,
    /// The kernel does not tell: `/proc` is hidden, or no descriptor is left to read it.
    Unknown,
}

impl Liveness {
    /// Return the state of a pid.
    pub fn of(pid: u32) -> Self {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Self::parse(pid, &stat).unwrap_or(Self::Unknown),
            Err(_) if is_free(pid) => Self::Exited,
            Err(_) => Self::Unknown,
        }
    }

    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        let mut words = rest.split_ascii_whitespace();
        if matches!(words.next()?, "Z" | "X") {
            return Some(Self::Exited);
        }
        let started: u64 = words.nth(18)?.parse().ok()?;
        let started = u32::try_from(started & 0x7fff_ffff).ok()?;
        Some(Self::Running(Identity { pid, started }))
    }
}

/// Return whether it is certain that this process has exited.
pub fn has_exited(identity: Identity) -> bool {
    match Liveness::of(identity.pid) {
        // A process with an unknown start time may be the one that runs now.
        Liveness::Running(now) => identity.started != 0 && now != identity,
        Liveness::Exited => true,
        Liveness::Unknown => false,
    }
}

fn is_free(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}
