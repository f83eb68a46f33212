//! One wait for messages of the control channel, exits of processes and wakeups, against an absolute
//! deadline.
//!
//! The [`Monitor`] composes a [`Receiver`], one [`ExitWatch`] per process, and descriptors that wake it. All
//! of them are polled at once. It then yields [`Events`]: messages first, so that a message always precedes
//! the exit of its sender.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use crate::control::receive::{Batch, Receiver};
use crate::exit_watch::ExitWatch;

/// The exit of a watched process.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// The key under which the process was watched.
    pub key: Vec<u8>,
    /// Its pid.
    pub pid: i32,
    /// Its exit status, or the negative number of the signal that killed it; `None` if this process may not
    /// know.
    pub code: Option<i32>,
}

/// The events of one wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The messages, in the order in which they arrived.
    pub received: Batch,
    /// The exits, which all came after the messages of their processes.
    pub exits: Vec<Exit>,
}

/// The reason why a process cannot be watched.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchError {
    /// Its key is watched already.
    Duplicate,
    /// No process has such a pid.
    NoPid,
    /// The kernel refused.
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
    /// Make the running wait, or the next one, return. Several wakeups before one wait count as one.
    pub fn wake(&self) {
        // A full buffer holds a wakeup already. A closed end has no monitor to wake.
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
    /// `None` for the sender of an unfinished frame whose exit the caller did not ask for.
    key: Option<Vec<u8>>,
    pid: i32,
    exit: ExitWatch,
    exited: bool,
    /// Whether it has exited and all its bytes were taken from the channel.
    drained: bool,
}

impl Watch {
    fn new(key: Option<Vec<u8>>, pid: i32, exit: ExitWatch) -> Self {
        Self {
            key,
            pid,
            exit,
            exited: false,
            drained: false,
        }
    }
}

#[derive(Debug)]
struct Ready {
    woken: bool,
    pipe: bool,
}

/// Receives the messages of many senders and watches processes.
#[derive(Debug)]
pub struct Monitor {
    receiver: Receiver,
    /// The reading end of the [`Waker`].
    wakeups: UnixStream,
    /// Another descriptor that wakes the monitor by being readable.
    notify_fd: Option<OwnedFd>,
    watches: Vec<Watch>,
    exits: Vec<Exit>,
}

impl Monitor {
    /// Create a monitor of the receiving end of the control channel, and its waker.
    ///
    /// `notify_fd` also wakes it, by being readable. It must not block.
    pub fn new(
        pipe: BorrowedFd<'_>,
        notify_fd: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<(Self, Waker)> {
        let receiver = Receiver::new(pipe)?;
        let notify_fd = notify_fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
        let (waker, wakeups) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakeups.set_nonblocking(true)?;
        let monitor = Self {
            receiver,
            wakeups,
            notify_fd,
            watches: Vec::new(),
            exits: Vec::new(),
        };
        Ok((monitor, Waker(waker)))
    }

    /// Watch a process. Where no pidfd can be opened, `sentinel` stands in: a descriptor that becomes
    /// readable when the process exits.
    ///
    /// # Safety
    /// `sentinel` must stay open until the exit was reported or the watch has ended.
    pub unsafe fn watch(
        &mut self,
        key: &[u8],
        pid: i32,
        sentinel: Option<RawFd>,
    ) -> std::result::Result<(), WatchError> {
        if self.position(key).is_some() {
            return Err(WatchError::Duplicate);
        }
        if pid < 1 {
            return Err(WatchError::NoPid);
        }
        // SAFETY: the caller keeps the sentinel open, and the exit watch is dropped with this watch.
        let exit = unsafe { ExitWatch::new(pid, sentinel) }?;
        self.watches.push(Watch::new(Some(key.to_vec()), pid, exit));
        Ok(())
    }

    /// Stop watching a process; return whether it was watched.
    pub fn unwatch(&mut self, key: &[u8]) -> bool {
        let found = self.position(key);
        if let Some(at) = found {
            self.watches.remove(at);
        }
        found.is_some()
    }

    /// Wait once, until `deadline`, or without limit if it is `None`. Return whether the wait is over: by
    /// events, which [`Self::take_events`] yields, by a wakeup, or by the deadline. If not, the caller
    /// handles signals and waits again.
    ///
    /// If `messages` is `false`, only messages of exited processes are received.
    pub fn wait(&mut self, deadline: Option<Instant>, messages: bool) -> Result<bool> {
        self.watch_unfinished_senders();
        let ready = match self.poll(deadline) {
            Err(Errno::INTR) => return Ok(false),
            ready => ready?,
        };
        if ready.woken {
            self.clear_wakeups();
        }
        self.collect(&ready, messages);
        let is_over = |deadline| Instant::now() >= deadline;
        Ok(ready.woken || self.has_events() || deadline.is_some_and(is_over))
    }

    /// Return the events since the last call.
    pub fn take_events(&mut self) -> Events {
        Events {
            received: self.receiver.take_batch(),
            exits: std::mem::take(&mut self.exits),
        }
    }

    fn has_events(&self) -> bool {
        self.receiver.has_messages() || !self.exits.is_empty()
    }

    fn position(&self, key: &[u8]) -> Option<usize> {
        self.watches
            .iter()
            .position(|watch| watch.key.as_deref() == Some(key))
    }

    fn poll(&mut self, deadline: Option<Instant>) -> Result<Ready> {
        let mut fds = Vec::with_capacity(self.watches.len() + 3);
        fds.push(PollFd::new(&self.wakeups, PollFlags::IN));
        let notify_fd = self.notify_fd.iter();
        fds.extend(notify_fd.map(|fd| PollFd::new(fd, PollFlags::IN)));
        let pipe = self.receiver.fd();
        fds.extend(pipe.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let exits = self.watches.iter().filter_map(|watch| watch.exit.fd());
        fds.extend(exits.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));

        let has_exited = |watch: &Watch| matches!(watch.exit, ExitWatch::Exited);
        let left_over = self.receiver.has_more() || !self.exits.is_empty();
        let overdue = left_over || self.watches.iter().any(has_exited);
        let left = if overdue {
            Some(Duration::ZERO)
        } else {
            deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
        };
        // A time too long for the kernel is without limit.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        poll(&mut fds, left.as_ref())?;

        // In the order in which they were added.
        let mut fired = fds.iter().map(|fd| !fd.revents().is_empty());
        let woken = fired.next() == Some(true);
        let ready = Ready {
            woken: (self.notify_fd.is_some() && fired.next() == Some(true)) || woken,
            pipe: pipe.is_some() && fired.next() == Some(true),
        };
        // Collected, because `fds` borrows the watches.
        let mut exits = fired.collect::<Vec<bool>>().into_iter();
        for watch in &mut self.watches {
            watch.exited = watch.exit.fd().is_none() || exits.next() == Some(true);
        }
        Ok(ready)
    }

    fn clear_wakeups(&self) {
        let mut bytes = [0; 1024];
        while let Ok(1..) = rustix::io::read(&self.wakeups, &mut bytes) {}
        if let Some(notify_fd) = &self.notify_fd {
            while let Ok(1024) = rustix::io::read(notify_fd, &mut bytes) {}
        }
    }

    fn collect(&mut self, ready: &Ready, messages: bool) {
        let just_exited = |watch: &Watch| watch.exited && !watch.drained;
        if self.watches.iter().any(just_exited) {
            self.receiver.stash();
            for watch in &mut self.watches {
                watch.drained = watch.exited;
            }
        }
        if messages {
            self.receiver.receive(ready.pipe);
        } else {
            for watch in self.watches.iter().filter(|watch| watch.drained) {
                self.receiver.receive_from(watch.pid);
            }
        }
        self.report_exits();
    }

    /// Report the exit of each process whose messages were all received.
    fn report_exits(&mut self) {
        let receiver = &mut self.receiver;
        let is_over = |watch: &Watch| watch.drained && !receiver.has_stashed_from(watch.pid);
        let watches = std::mem::take(&mut self.watches);
        let (over, watches): (Vec<_>, _) = watches.into_iter().partition(is_over);
        self.watches = watches;
        for watch in over {
            receiver.abandon(watch.pid);
            if let Some(key) = watch.key {
                self.exits.push(Exit {
                    key,
                    pid: watch.pid,
                    code: watch.exit.exit_code(),
                });
            }
        }
    }

    /// Watch the sender of each unfinished frame, and end such watches once the frame is complete.
    fn watch_unfinished_senders(&mut self) {
        let receiver = &self.receiver;
        let is_unfinished = |pid| receiver.unfinished_senders().any(|sender| sender == pid);
        self.watches
            .retain(|watch| watch.key.is_some() || is_unfinished(watch.pid));
        for pid in receiver.unfinished_senders() {
            if self.watches.iter().any(|watch| watch.pid == pid) {
                continue;
            }
            // SAFETY: there is no sentinel.
            if let Ok(exit) = unsafe { ExitWatch::new(pid, None) } {
                self.watches.push(Watch::new(None, pid, exit));
            }
        }
    }
}

#[cfg(test)]
mod tests;
