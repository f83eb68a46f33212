//! What comes down the pipe: read, kept apart by sender, cut into messages, a fair portion at a time.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::{Errno, Result};

use crate::control::frame::{Fault, Framer, Item, LIMIT, ROOM};
use crate::control::pipe::Pipe;
use crate::monitor::{Batch, Event};

/// How much is read at once, as long as no larger message is under way: some hundreds of messages.
const READ: usize = 16 * 1024;
/// A wait takes no more, and is content with so many messages: a flood hides nothing for long.
const TAKE: usize = 128 * 1024;
const ENOUGH: usize = 250;

/// The receiving end of the pipe, and what has been read from it.
#[derive(Debug)]
pub struct Intake {
    pipe: Option<Pipe>,
    framers: Vec<(Option<i32>, Framer)>,
    buffer: Box<[u8]>,
    /// What was read and is not cut yet, with its sender; the first of it may be in the framer.
    stash: VecDeque<(Vec<u8>, Option<i32>)>,
    /// Why the pipe has ended, until that is told.
    end: Option<String>,
    /// What was cut.
    pub batch: Batch,
}

impl Intake {
    /// The end is only lent, and a number may come to mean another file: what is read is a duplicate.
    pub fn new(pipe: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            pipe: Some(Pipe::new(rustix::io::fcntl_dupfd_cloexec(pipe, 0)?)?),
            framers: Vec::new(),
            buffer: vec![0; TAKE].into_boxed_slice(),
            stash: VecDeque::new(),
            end: None,
            batch: Batch::default(),
        })
    }

    /// What to poll, as long as the pipe has not ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(Pipe::as_fd)
    }

    /// Whether there is something that was read and not told.
    pub fn has_more(&self) -> bool {
        !self.batch.events.is_empty() || !self.stash.is_empty()
    }

    /// Whether something that a sender may have written is still to be cut.
    pub fn has_more_of(&self, pid: i32) -> bool {
        self.stash.iter().any(|(_, sender)| may_be(*sender, pid))
    }

    /// The senders of unfinished frames.
    pub fn unfinished(&self) -> impl Iterator<Item = i32> {
        self.framers.iter().filter_map(|(sender, _)| *sender)
    }

    /// Take all that is in the pipe, to be cut when its turn comes: what a dead process had written is
    /// known from then on, and others' messages cannot put off its end.
    pub fn stash(&mut self) {
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
    pub fn take(&mut self, readable: bool) {
        let mut budget = TAKE;
        while budget > 0 && self.batch.events.len() < ENOUGH {
            let (size, sender, more) = if let Some((bytes, sender)) = self.stash.pop_front() {
                let more = cut(&bytes, sender, ENOUGH, &mut self.framers, &mut self.batch);
                (bytes.len(), sender, more)
            } else if let Some((size, sender)) = readable.then(|| self.receive()).flatten() {
                let bytes = &self.buffer[..size];
                let more = cut(bytes, sender, ENOUGH, &mut self.framers, &mut self.batch);
                (size, sender, more)
            } else {
                break;
            };
            budget = budget.saturating_sub(size);
            if more {
                self.stash.push_front((Vec::new(), sender));
            }
        }
        if self.stash.is_empty() {
            self.end_pipe();
        }
    }

    /// Cut what is stashed of a sender, and nothing else.
    pub fn take_of(&mut self, pid: i32) {
        let stash = std::mem::take(&mut self.stash);
        let (its, others): (VecDeque<_>, _) = stash
            .into_iter()
            .partition(|(_, sender)| may_be(*sender, pid));
        self.stash = others;
        for (bytes, sender) in its {
            let all = usize::MAX;
            cut(&bytes, sender, all, &mut self.framers, &mut self.batch);
        }
    }

    /// Drop the unfinished frame of a sender.
    pub fn abandon(&mut self, pid: i32) {
        let its = |(sender, _): &(Option<i32>, Framer)| *sender == Some(pid);
        if let Some(at) = self.framers.iter().position(its) {
            self.abandon_at(at);
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

    fn end_pipe(&mut self) {
        let Some(why) = self.end.take() else {
            return;
        };
        while !self.framers.is_empty() {
            self.abandon_at(0);
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

    fn abandon_at(&mut self, at: usize) {
        let (sender, mut framer) = self.framers.remove(at);
        if let Some(fault) = framer.abandon() {
            self.batch.events.push(Event::Corrupt { fault, sender });
        }
    }
}

/// Whether what a sender has written may be a process's: of an unknown one it may.
fn may_be(sender: Option<i32>, pid: i32) -> bool {
    sender.is_none_or(|sender| sender == pid)
}

/// Cut bytes into events, until there are `enough`; tell whether more may come of them.
fn cut(
    bytes: &[u8],
    sender: Option<i32>,
    enough: usize,
    framers: &mut Vec<(Option<i32>, Framer)>,
    batch: &mut Batch,
) -> bool {
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
    let more = framer.feed_some(bytes, |item| {
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
        events.len() >= enough
    });
    if framer.is_idle() {
        framers.remove(at);
    } else {
        make_room(framers, events);
    }
    more
}

/// Drop the largest of the unfinished frames as long as they take too much together.
fn make_room(framers: &mut [(Option<i32>, Framer)], events: &mut Vec<Event>) {
    let size = |(_, framer): &(_, Framer)| framer.pending();
    while framers.iter().map(size).sum::<usize>() > ROOM {
        // Of several that are as large, the first.
        let largest = framers.iter_mut().rev().max_by_key(|one| size(one));
        let Some((sender, framer)) = largest else {
            break;
        };
        let sender = *sender;
        let fault = framer.skip();
        events.extend(fault.map(|fault| Event::Corrupt { fault, sender }));
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
