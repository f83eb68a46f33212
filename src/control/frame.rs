//! The framing of `multiprocessing.connection`: bytes in, whole payloads out.
//!
//! A frame is a size, a big-endian `i32`, and a payload. A size of -1 is followed by the real one, a
//! big-endian `u64`. An impossible size is a fault. The framer is then out of sync, and searches for the next
//! place where the frame of a pickle may begin. It inspects each byte once, in chunks of any size.

/// The largest payload that is accepted by default, in bytes.
pub const LIMIT: usize = 16 * 1024 * 1024;
/// The space that the unfinished frames of all senders may take together, in bytes.
pub const MAX_PENDING: usize = 4 * LIMIT;

const SHORT: usize = 4;
const LONG: usize = 12;
/// The shortest pickle, `\x80\x04N.`
const SHORTEST: usize = 4;
/// The bytes that make a frame plausible: its size, and the beginning of a pickle.
const PROBE: usize = SHORT + 2;
const SAMPLE: usize = 64;

/// An output of the framer.
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
    /// The reason, in words.
    pub reason: String,
    /// The first of the bytes, at most 64.
    pub sample: Vec<u8>,
}

/// The framer of one stream of bytes; it keeps the unfinished end of the stream.
#[derive(Debug)]
pub struct Framer {
    limit: usize,
    buffer: Vec<u8>,
    /// Whether the framer is out of sync: a frame may begin where the buffer begins, but need not.
    out_of_sync: bool,
    /// The number of bytes still to come of a frame that was dropped.
    skip: usize,
}

impl Framer {
    /// Create a framer for payloads of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            out_of_sync: false,
            skip: 0,
        }
    }

    /// Return the number of bytes kept.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Return whether the next byte begins a frame.
    pub fn is_idle(&self) -> bool {
        self.buffer.is_empty() && self.skip == 0 && !self.out_of_sync
    }

    /// Take more bytes; pass each payload and fault that they complete to `out`, in the order of the bytes.
    pub fn feed(&mut self, chunk: &[u8], mut out: impl FnMut(Item<'_>)) {
        self.feed_some(chunk, |item| {
            out(item);
            false
        });
    }

    /// Do the same until `out` returns `true`, which this then returns. The rest of the bytes comes first
    /// next time.
    pub fn feed_some(&mut self, chunk: &[u8], mut out: impl FnMut(Item<'_>) -> bool) -> bool {
        let skipped = chunk.len().min(self.skip);
        self.skip -= skipped;
        let chunk = &chunk[skipped..];
        let kept = !self.buffer.is_empty();
        if kept {
            self.buffer.extend_from_slice(chunk);
        }
        let data = if kept { &self.buffer } else { chunk };
        let cut = cut(data, self.limit, self.out_of_sync, &mut out);
        self.out_of_sync = cut.out_of_sync;
        if kept {
            self.buffer.drain(..cut.done);
        } else {
            self.buffer.extend_from_slice(&chunk[cut.done..]);
        }
        cut.enough
    }

    /// Drop the unfinished frame of a sender that has exited. Bytes dropped while out of sync were reported
    /// already.
    pub fn abandon(&mut self) -> Option<Fault> {
        self.skip = 0;
        let out_of_sync = std::mem::take(&mut self.out_of_sync);
        self.empty(out_of_sync, "its writer is gone")
    }

    /// Drop the unfinished frame, and the rest of it that is still to come, to make space.
    pub fn skip(&mut self) -> Option<Fault> {
        let out_of_sync = self.out_of_sync;
        let end = header(&self.buffer).and_then(|(start, size)| {
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            end.checked_sub(self.buffer.len())
        });
        match end {
            Some(left) if !out_of_sync => self.skip = left,
            // The end of the frame is not known.
            _ => self.out_of_sync = true,
        }
        let why = format!("unfinished frames may take {MAX_PENDING} bytes together");
        self.empty(out_of_sync, &why)
    }

    fn empty(&mut self, out_of_sync: bool, why: &str) -> Option<Fault> {
        let data = std::mem::take(&mut self.buffer);
        if data.is_empty() || (out_of_sync && data.len() < PROBE) {
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

/// The result of [`cut`].
struct Cut {
    /// The number of bytes that are dealt with.
    done: usize,
    /// Whether the framer is out of sync in the rest.
    out_of_sync: bool,
    /// Whether `out` asked to end.
    enough: bool,
}

fn cut(
    data: &[u8],
    limit: usize,
    out_of_sync: bool,
    out: &mut impl FnMut(Item<'_>) -> bool,
) -> Cut {
    let (mut done, mut out_of_sync) = if out_of_sync {
        search(data, 0, limit)
    } else {
        (0, false)
    };
    let mut enough = false;
    while !out_of_sync && !enough {
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
                (done, out_of_sync) = search(data, bad + 1, limit);
                // The bytes kept may yet be a frame. The sample always shows the refused header.
                let end = done.max(start).min(bad + SAMPLE);
                enough = out(Item::Fault(Fault {
                    reason: format!("a header announces {size} bytes, a frame has 0 to {limit}"),
                    sample: data[bad..end].to_vec(),
                }));
            }
        }
    }
    Cut {
        done,
        out_of_sync,
        enough,
    }
}

/// Return the length of the header at the beginning of `data`, and the size that it announces.
fn header(data: &[u8]) -> Option<(usize, i128)> {
    let (head, rest) = data.split_first_chunk()?;
    match i32::from_be_bytes(*head) {
        -1 => Some((LONG, u64::from_be_bytes(*rest.first_chunk()?).into())),
        size => Some((SHORT, size.into())),
    }
}

/// Return the first place from `at` on where a frame may begin, and whether more bytes are needed to tell.
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
            // The dropped bytes hold a plausible beginning that does not end as a pickle.
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
    fn bytes_dropped_out_of_sync_are_not_kept() {
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
    fn an_unfinished_frame_is_reported_when_it_is_abandoned() {
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
        // The payload looks like frames.
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
                     unfinished frames may take {MAX_PENDING} bytes together"
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
    fn the_end_of_a_skipped_frame_is_searched_while_out_of_sync() {
        let (_, mut framer) = all(&[b"\xff\xff\xff\0", &HI[..9]].concat(), 100);
        assert!(framer.skip().is_some());
        assert!(!framer.is_idle());
        let mut got = Got::default();
        feed(&mut framer, &[&HI[9..], HI].concat(), &mut got);
        assert_eq!(got.payloads, [&HI[4..]]);
        assert!(framer.is_idle());
        // The sender may exit in the middle of it.
        let (_, mut framer) = all(&HI[..9], 100);
        framer.skip();
        assert_eq!(framer.abandon(), None);
        assert!(framer.is_idle());
    }

    #[test]
    fn a_plausible_frame_is_waited_for_while_out_of_sync() {
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
