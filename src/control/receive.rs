//! Receives from the control channel: one framer per sender, whole messages, a bounded number at a time.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::{Errno, Result};

use super::frame::{Fault, Framer, Item, LIMIT, MAX_PENDING};
use super::pipe::Pipe;

/// The bytes of one read, unless a larger message is unfinished: some hundreds of messages.
const READ: usize = 16 * 1024;
/// The most bytes that one [`Receiver::receive`] takes, and the number of messages at which it stops. A flood
/// of messages delays the other events of a wait by no more than that.
const MAX_BYTES: usize = 128 * 1024;
const ENOUGH: usize = 250;

/// A message, or a gap in the stream of messages.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// The pid of the sender, if the kernel names it.
    pub sender: Option<i32>,
    /// The place of the payload in [`Batch::bytes`]; or the bytes that were dropped. The end of the channel
    /// is a fault without a sender.
    pub payload: std::result::Result<Range<usize>, Fault>,
}

/// Messages in the order in which they arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Message>,
    /// The payloads of all messages, side by side in one allocation.
    pub bytes: Vec<u8>,
}

/// The framer of each sender that has an unfinished frame.
type Framers = Vec<(Option<i32>, Framer)>;

/// The receiving end of the control channel.
#[derive(Debug)]
pub struct Receiver {
    /// `None` after the end of the channel.
    pipe: Option<Pipe>,
    framers: Framers,
    buffer: Box<[u8]>,
    /// Chunks that were read but not cut into messages, with their sender. The first bytes of the first chunk
    /// may be in the framer already.
    stash: VecDeque<(Vec<u8>, Option<i32>)>,
    /// The reason for the end of the channel, until it is reported.
    end: Option<String>,
    batch: Batch,
}

impl Receiver {
    /// Receive from a duplicate of `pipe`: its owner may close it, and its number may then name another file.
    pub fn new(pipe: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self {
            pipe: Some(Pipe::new(rustix::io::fcntl_dupfd_cloexec(pipe, 0)?)?),
            framers: Vec::new(),
            buffer: vec![0; MAX_BYTES].into_boxed_slice(),
            stash: VecDeque::new(),
            end: None,
            batch: Batch::default(),
        })
    }

    /// Return the descriptor to poll; `None` after the end of the channel.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(Pipe::as_fd)
    }

    /// Return whether messages are ready.
    pub fn has_messages(&self) -> bool {
        !self.batch.messages.is_empty()
    }

    /// Return the messages that are ready.
    pub fn take_batch(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// Return whether bytes were read that no batch has yielded.
    pub fn has_more(&self) -> bool {
        self.has_messages() || !self.stash.is_empty()
    }

    /// Return whether the stash may hold bytes of this sender.
    pub fn has_stashed_from(&self, pid: i32) -> bool {
        self.stash.iter().any(|(_, sender)| may_be(*sender, pid))
    }

    /// Return the known senders of unfinished frames.
    pub fn unfinished_senders(&self) -> impl Iterator<Item = i32> {
        self.framers.iter().filter_map(|(sender, _)| *sender)
    }

    /// Move all bytes in the channel to the stash. After that, no bytes of a process that has exited are in
    /// the channel, and messages of other processes cannot delay the report of its exit.
    pub fn stash(&mut self) {
        let queued = self.pipe.as_ref().map(Pipe::queued);
        let mut left = queued.and_then(Result::ok).unwrap_or_default();
        while left > 0 {
            let Some((size, sender)) = self.read() else {
                break;
            };
            left = left.saturating_sub(size);
            self.stash.push_back((self.buffer[..size].to_vec(), sender));
        }
    }

    /// Cut the stash into messages, then read the channel if it is `readable`, until there is enough for one
    /// wait.
    pub fn receive(&mut self, readable: bool) {
        let mut budget = MAX_BYTES;
        while budget > 0 && self.batch.messages.len() < ENOUGH {
            let (size, sender, more) = if let Some((bytes, sender)) = self.stash.pop_front() {
                let more = cut(&bytes, sender, ENOUGH, &mut self.framers, &mut self.batch);
                (bytes.len(), sender, more)
            } else if let Some((size, sender)) = readable.then(|| self.read()).flatten() {
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
            self.report_end();
        }
    }

    /// Cut the stashed bytes of one sender into messages, and no others.
    pub fn receive_from(&mut self, pid: i32) {
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

    /// Drop the unfinished frame of a sender that has exited.
    pub fn abandon(&mut self, pid: i32) {
        let its = |(sender, _): &(Option<i32>, Framer)| *sender == Some(pid);
        if let Some(at) = self.framers.iter().position(its) {
            self.abandon_at(at);
        }
    }

    /// Read once; at the end of the channel, close it.
    fn read(&mut self) -> Option<(usize, Option<i32>)> {
        let is_long = |(_, framer): &(_, Framer)| framer.pending() >= READ;
        let long = self.framers.iter().any(is_long);
        let buffer = &mut self.buffer[..if long { MAX_BYTES } else { READ }];
        let why = match self.pipe.as_ref()?.read(buffer) {
            Ok((0, _)) => "it has no writer any more".to_owned(),
            Ok(received) => return Some(received),
            Err(Errno::AGAIN) => return None,
            Err(error) => description(error),
        };
        self.pipe = None;
        self.end = Some(why);
        None
    }

    fn report_end(&mut self) {
        let Some(why) = self.end.take() else {
            return;
        };
        while !self.framers.is_empty() {
            self.abandon_at(0);
        }
        self.batch.messages.push(Message {
            sender: None,
            payload: Err(Fault {
                reason: format!("the pipe was closed: {why}"),
                sample: Vec::new(),
            }),
        });
    }

    fn abandon_at(&mut self, at: usize) {
        let (sender, mut framer) = self.framers.remove(at);
        self.batch
            .messages
            .extend(framer.abandon().map(|fault| Message {
                sender,
                payload: Err(fault),
            }));
    }
}

/// Return whether bytes of this sender may be those of the process. Bytes of an unknown sender may be.
fn may_be(sender: Option<i32>, pid: i32) -> bool {
    sender.is_none_or(|sender| sender == pid)
}

/// Cut bytes into messages, until the batch has `enough`. Return whether the framer may hold more.
fn cut(
    bytes: &[u8],
    sender: Option<i32>,
    enough: usize,
    framers: &mut Framers,
    batch: &mut Batch,
) -> bool {
    let found = framers.iter().position(|(of, _)| *of == sender);
    let at = found.unwrap_or_else(|| {
        framers.push((sender, Framer::new(LIMIT)));
        framers.len() - 1
    });
    let (_, framer) = &mut framers[at];
    let Batch {
        messages,
        bytes: payloads,
    } = batch;
    let more = framer.feed_some(bytes, |item| {
        let payload = match item {
            Item::Payload(payload) => {
                let start = payloads.len();
                payloads.extend_from_slice(payload);
                Ok(start..payloads.len())
            }
            Item::Fault(fault) => Err(fault),
        };
        messages.push(Message { sender, payload });
        messages.len() >= enough
    });
    if framer.is_idle() {
        framers.remove(at);
    } else {
        limit_pending(framers, messages);
    }
    more
}

/// Drop the largest unfinished frame until all of them fit in [`MAX_PENDING`].
fn limit_pending(framers: &mut Framers, messages: &mut Vec<Message>) {
    let size = |(_, framer): &(_, Framer)| framer.pending();
    while framers.iter().map(size).sum::<usize>() > MAX_PENDING {
        // Of several frames of that size, the first.
        let largest = framers.iter_mut().rev().max_by_key(|one| size(one));
        let Some((sender, framer)) = largest else {
            break;
        };
        let sender = *sender;
        messages.extend(framer.skip().map(|fault| Message {
            sender,
            payload: Err(fault),
        }));
    }
}

/// Return the C library's text of an error.
fn description(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}
