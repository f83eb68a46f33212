//! Tests of the table: in every order of events, at each step, at any moment.

// Loom runs only a few of the tests.
#![cfg_attr(loom, allow(dead_code, unused_imports))]

#[cfg(not(loom))]
mod damage;
#[cfg(not(loom))]
mod interrupted;
#[cfg(not(loom))]
mod model;
#[cfg(loom)]
mod orders;
#[cfg(not(loom))]
mod processes;
#[cfg(not(loom))]
mod questions;
#[cfg(not(loom))]
mod reclaim;
#[cfg(not(loom))]
mod sheets;
#[cfg(not(loom))]
mod space;
#[cfg(not(loom))]
pub mod steps;

use std::collections::{BTreeMap, HashSet};

use super::change::{Change, Failure};
use super::heap::Class;
use super::layout::{Header, Layout};
use super::liveness::Liveness;
use super::memory::Memory;
use super::node;
use super::records::Identity;
use super::segments;
use super::sheet::{self, Sheet};
use super::sync::{AtomicU64, Ordering};
use super::writer::Writer;

/// The current entry of a name.
type Seen = BTreeMap<String, Vec<u8>>;

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Return the words for that many segments, and their layout.
fn room(segments: usize) -> (Vec<AtomicU64>, Layout) {
    let mut layout = Layout {
        buckets: 1,
        processes: 4,
        sheets: 0,
        segments,
    };
    if !cfg!(loom) {
        layout.buckets = 64;
    }
    (words(layout.words()), layout)
}

/// Return the words for a table with sheets of these numbers of cells and of bytes per cell, their layout, and
/// the sheets.
fn room_with(sizes: &[(u32, u32)]) -> (Vec<AtomicU64>, Layout, Vec<Sheet>) {
    let (sheets, taken) = sheet::lay_out(sizes.iter().copied());
    let mut layout = room(8).1;
    layout.sheets = taken;
    (words(layout.words()), layout, sheets)
}

fn change<'a, 'b>(writer: &'a mut Writer, memory: Memory<'b>, name: &'a str) -> Change<'a, 'b> {
    let name = name.as_bytes();
    Change {
        writer,
        memory,
        name,
        liveness: &|_| Liveness::Unknown,
    }
}

fn pairs(pairs: &[(&str, &[u8])]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pair = |(key, value): &(&str, &[u8])| (key.as_bytes().to_vec(), value.to_vec());
    pairs.iter().map(pair).collect()
}

fn put(
    writer: &mut Writer,
    memory: Memory<'_>,
    name: &str,
    new: &[(&str, &[u8])],
) -> Result<(), Failure> {
    change(writer, memory, name).put(&pairs(new)).map(drop)
}

fn merge(
    writer: &mut Writer,
    memory: Memory<'_>,
    name: &str,
    new: &[(&str, &[u8])],
) -> Result<(), Failure> {
    change(writer, memory, name)
        .merge(&pairs(new), None)
        .map(drop)
}

fn remove(writer: &mut Writer, memory: Memory<'_>, name: &str) -> Result<(), Failure> {
    change(writer, memory, name).remove().map(drop)
}

fn read(memory: Memory<'_>, name: &str) -> Option<Seen> {
    let versions = memory.versions(name.as_bytes(), |_| true).unwrap();
    let current = versions
        .into_iter()
        .find(|version| version.entry.staged_by == 0)?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let keys = current.keys.into_iter();
    Some(
        keys.map(|(key, value)| (text(key.key), value.unwrap()))
            .collect(),
    )
}

fn abandon(memory: Memory<'_>, serial: u64) {
    segments::abandon(memory, |one| one == serial);
}

/// Return how many values of that size a new process can store.
fn fits(memory: Memory<'_>, serial: u64, size: usize) -> usize {
    let mut writer = Writer::new(serial);
    let value = vec![0; size];
    let count = std::iter::repeat_with(|| writer.value(memory, &value));
    let count = count.take_while(Result::is_ok).count();
    abandon(memory, serial);
    count
}

/// Return how many blocks there are for values of that size.
fn blocks(memory: Memory<'_>, size: usize) -> usize {
    let wanted = Class::of(node::value(&vec![0; size]).len());
    let owned =
        (0..memory.layout().segments).filter_map(|segment| segments::owner(memory, segment));
    owned
        .filter(|(_, class)| *class == wanted)
        .map(|(_, class)| class.shape().1)
        .sum()
}

/// Return the owners of all segments that are not free.
fn owners(memory: Memory<'_>) -> HashSet<u64> {
    let (mut segment, mut owners) = (0, HashSet::new());
    while segment < memory.layout().segments {
        let word = memory.owner(segment).load(Ordering::Acquire);
        let block = segments::owner(memory, segment);
        owners.extend((word != 0).then_some(word >> 8));
        segment += block.map_or(1, |(_, class)| class.shape().0);
    }
    owners
}
