//! One wait for messages, exits and wakes, against an absolute deadline.

use std::collections::VecDeque;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use crate::frame::{Fault, Framer, Item, LIMIT};
use crate::pipe::Pipe;
use crate::sign::Sign;

/// How much is read at once, as long as no larger message is under way: some hundreds of messages.
const READ: usize = 16 * 1024;
/// A wait takes no more, and is content with so many messages: a flood hides nothing for long.
const TAKE: usize = 256 * 1024;
const ENOUGH: usize = 250;

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
    pipe: Option<Pipe>,
    woken: UnixStream,
    watches: Vec<Watch>,
    framers: Vec<(Option<i32>, Framer)>,
    buffer: Box<[u8]>,
    /// What was read and is not cut yet, with its sender.
    stash: VecDeque<(Vec<u8>, Option<i32>)>,
    /// Why the pipe has ended, until that is told.
    end: Option<String>,
    batch: Batch,
    exits: Vec<Event>,
}

impl Monitor {
    /// A monitor of the receiving end of a pipe, and what wakes it.
    ///
    /// The end is only lent, and a number may come to mean another file: what is read is a duplicate.
    pub fn new(pipe: BorrowedFd<'_>) -> std::io::Result<(Self, Waker)> {
        let pipe = Pipe::new(rustix::io::fcntl_dupfd_cloexec(pipe, 0)?)?;
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let monitor = Self {
            pipe: Some(pipe),
            woken,
            watches: Vec::new(),
            framers: Vec::new(),
            buffer: vec![0; TAKE].into_boxed_slice(),
            stash: VecDeque::new(),
            end: None,
            batch: Batch::default(),
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
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        self.watch_strays();
        let ready = match self.poll(deadline) {
            Err(Errno::INTR) => return Ok(false),
            ready => ready?,
        };
        if ready.woken {
            self.settle_wakes();
        }
        self.collect(&ready);
        let is_over = |deadline| Instant::now() >= deadline;
        Ok(ready.woken || self.has_events() || deadline.is_some_and(is_over))
    }

    /// Take what has happened.
    pub fn batch(&mut self) -> Batch {
        let mut batch = std::mem::take(&mut self.batch);
        batch.events.append(&mut self.exits);
        batch
    }

    fn has_events(&self) -> bool {
        !self.batch.events.is_empty() || !self.exits.is_empty()
    }

    fn position(&self, key: &[u8]) -> Option<usize> {
        self.watches
            .iter()
            .position(|watch| watch.key.as_deref() == Some(key))
    }

    fn poll(&mut self, deadline: Option<Instant>) -> Result<Ready> {
        let mut fds = Vec::with_capacity(self.watches.len() + 2);
        fds.push(PollFd::new(&self.woken, PollFlags::IN));
        fds.extend(
            self.pipe
                .iter()
                .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        let signs = self.watches.iter().filter_map(|watch| watch.sign.fd());
        fds.extend(signs.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));

        let is_gone = |watch: &Watch| matches!(watch.sign, Sign::Gone);
        let left_over = self.has_events() || !self.stash.is_empty();
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
        let ready = Ready {
            woken: fired.next() == Some(true),
            pipe: self.pipe.is_some() && fired.next() == Some(true),
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
    }

    fn collect(&mut self, ready: &Ready) {
        let died = |watch: &Watch| watch.gone && !watch.drained;
        if self.watches.iter().any(died) {
            self.stash();
            for watch in &mut self.watches {
                watch.drained = watch.gone;
            }
        }
        self.take(ready.pipe);
        self.bury();
    }

    /// Take all that is in the pipe, to be cut when its turn comes: what a dead process had written is
    /// known from then on, and others' messages cannot put off its end.
    fn stash(&mut self) {
        let queued = self.pipe.as_ref().map(Pipe::queued);
        let mut left = queued.and_then(Result::ok).unwrap_or_default();
        while left > 0 {
            let Some((size, sender)) = self.receive() else {
                break;
            };
            left = left.saturating_sub(size);
            self.stash.push_back((self.buffer[..size].to_vec(), sender));
        }
    }

    /// Cut what is stashed, then what is in the pipe, up to what is enough for one wait.
    fn take(&mut self, readable: bool) {
        let mut budget = TAKE;
        while budget > 0 && self.batch.events.len() < ENOUGH {
            if let Some((bytes, sender)) = self.stash.pop_front() {
                budget = budget.saturating_sub(bytes.len());
                cut(&bytes, sender, &mut self.framers, &mut self.batch);
                continue;
            }
            let received = if readable { self.receive() } else { None };
            let Some((size, sender)) = received else {
                break;
            };
            budget = budget.saturating_sub(size);
            let bytes = &self.buffer[..size];
            cut(bytes, sender, &mut self.framers, &mut self.batch);
        }
        if self.stash.is_empty() {
            self.end_pipe();
        }
    }

    /// Read once; at the end of the pipe, let go of it.
    fn receive(&mut self) -> Option<(usize, Option<i32>)> {
        let is_long = |(_, framer): &(_, Framer)| framer.pending() >= READ;
        let long = self.framers.iter().any(is_long);
        let room = &mut self.buffer[..if long { TAKE } else { READ }];
        let why = match self.pipe.as_ref()?.read(room) {
            Ok((0, _)) => "it has no writer any more".to_owned(),
            Ok(received) => return Some(received),
            Err(Errno::AGAIN) => return None,
            Err(error) => description(error),
        };
        self.pipe = None;
        self.end = Some(why);
        None
    }

    /// Report the dead of whom nothing is left to be cut.
    fn bury(&mut self) {
        let stash = &self.stash;
        let is_over = |watch: &Watch| {
            let its = |sender: Option<i32>| sender.is_none_or(|sender| sender == watch.pid);
            watch.drained && !stash.iter().any(|(_, sender)| its(*sender))
        };
        let watches = std::mem::take(&mut self.watches);
        let (dead, watches): (Vec<_>, _) = watches.into_iter().partition(is_over);
        self.watches = watches;
        for watch in dead {
            if let Some(at) = self.framer(watch.pid) {
                self.abandon(at);
            }
            if let Some(key) = watch.key {
                self.exits.push(Event::Exited {
                    key,
                    pid: watch.pid,
                    code: watch.sign.exit_code(),
                });
            }
        }
    }

    fn end_pipe(&mut self) {
        let Some(why) = self.end.take() else {
            return;
        };
        while !self.framers.is_empty() {
            self.abandon(0);
        }
        let fault = Fault {
            reason: format!("the pipe was closed: {why}"),
            sample: Vec::new(),
        };
        self.batch.events.push(Event::Corrupt {
            fault,
            sender: None,
        });
    }

    fn framer(&self, pid: i32) -> Option<usize> {
        self.framers
            .iter()
            .position(|(sender, _)| *sender == Some(pid))
    }

    fn abandon(&mut self, at: usize) {
        let (sender, mut framer) = self.framers.remove(at);
        if let Some(fault) = framer.abandon() {
            self.batch.events.push(Event::Corrupt { fault, sender });
        }
    }

    /// See to it that the writer of each unfinished frame is watched, and nobody else unasked.
    fn watch_strays(&mut self) {
        let framers = &self.framers;
        let unfinished = |pid| framers.iter().any(|(sender, _)| *sender == Some(pid));
        self.watches
            .retain(|watch| watch.key.is_some() || unfinished(watch.pid));
        for pid in framers.iter().filter_map(|(sender, _)| *sender) {
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

fn cut(
    bytes: &[u8],
    sender: Option<i32>,
    framers: &mut Vec<(Option<i32>, Framer)>,
    batch: &mut Batch,
) {
    let found = framers.iter().position(|(of, _)| *of == sender);
    let at = found.unwrap_or_else(|| {
        framers.push((sender, Framer::new(LIMIT)));
        framers.len() - 1
    });
    let (_, framer) = &mut framers[at];
    let Batch {
        events,
        bytes: payloads,
    } = batch;
    framer.feed(bytes, |item| {
        events.push(match item {
            Item::Payload(payload) => {
                let start = payloads.len();
                payloads.extend_from_slice(payload);
                Event::Message {
                    payload: start..payloads.len(),
                    sender,
                }
            }
            Item::Fault(fault) => Event::Corrupt { fault, sender },
        });
    });
    if framer.pending() == 0 {
        framers.remove(at);
    }
}

/// What the C library says of an error.
fn description(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
