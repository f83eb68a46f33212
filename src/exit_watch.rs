//! The descriptor that shows the exit of a process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

/// A watch for the exit of one process.
#[derive(Debug)]
pub enum ExitWatch {
    /// A pidfd, opened here.
    Pidfd(OwnedFd),
    /// The caller's sentinel. It is not duplicated, because it must also serve when no descriptor can be
    /// opened.
    Sentinel(RawFd),
    /// No descriptor: the process had exited before the watch began.
    Exited,
}

impl ExitWatch {
    /// Watch a process; `sentinel` stands in where no pidfd can be opened.
    ///
    /// # Safety
    /// The sentinel must stay open until the watch is dropped.
    pub unsafe fn new(pid: i32, sentinel: Option<RawFd>) -> Result<Self> {
        match (pidfd(pid), sentinel) {
            (Err(Errno::SRCH), _) => Ok(Self::Exited),
            (Err(_), Some(sentinel @ 0..)) => Ok(Self::Sentinel(sentinel)),
            (pidfd, _) => pidfd.map(Self::Pidfd),
        }
    }

    /// Return the descriptor to poll; `None` if the process is known to have exited.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Pidfd(fd) => Some(fd.as_fd()),
            // SAFETY: `new` requires an open descriptor and accepts none that is negative.
            Self::Sentinel(fd) => Some(unsafe { BorrowedFd::borrow_raw(*fd) }),
            Self::Exited => None,
        }
    }

    /// Return the exit status, or the negative number of the signal that killed the process; `None` if this
    /// process may not know.
    #[cfg(target_os = "linux")]
    pub fn exit_code(&self) -> Option<i32> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};

        let Self::Pidfd(fd) = self else {
            return None;
        };
        // NOWAIT leaves the child unreaped: `multiprocessing` reaps it for its own bookkeeping.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(fd.as_fd()), options).ok()??;
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| -signal))
    }

    /// Return `None`: the exit status is unknown on this platform.
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
