//! The framing of `multiprocessing.connection`: bytes in, whole payloads out.
//!
//! A frame is its size, a big-endian `i32`, and its payload; a size of -1 is followed by the real one,
//! a big-endian `u64`. A size that cannot be is a fault: the framer is then lost, and looks for the
//! next place where the frame of a pickle may begin. It goes over each byte once, however they come.

/// The largest payload that is accepted if nothing else is asked for, in bytes.
pub const LIMIT: usize = 16 * 1024 * 1024;
/// What the unfinished frames of all senders may take together, in bytes.
pub const ROOM: usize = 4 * LIMIT;

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
    /// How much is still to come of a frame that was dropped.
    skip: usize,
}

impl Framer {
    /// A framer for payloads of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            lost: false,
            skip: 0,
        }
    }

    /// How many bytes are kept.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Whether the next byte begins a frame.
    pub fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.skip == 0 && !self.lost
    }

    /// Take more bytes, and hand over what they brought to an end, in the order of the bytes.
    pub fn feed(&mut self, chunk: &[u8], mut out: impl FnMut(Item<'_>)) {
        self.feed_some(chunk, |item| {
            out(item);
            false
        });
    }

    /// The same, until `out` says that it is enough; tell whether it did. What is left comes first next time.
    pub fn feed_some(&mut self, chunk: &[u8], mut out: impl FnMut(Item<'_>) -> bool) -> bool {
        let skipped = chunk.len().min(self.skip);
        self.skip -= skipped;
        let chunk = &chunk[skipped..];
        let kept = !self.buffer.is_empty();
        if kept {
            self.buffer.extend_from_slice(chunk);
        }
        let data = if kept { &self.buffer } else { chunk };
        let cut = cut(data, self.limit, self.lost, &mut out);
        self.lost = cut.lost;
        if kept {
            self.buffer.drain(..cut.done);
        } else {
            self.buffer.extend_from_slice(&chunk[cut.done..]);
        }
        cut.enough
    }

    /// Drop what is left, as its writer is gone. Bytes that were dropped while lost have been told of.
    pub fn abandon(&mut self) -> Option<Fault> {
        self.skip = 0;
        let lost = std::mem::take(&mut self.lost);
        self.empty(lost, "its writer is gone")
    }

    /// Drop the unfinished frame, and what is still to come of it: there is no room.
    pub fn skip(&mut self) -> Option<Fault> {
        let lost = self.lost;
        let end = header(&self.buffer).and_then(|(start, size)| {
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            end.checked_sub(self.buffer.len())
        });
        match end {
            Some(left) if !lost => self.skip = left,
            // Where it ends is not known.
            _ => self.lost = true,
        }
        let why = format!("unfinished frames may take {ROOM} bytes together");
        self.empty(lost, &why)
    }

    fn empty(&mut self, lost: bool, why: &str) -> Option<Fault> {
        let data = std::mem::take(&mut self.buffer);
        if data.is_empty() || (lost && data.len() < PROBE) {
            return None;
        }
        let reason = match header(&data) {
            Some((start, size)) => {
                let have = data.len() - start;
                format!("{have} bytes of an unfinished frame of {size} bytes; {why}")
            }
            None => format!("{} bytes of an unfinished header; {why}", data.len()),
        };
        let sample = data[..data.len().min(SAMPLE)].to_vec();
        Some(Fault { reason, sample })
    }
}

/// How far bytes were gone through.
struct Cut {
    /// How many are dealt with.
    done: usize,
    /// Whether the rest is lost.
    lost: bool,
    /// Whether it was said to be enough.
    enough: bool,
}

fn cut(data: &[u8], limit: usize, lost: bool, out: &mut impl FnMut(Item<'_>) -> bool) -> Cut {
    let (mut done, mut lost) = if lost {
        search(data, 0, limit)
    } else {
        (0, false)
    };
    let mut enough = false;
    while !lost && !enough {
        let Some((start, size)) = header(&data[done..]) else {
            break;
        };
        let start = done + start;
        match usize::try_from(size).ok().filter(|&size| size <= limit) {
            Some(size) if size <= data.len() - start => {
                enough = out(Item::Payload(&data[start..start + size]));
                done = start + size;
            }
            Some(_) => break,
            None => {
                let bad = done;
                (done, lost) = search(data, bad + 1, limit);
                // What is kept may yet be a frame, but the header that was refused is always shown.
                let end = done.max(start).min(bad + SAMPLE);
                enough = out(Item::Fault(Fault {
                    reason: format!("a header announces {size} bytes, a frame has 0 to {limit}"),
                    sample: data[bad..end].to_vec(),
                }));
            }
        }
    }
    Cut { done, lost, enough }
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
        let size = data[at..mark].try_into().map_or(-1, i32::from_be_bytes);
        let size = usize::try_from(size).unwrap_or_default();
        if (2..=5).contains(&version) && (SHORTEST..=limit).contains(&size) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HI: &[u8] = b"\0\0\0\x08\x80\x04\x8c\x02hi\x94.";

    #[derive(Default, Debug, PartialEq, Eq)]
    struct Got {
        payloads: Vec<Vec<u8>>,
        faults: Vec<Fault>,
    }

    fn feed(framer: &mut Framer, chunk: &[u8], got: &mut Got) {
        framer.feed(chunk, |item| match item {
            Item::Payload(payload) => got.payloads.push(payload.to_vec()),
            Item::Fault(fault) => got.faults.push(fault),
        });
    }

    fn all(stream: &[u8], chunk: usize) -> (Got, Framer) {
        let mut framer = Framer::new(1000);
        let mut got = Got::default();
        for chunk in stream.chunks(chunk) {
            feed(&mut framer, chunk, &mut got);
        }
        (got, framer)
    }

    fn reasons(got: &Got) -> Vec<&str> {
        got.faults
            .iter()
            .map(|fault| fault.reason.as_str())
            .collect()
    }

    #[test]
    fn frames_come_whole_wherever_they_are_cut() {
        let long = [
            b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x03abc".as_slice(),
            b"\0\0\0\0",
            HI,
        ]
        .concat();
        let stream = [HI, &long, HI].concat();
        let wanted: Vec<&[u8]> = vec![&HI[4..], b"abc", b"", &HI[4..], &HI[4..]];
        for cut in 0..=stream.len() {
            let mut framer = Framer::new(1000);
            let mut got = Got::default();
            feed(&mut framer, &stream[..cut], &mut got);
            feed(&mut framer, &stream[cut..], &mut got);
            assert_eq!(got.payloads, wanted);
            assert_eq!(got.faults, []);
            assert_eq!(framer.pending(), 0);
        }
        for size in 1..20 {
            assert_eq!(all(&stream, size).0.payloads, wanted);
        }
    }

    #[test]
    fn after_a_fault_the_next_plausible_frame_is_found() {
        let too_long = 1001_i32.to_be_bytes();
        let too_long_too = [
            b"\xff\xff\xff\xff".as_slice(),
            &0x1_0000_0000_u64.to_be_bytes(),
        ]
        .concat();
        for (bad, size) in [
            (too_long.as_slice(), "1001"),
            (b"\x80\0\0\0", "-2147483648"),
            (&too_long_too, "4294967296"),
        ] {
            // Among what is dropped: a plausible beginning that does not end as a pickle.
            let junk = b"junk\0\0\0\x04\x80\x04N!\0\0\0\x03\x80\x04N\x80\x80";
            let stream = [HI, bad, junk, HI, HI].concat();
            for chunk in 1..stream.len() {
                let (got, framer) = all(&stream, chunk);
                assert_eq!(got.payloads, [&HI[4..]; 3], "in chunks of {chunk}");
                assert_eq!(
                    reasons(&got),
                    [format!(
                        "a header announces {size} bytes, a frame has 0 to 1000"
                    )]
                );
                assert!(got.faults[0].sample.starts_with(bad));
                assert_eq!(framer.pending(), 0);
            }
        }
    }

    #[test]
    fn one_stray_byte_costs_no_frame() {
        let (got, _) = all(&[b"\xff", HI].concat(), 100);
        assert_eq!(got.payloads, [&HI[4..]]);
        assert_eq!(got.faults.len(), 1);
        assert_eq!(got.faults[0].sample, b"\xff\0\0\0");
    }

    #[test]
    fn what_is_lost_is_not_kept() {
        let mut framer = Framer::new(1000);
        let mut got = Got::default();
        for _ in 0..100 {
            feed(&mut framer, &[0xff; 1000], &mut got);
            assert!(framer.pending() < PROBE);
        }
        assert_eq!(got.faults.len(), 1);
        assert_eq!(got.faults[0].sample, [0xff; 64]);
        assert_eq!(framer.abandon(), None);
        assert_eq!(framer.pending(), 0);
    }

    #[test]
    fn the_unfinished_is_told_when_it_is_abandoned() {
        for (cut, reason) in [
            (3, "3 bytes of an unfinished header; its writer is gone"),
            (
                4,
                "0 bytes of an unfinished frame of 8 bytes; its writer is gone",
            ),
            (
                11,
                "7 bytes of an unfinished frame of 8 bytes; its writer is gone",
            ),
        ] {
            let (_, mut framer) = all(&HI[..cut], 100);
            let fault = framer.abandon().unwrap();
            assert_eq!(
                (fault.reason.as_str(), fault.sample),
                (reason, HI[..cut].to_vec())
            );
            assert_eq!(framer.abandon(), None);
        }
    }

    #[test]
    fn a_frame_that_is_skipped_ends_where_it_ends() {
        // What it holds looks like a frame.
        let inner = [HI, HI].concat();
        let size = u8::try_from(inner.len()).unwrap();
        let stream = [&[0, 0, 0, size], inner.as_slice(), HI].concat();
        for cut in 4..stream.len() - HI.len() {
            let (got, mut framer) = all(&stream[..cut], 100);
            assert_eq!(got, Got::default());
            let fault = framer.skip().unwrap();
            let have = cut - 4;
            assert_eq!(
                fault.reason,
                format!(
                    "{have} bytes of an unfinished frame of {size} bytes; \
                     unfinished frames may take {ROOM} bytes together"
                )
            );
            assert_eq!((framer.pending(), framer.is_idle()), (0, false));
            let mut got = Got::default();
            for chunk in stream[cut..].chunks(3) {
                feed(&mut framer, chunk, &mut got);
            }
            assert_eq!(got.payloads, [&HI[4..]]);
            assert!(got.faults.is_empty() && framer.is_idle());
        }
    }

    #[test]
    fn while_lost_the_end_of_what_is_skipped_is_searched() {
        let (_, mut framer) = all(&[b"\xff\xff\xff\0", &HI[..9]].concat(), 100);
        assert!(framer.skip().is_some());
        assert!(!framer.is_idle());
        let mut got = Got::default();
        feed(&mut framer, &[&HI[9..], HI].concat(), &mut got);
        assert_eq!(got.payloads, [&HI[4..]]);
        assert!(framer.is_idle());
        // Its writer may end in the middle of it.
        let (_, mut framer) = all(&HI[..9], 100);
        framer.skip();
        assert_eq!(framer.abandon(), None);
        assert!(framer.is_idle());
    }

    #[test]
    fn a_plausible_frame_is_waited_for_while_lost() {
        let (got, mut framer) = all(&[b"\xff\xff\xff\0", &HI[..9]].concat(), 100);
        assert_eq!(got.payloads.len(), 0);
        assert_eq!(framer.pending(), 9);
        let fault = framer.abandon().unwrap();
        assert!(
            fault
                .reason
                .starts_with("5 bytes of an unfinished frame of 8")
        );
    }
}
