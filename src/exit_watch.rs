//! What shows that a process is dead.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

/// A descriptor that becomes readable with the end of a process.
#[derive(Debug)]
pub enum Sign {
    /// A pidfd of ours.
    Pidfd(OwnedFd),
    /// Another one; it is lent: not duplicated, as it is also for when there are no descriptors left.
    Sentinel(RawFd),
    /// None: it was gone before it could be watched.
    Gone,
}

impl Sign {
    /// The sign of a process; `sentinel` stands in where there can be no pidfd.
    ///
    /// # Safety
    /// A sentinel must be open for as long as the sign lives.
    pub unsafe fn of(pid: i32, sentinel: Option<RawFd>) -> Result<Self> {
        match (pidfd(pid), sentinel) {
            (Err(Errno::SRCH), _) => Ok(Self::Gone),
            (Err(_), Some(sentinel @ 0..)) => Ok(Self::Sentinel(sentinel)),
            (pidfd, _) => pidfd.map(Self::Pidfd),
        }
    }

    /// What to poll, if it is not known already that the process is gone.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Pidfd(fd) => Some(fd.as_fd()),
            // SAFETY: `of` asks for one that is open, and takes none that is negative.
            Self::Sentinel(fd) => Some(unsafe { BorrowedFd::borrow_raw(*fd) }),
            Self::Gone => None,
        }
    }

    /// The status of the dead process, or the signal that killed it, negative; `None` if we may not know.
    #[cfg(target_os = "linux")]
    pub fn exit_code(&self) -> Option<i32> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};

        let Self::Pidfd(fd) = self else {
            return None;
        };
        // NOWAIT: the exit is only looked at, as it is for the parent's own books to reap the child.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(fd.as_fd()), options).ok()??;
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| -signal))
    }

    /// The status of the dead process: unknown.
    #[cfg(not(target_os = "linux"))]
    pub fn exit_code(&self) -> Option<i32> {
        None
    }
}

#[cfg(target_os = "linux")]
fn pidfd(pid: i32) -> Result<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
    pidfd_open(pid, PidfdFlags::empty())
}

#[cfg(not(target_os = "linux"))]
fn pidfd(_pid: i32) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}
