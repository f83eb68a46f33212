//! What can be known of a process that has a pid.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::records::Identity;

/// What the system says of a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It is this one's.
    Lives(Identity),
    /// It is nobody's; or that of one who has ended and was not collected yet: it does nothing any more.
    Dead,
    /// The system does not say: what it tells of processes may be hidden, or there is no descriptor to read it.
    Unknown,
}

impl Whereabouts {
    /// Of this pid.
    pub fn of(pid: u32) -> Self {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => Self::told(pid, &stat).unwrap_or(Self::Unknown),
            Err(_) if is_nobodys(pid) => Self::Dead,
            Err(_) => Self::Unknown,
        }
    }

    fn told(pid: u32, stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        let mut words = rest.split_ascii_whitespace();
        if matches!(words.next()?, "Z" | "X") {
            return Some(Self::Dead);
        }
        let began: u64 = words.nth(18)?.parse().ok()?;
        let began = u32::try_from(began & 0x7fff_ffff).ok()?;
        Some(Self::Lives(Identity { pid, began }))
    }
}

/// Whether it is certain that this process is dead.
pub fn is_dead(who: Identity) -> bool {
    match Whereabouts::of(who.pid) {
        // One that could not tell when it began may be this one.
        Whereabouts::Lives(now) => who.began != 0 && now != who,
        Whereabouts::Dead => true,
        Whereabouts::Unknown => false,
    }
}

fn is_nobodys(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}
