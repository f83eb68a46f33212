//! One wait for messages, exits and wakes, against an absolute deadline.

use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use crate::control::frame::Fault;
use crate::control::receive::Intake;
use crate::exit_watch::Sign;

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole frame came down the pipe.
    Message {
        /// Where its payload is in [`Batch::bytes`].
        payload: Range<usize>,
        /// The pid of its writer, if the kernel knows.
        sender: Option<i32>,
    },
    /// Bytes on the pipe were dropped, or the pipe has come to its end.
    Corrupt {
        /// What it is.
        fault: Fault,
        /// The pid of their writer, if the kernel knows.
        sender: Option<i32>,
    },
    /// A watched process is dead.
    Exited {
        /// What it was watched as.
        key: Vec<u8>,
        /// Its pid.
        pid: i32,
        /// Its status, or the signal that killed it, negative. `None` if we may not know.
        code: Option<i32>,
    },
}

/// What happened during a wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The events in their order: messages first, then exits.
    pub events: Vec<Event>,
    /// The payloads of the messages, side by side: one room for all of them.
    pub bytes: Vec<u8>,
}

/// Why a process cannot be watched.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchError {
    /// Its key is watched already.
    Twice,
    /// No process has such a pid.
    NoPid,
    /// The kernel says so.
    Os(Errno),
}

impl From<Errno> for WatchError {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}

/// Ends the wait of its [`Monitor`], from any thread.
#[derive(Debug)]
pub struct Waker(UnixStream);

impl Waker {
    /// Make the running wait, or the next one, return. Wakes that were not waited for are one.
    pub fn wake(&self) {
        // A full buffer is a wake that is under way; there is nobody to wake at a closed end.
        let _ = (&self.0).write(&[0]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Watch {
    /// `None` for the unknown writer of an unfinished frame.
    key: Option<Vec<u8>>,
    pid: i32,
    sign: Sign,
    gone: bool,
    /// Gone, and all that it had written was taken from the pipe.
    drained: bool,
}

#[derive(Debug)]
struct Ready {
    woken: bool,
    pipe: bool,
}

/// Reads the frames of many writers and watches processes.
#[derive(Debug)]
pub struct Monitor {
    intake: Intake,
    woken: UnixStream,
    bell: Option<OwnedFd>,
    watches: Vec<Watch>,
    exits: Vec<Event>,
}

impl Monitor {
    /// A monitor of the receiving end of a pipe, and what wakes it; so does a `bell`, never blocking, by being
    /// readable.
    pub fn new(
        pipe: BorrowedFd<'_>,
        bell: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<(Self, Waker)> {
        let intake = Intake::new(pipe)?;
        let bell = bell.map(|bell| bell.try_clone_to_owned()).transpose()?;
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let monitor = Self {
            intake,
            woken,
            bell,
            watches: Vec::new(),
            exits: Vec::new(),
        };
        Ok((monitor, Waker(waker)))
    }

    /// Watch a process. Where there can be no pidfd, `sentinel` stands in: a descriptor that becomes
    /// readable when the process is dead.
    ///
    /// # Safety
    /// `sentinel` must be open until the process has exited or is watched no more.
    pub unsafe fn watch(
        &mut self,
        key: &[u8],
        pid: i32,
        sentinel: Option<RawFd>,
    ) -> std::result::Result<(), WatchError> {
        if self.position(key).is_some() {
            return Err(WatchError::Twice);
        }
        if pid < 1 {
            return Err(WatchError::NoPid);
        }
        // SAFETY: the caller keeps it open, and the sign is dropped with the watch.
        let sign = unsafe { Sign::of(pid, sentinel) }?;
        self.watches.push(Watch {
            key: Some(key.to_vec()),
            pid,
            sign,
            gone: false,
            drained: false,
        });
        Ok(())
    }

    /// Watch a process no more; tell whether it was watched.
    pub fn unwatch(&mut self, key: &[u8]) -> bool {
        let found = self.position(key);
        if let Some(at) = found {
            self.watches.remove(at);
        }
        found.is_some()
    }

    /// Wait once, until `deadline`, or for ever if it is `None`; tell whether that is over, by events
    /// (see [`Self::batch`]), time or a wake. Else it is the caller's turn to handle signals and wait again.
    ///
    /// Messages are taken if they are wanted, else only those of the dead.
    pub fn wait(&mut self, deadline: Option<Instant>, messages: bool) -> Result<bool> {
        self.watch_strays();
        let ready = match self.poll(deadline) {
            Err(Errno::INTR) => return Ok(false),
            ready => ready?,
        };
        if ready.woken {
            self.settle_wakes();
        }
        self.collect(&ready, messages);
        let is_over = |deadline| Instant::now() >= deadline;
        Ok(ready.woken || self.has_events() || deadline.is_some_and(is_over))
    }

    /// Take what has happened.
    pub fn batch(&mut self) -> Batch {
        let mut batch = std::mem::take(&mut self.intake.batch);
        batch.events.append(&mut self.exits);
        batch
    }

    fn has_events(&self) -> bool {
        !self.intake.batch.events.is_empty() || !self.exits.is_empty()
    }

    fn position(&self, key: &[u8]) -> Option<usize> {
        self.watches
            .iter()
            .position(|watch| watch.key.as_deref() == Some(key))
    }

    fn poll(&mut self, deadline: Option<Instant>) -> Result<Ready> {
        let mut fds = Vec::with_capacity(self.watches.len() + 3);
        fds.push(PollFd::new(&self.woken, PollFlags::IN));
        let bell = self.bell.iter();
        fds.extend(bell.map(|bell| PollFd::new(bell, PollFlags::IN)));
        let pipe = self.intake.fd();
        fds.extend(pipe.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let signs = self.watches.iter().filter_map(|watch| watch.sign.fd());
        fds.extend(signs.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));

        let is_gone = |watch: &Watch| matches!(watch.sign, Sign::Gone);
        let left_over = self.intake.has_more() || !self.exits.is_empty();
        let overdue = left_over || self.watches.iter().any(is_gone);
        let left = if overdue {
            Some(Duration::ZERO)
        } else {
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        };
        // What is too long for the kernel is for ever.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        poll(&mut fds, left.as_ref())?;

        let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
        let woken = fired.next() == Some(true);
        let ready = Ready {
            woken: (self.bell.is_some() && fired.next() == Some(true)) || woken,
            pipe: pipe.is_some() && fired.next() == Some(true),
        };
        let fired: Vec<bool> = fired.collect();
        let mut fired = fired.into_iter();
        for watch in &mut self.watches {
            watch.gone = watch.sign.fd().is_none() || fired.next() == Some(true);
        }
        Ok(ready)
    }

    fn settle_wakes(&self) {
        let mut bytes = [0; 1024];
        while let Ok(1..) = rustix::io::read(&self.woken, &mut bytes) {}
        if let Some(bell) = &self.bell {
            while let Ok(1024) = rustix::io::read(bell, &mut bytes) {}
        }
    }

    fn collect(&mut self, ready: &Ready, messages: bool) {
        let died = |watch: &Watch| watch.gone && !watch.drained;
        if self.watches.iter().any(died) {
            self.intake.stash();
            for watch in &mut self.watches {
                watch.drained = watch.gone;
            }
        }
        if messages {
            self.intake.take(ready.pipe);
        } else {
            for watch in self.watches.iter().filter(|watch| watch.drained) {
                self.intake.take_of(watch.pid);
            }
        }
        self.bury();
    }

    /// Report the dead of whom nothing is left to be cut.
    fn bury(&mut self) {
        let intake = &mut self.intake;
        let is_over = |watch: &Watch| watch.drained && !intake.has_more_of(watch.pid);
        let watches = std::mem::take(&mut self.watches);
        let (dead, watches): (Vec<_>, _) = watches.into_iter().partition(is_over);
        self.watches = watches;
        for watch in dead {
            intake.abandon(watch.pid);
            if let Some(key) = watch.key {
                self.exits.push(Event::Exited {
                    key,
                    pid: watch.pid,
                    code: watch.sign.exit_code(),
                });
            }
        }
    }

    /// See to it that the writer of each unfinished frame is watched, and nobody else unasked.
    fn watch_strays(&mut self) {
        let unfinished = |pid| self.intake.unfinished().any(|sender| sender == pid);
        self.watches
            .retain(|watch| watch.key.is_some() || unfinished(watch.pid));
        for pid in self.intake.unfinished() {
            if self.watches.iter().any(|watch| watch.pid == pid) {
                continue;
            }
            // SAFETY: there is no sentinel.
            let Ok(sign) = (unsafe { Sign::of(pid, None) }) else {
                continue;
            };
            self.watches.push(Watch {
                key: None,
                pid,
                sign,
                gone: false,
                drained: false,
            });
        }
    }
}

#[cfg(test)]
mod tests;
