//! A framer yields the same for chunks of any size, keeps no more than its limit and loses no whole frame.
//!
//! The input is the limit less one, the number of chunk sizes (below 16), these sizes, which take turns, and
//! the stream: a byte each, except for the stream.
#![no_main]

use _native::control::frame::{Fault, Framer, Item};
use libfuzzer_sys::fuzz_target;

const SHORT: usize = 4;
const LONG: usize = 12;
const SAMPLE: usize = 64;
const NO_PICKLE: &[u8] = b"\0\0\0\x02hi";

#[derive(Debug, PartialEq)]
enum Got {
    Payload(Vec<u8>),
    Fault(Fault),
}

fuzz_target!(|input: &[u8]| {
    let [limit, count, rest @ ..] = input else {
        return;
    };
    let limit = usize::from(*limit) + 1;
    let Some((sizes, stream)) = rest.split_at_checked(usize::from(*count % 16)) else {
        return;
    };
    any_stream(stream, sizes, limit);
    whole_frames(stream, sizes, limit);
});

/// Any stream: the result is the same in one chunk and in several, and within bounds.
fn any_stream(stream: &[u8], sizes: &[u8], limit: usize) {
    let (mut at_once, mut in_parts) = (Framer::new(limit), Framer::new(limit));
    let mut whole = fed(&mut at_once, [stream], limit);
    let mut parts = fed(&mut in_parts, chunks(stream, sizes), limit);
    assert_eq!(at_once.pending(), in_parts.pending());
    whole.extend(at_once.abandon().map(Got::Fault));
    parts.extend(in_parts.abandon().map(Got::Fault));
    assert_eq!(whole.len(), parts.len(), "{whole:?} is not {parts:?}");
    for pair in whole.iter().zip(&parts) {
        match pair {
            (Got::Payload(one), Got::Payload(other)) => assert_eq!(one, other),
            // The sample lacks the bytes that are dropped later.
            (Got::Fault(one), Got::Fault(other)) => {
                assert_eq!(one.reason, other.reason);
                assert!(one.sample.starts_with(&other.sample));
            }
            (one, other) => panic!("{one:?} is not {other:?}"),
        }
    }
    check_result(&whole, stream, limit);
    for mut framer in [at_once, in_parts] {
        assert_eq!((framer.pending(), framer.abandon()), (0, None));
        if limit > 1 {
            // The framer is as new, so it accepts any payload.
            let wanted = [Got::Payload(NO_PICKLE[SHORT..].to_vec())];
            assert_eq!(fed(&mut framer, [NO_PICKLE], limit), wanted);
        }
    }
}

/// Compare the result, an unfinished frame included, with the stream, place by place.
fn check_result(yielded: &[Got], stream: &[u8], limit: usize) {
    let mut yielded = yielded.iter();
    let mut at = 0;
    while let Some((start, size)) = header(&stream[at..]) {
        let payload = stream[at + start..].get(..size as usize);
        if size <= limit as i128 && size >= 0 {
            let Some(payload) = payload else { break };
            assert_eq!(yielded.next(), Some(&Got::Payload(payload.to_vec())));
            at += start + payload.len();
            continue;
        }
        let Some(Got::Fault(fault)) = yielded.next() else {
            panic!("no fault at {at}");
        };
        let reason = format!("a header announces {size} bytes, a frame has 0 to {limit}");
        assert_eq!(fault.reason, reason);
        assert!(fault.sample.len() >= start && stream[at..].starts_with(&fault.sample));
        let mut places = at + 1..stream.len();
        let Some(next) = places.find(|&at| begins(&stream[at..], limit) != Some(false)) else {
            at = stream.len();
            break;
        };
        if begins(&stream[next..], limit).is_none() {
            // The rest is too short to be reported, or may be a frame.
            at = if stream.len() - next < SHORT + 2 {
                stream.len()
            } else {
                next
            };
            break;
        }
        at = next;
    }
    assert_eq!(yielded.len(), usize::from(at < stream.len()));
}

/// Return the length of a header and the size that it announces, if it is complete.
fn header(bytes: &[u8]) -> Option<(usize, i128)> {
    let short = i32::from_be_bytes(*bytes.first_chunk()?);
    if short != -1 {
        return Some((SHORT, short.into()));
    }
    let long = bytes.get(SHORT..)?.first_chunk()?;
    Some((LONG, u64::from_be_bytes(*long).into()))
}

/// Return whether a frame may begin here while out of sync; `None` if more bytes are needed.
fn begins(bytes: &[u8], limit: usize) -> Option<bool> {
    let mark = *bytes.get(SHORT)?;
    if mark != 0x80 {
        return Some(false);
    }
    let version = *bytes.get(SHORT + 1)?;
    let size = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    if !(2..=5).contains(&version) || !(4..=limit).contains(&size) {
        return Some(false);
    }
    Some(*bytes.get(SHORT + size - 1)? == b'.')
}

/// Frames only: each is yielded, without a fault.
fn whole_frames(stream: &[u8], sizes: &[u8], limit: usize) {
    let payloads: Vec<&[u8]> = chunks(stream, sizes)
        .filter(|chunk| chunk.len() <= limit)
        .take(20)
        .collect();
    let frames: Vec<u8> = payloads.iter().copied().flat_map(frame).collect();
    let wanted: Vec<Got> = payloads
        .iter()
        .map(|payload| Got::Payload(payload.to_vec()))
        .collect();
    let mut framer = Framer::new(limit);
    assert_eq!(fed(&mut framer, [frames.as_slice()], limit), wanted);
    // In reverse order, to cut within the frames.
    let sizes: Vec<u8> = sizes.iter().rev().copied().collect();
    assert_eq!(fed(&mut framer, chunks(&frames, &sizes), limit), wanted);
    assert_eq!((framer.pending(), framer.abandon()), (0, None));
}

/// Frame a payload; one of an odd size with the long header.
fn frame(payload: &[u8]) -> Vec<u8> {
    let size = payload.len();
    let header = if size % 2 == 0 {
        (size as u32).to_be_bytes().to_vec()
    } else {
        [[0xff; 4].as_slice(), &(size as u64).to_be_bytes()].concat()
    };
    [header.as_slice(), payload].concat()
}

/// Split the stream into chunks of these sizes, which take turns; into one chunk if all sizes are 0.
fn chunks<'a>(mut stream: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let usable = sizes.iter().any(|&size| size > 0);
    let sizes = if usable { sizes } else { &[u8::MAX] };
    let mut turns = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = usize::from(*turns.next()?).min(stream.len());
        let (chunk, rest) = stream.split_at(size);
        let left = !stream.is_empty();
        stream = rest;
        left.then_some(chunk)
    })
}

/// Feed chunks; return the payloads and faults.
fn fed<'a>(
    framer: &mut Framer,
    chunks: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
) -> Vec<Got> {
    let mut all = Vec::new();
    for chunk in chunks {
        let before = framer.pending();
        let mut yielded = 0;
        framer.feed(chunk, |item| {
            all.push(match item {
                Item::Payload(payload) => {
                    assert!(payload.len() <= limit);
                    yielded += payload.len();
                    Got::Payload(payload.to_vec())
                }
                Item::Fault(fault) => {
                    assert!((SHORT..=SAMPLE).contains(&fault.sample.len()));
                    Got::Fault(fault)
                }
            });
        });
        assert!(framer.pending() < LONG + limit);
        assert!(framer.pending() + yielded <= before + chunk.len());
    }
    all
}
