//! The framing of `multiprocessing.connection`: bytes in, whole payloads out.
//!
//! A frame is its size, a big-endian `i32`, and its payload; a size of -1 is followed by the real one,
//! a big-endian `u64`. A size that cannot be is a fault: the framer is then lost, and looks for the
//! next place where the frame of a pickle may begin. It goes over each byte once, however they come.

/// The largest payload that is accepted if nothing else is asked for, in bytes.
pub const LIMIT: usize = 16 * 1024 * 1024;

const SHORT: usize = 4;
const LONG: usize = 12;
/// The shortest pickle, `\x80\x04N.`
const SHORTEST: usize = 4;
/// What tells a plausible frame: its size, and how a pickle begins.
const PROBE: usize = SHORT + 2;
const SAMPLE: usize = 64;

/// What a chunk brought to an end.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole payload.
    Payload(&'a [u8]),
    /// Bytes that were dropped.
    Fault(Fault),
}

/// Bytes that were dropped.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Fault {
    /// Why, in words.
    pub reason: String,
    /// The first of them, at most 64.
    pub sample: Vec<u8>,
}

/// The unfinished end of one stream of bytes.
#[derive(Debug)]
pub struct Framer {
    limit: usize,
    buffer: Vec<u8>,
    /// No frame is known to begin where the buffer begins, but one may.
    lost: bool,
}

impl Framer {
    /// A framer for payloads of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            lost: false,
        }
    }

    /// How many bytes are kept.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Take more bytes, and hand over what they brought to an end, in the order of the bytes.
    pub fn feed(&mut self, chunk: &[u8], mut out: impl FnMut(Item<'_>)) {
        let kept = !self.buffer.is_empty();
        if kept {
            self.buffer.extend_from_slice(chunk);
        }
        let data = if kept { &self.buffer } else { chunk };
        let (done, lost) = cut(data, self.limit, self.lost, &mut out);
        self.lost = lost;
        if kept {
            self.buffer.drain(..done);
        } else {
            self.buffer.extend_from_slice(&chunk[done..]);
        }
    }

    /// Drop what is left, as its writer is gone. Bytes that were dropped while lost have been told of.
    pub fn abandon(&mut self) -> Option<Fault> {
        let data = std::mem::take(&mut self.buffer);
        let lost = std::mem::take(&mut self.lost);
        if data.is_empty() || (lost && data.len() < PROBE) {
            return None;
        }
        let reason = match header(&data) {
            Some((start, size)) => {
                let have = data.len() - start;
                format!("{have} bytes of an unfinished frame of {size} bytes; its writer is gone")
            }
            None => format!(
                "{} bytes of an unfinished header; its writer is gone",
                data.len()
            ),
        };
        let sample = data[..data.len().min(SAMPLE)].to_vec();
        Some(Fault { reason, sample })
    }
}

/// Go through `data`; return how much of it is dealt with, and whether the rest is lost.
fn cut(
    data: &[u8],
    limit: usize,
    lost: bool,
    out: &mut impl FnMut(Item<'_>),
) -> (usize, bool) {
    let (mut at, mut lost) = if lost {
        search(data, 0, limit)
    } else {
        (0, false)
    };
    while !lost {
        let Some((start, size)) = header(&data[at..]) else {
            break;
        };
        let start = at + start;
        match usize::try_from(size).ok().filter(|&size| size <= limit) {
            Some(size) if size <= data.len() - start => {
                out(Item::Payload(&data[start..start + size]));
                at = start + size;
            }
            Some(_) => break,
            None => {
                let bad = at;
                (at, lost) = search(data, bad + 1, limit);
                // What is kept may yet be a frame, but the header that was refused is always shown.
                let end = at.max(start).min(bad + SAMPLE);
                out(Item::Fault(Fault {
                    reason: format!("a header announces {size} bytes, a frame has 0 to {limit}"),
                    sample: data[bad..end].to_vec(),
                }));
            }
        }
    }
    (at, lost)
}

/// How long the header at the beginning of `data` is, and the size that it announces.
fn header(data: &[u8]) -> Option<(usize, i128)> {
    let (head, rest) = data.split_first_chunk()?;
    match i32::from_be_bytes(*head) {
        -1 => Some((LONG, u64::from_be_bytes(*rest.first_chunk()?).into())),
        size => Some((SHORT, size.into())),
    }
}

/// The first place from `at` on where a frame may begin, and whether that is still open.
fn search(data: &[u8], mut at: usize, limit: usize) -> (usize, bool) {
    let next_mark = |from: usize| {
        let found = data.get(from..)?.iter().position(|&byte| byte == 0x80)?;
        Some(from + found)
    };
    while let Some(mark) = next_mark(at + SHORT) {
        at = mark - SHORT;
        let Some(&version) = data.get(mark + 1) else {
            return (at, true);
        };
        let size = header(&data[at..]).and_then(|(_, size)| usize::try_from(size).ok());
        if let Some(size) = size.filter(|size| (SHORTEST..=limit).contains(size))
            && (2..=5).contains(&version)
        {
            match data.get(mark + size - 1) {
                None => return (at, true),
                Some(b'.') => return (at, false),
                Some(_) => {}
            }
        }
        at += 1;
    }
    (at.max(data.len().saturating_sub(SHORT)), true)
}
