//! A framer gives the same however the bytes come, keeps no more than it may and loses no whole frame.
//!
//! The input is the limit less one, how many sizes of chunks there are (less than 16), these sizes, which
//! take turns, and the stream: a byte each but for the last.
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

/// Whatever comes: cut or not, it is the same, and within bounds.
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
            // What is dropped later is not in the sample.
            (Got::Fault(one), Got::Fault(other)) => {
                assert_eq!(one.reason, other.reason);
                assert!(one.sample.starts_with(&other.sample));
            }
            (one, other) => panic!("{one:?} is not {other:?}"),
        }
    }
    told_is_right(&whole, stream, limit);
    for mut framer in [at_once, in_parts] {
        assert_eq!((framer.pending(), framer.abandon()), (0, None));
        if limit > 1 {
            // It is as new, so it takes whatever is framed.
            let wanted = [Got::Payload(NO_PICKLE[SHORT..].to_vec())];
            assert_eq!(fed(&mut framer, [NO_PICKLE], limit), wanted);
        }
    }
}

/// What was told, an unfinished frame included, is what is in the stream, place by place.
fn told_is_right(told: &[Got], stream: &[u8], limit: usize) {
    let mut told = told.iter();
    let mut at = 0;
    while let Some((start, size)) = header(&stream[at..]) {
        let payload = stream[at + start..].get(..size as usize);
        if size <= limit as i128 && size >= 0 {
            let Some(payload) = payload else { break };
            assert_eq!(told.next(), Some(&Got::Payload(payload.to_vec())));
            at += start + payload.len();
            continue;
        }
        let Some(Got::Fault(fault)) = told.next() else {
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
            // Too little is left to be told of, or it may be a frame.
            at = if stream.len() - next < SHORT + 2 {
                stream.len()
            } else {
                next
            };
            break;
        }
        at = next;
    }
    assert_eq!(told.len(), usize::from(at < stream.len()));
}

/// How long a header is and what size it announces, if it is complete.
fn header(bytes: &[u8]) -> Option<(usize, i128)> {
    let short = i32::from_be_bytes(*bytes.first_chunk()?);
    if short != -1 {
        return Some((SHORT, short.into()));
    }
    let long = bytes.get(SHORT..)?.first_chunk()?;
    Some((LONG, u64::from_be_bytes(*long).into()))
}

/// Whether a frame may begin here after a loss; `None` if more bytes would tell.
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

/// Nothing but frames: each is handed over, and nothing else is told.
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
    // Turned round, for other cuts than between the frames.
    let sizes: Vec<u8> = sizes.iter().rev().copied().collect();
    assert_eq!(fed(&mut framer, chunks(&frames, &sizes), limit), wanted);
    assert_eq!((framer.pending(), framer.abandon()), (0, None));
}

/// A payload as it may be sent; one of an odd size with the long header.
fn frame(payload: &[u8]) -> Vec<u8> {
    let size = payload.len();
    let header = if size % 2 == 0 {
        (size as u32).to_be_bytes().to_vec()
    } else {
        [[0xff; 4].as_slice(), &(size as u64).to_be_bytes()].concat()
    };
    [header.as_slice(), payload].concat()
}

/// The stream in parts of these sizes, which take turns; in one part if they lead nowhere.
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

/// Feed chunks; return what they brought to an end.
fn fed<'a>(
    framer: &mut Framer,
    chunks: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
) -> Vec<Got> {
    let mut all = Vec::new();
    for chunk in chunks {
        let before = framer.pending();
        let mut told = 0;
        framer.feed(chunk, |item| {
            all.push(match item {
                Item::Payload(payload) => {
                    assert!(payload.len() <= limit);
                    told += payload.len();
                    Got::Payload(payload.to_vec())
                }
                Item::Fault(fault) => {
                    assert!((SHORT..=SAMPLE).contains(&fault.sample.len()));
                    Got::Fault(fault)
                }
            });
        });
        assert!(framer.pending() < LONG + limit);
        assert!(framer.pending() + told <= before + chunk.len());
    }
    all
}
