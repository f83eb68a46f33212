//! What holds the table to its promises: in every order of events, at each step, at any moment.

// The model tries a few of them only.
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
mod reclaim;
#[cfg(not(loom))]
mod space;
#[cfg(not(loom))]
pub mod steps;

use std::collections::{BTreeMap, HashSet};

use super::heap::Class;
use super::layout::{Layout, Single};
use super::liveness::Whereabouts;
use super::memory::Memory;
use super::node;
use super::ops::{Change, Failure};
use super::records::Identity;
use super::segments;
use super::sync::{AtomicU64, Ordering};
use super::writer::Writer;

/// What everybody sees of an entry.
type Seen = BTreeMap<String, Vec<u8>>;

fn words(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Words for so many units, and where in them what is.
fn room(units: usize) -> (Vec<AtomicU64>, Layout) {
    let mut layout = Layout {
        buckets: 1,
        processes: 4,
        units,
    };
    if !cfg!(loom) {
        layout.buckets = 64;
    }
    (words(layout.words()), layout)
}

fn change<'a, 'b>(writer: &'a mut Writer, memory: Memory<'b>, name: &'a str) -> Change<'a, 'b> {
    let name = name.as_bytes();
    Change {
        writer,
        memory,
        name,
        census: &|_| Whereabouts::Unknown,
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
    let parts = memory.parts(name.as_bytes(), |_| true).unwrap();
    let part = parts.into_iter().find(|part| part.entry.pid == 0)?;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let keys = part.keys.into_iter();
    Some(
        keys.map(|(key, value)| (text(key.key), value.unwrap()))
            .collect(),
    )
}

fn disown(memory: Memory<'_>, serial: u64) {
    segments::disown(memory, |one| one == serial);
}

/// How many values of that size a new process can keep.
fn fits(memory: Memory<'_>, serial: u64, size: usize) -> usize {
    let mut writer = Writer::new(serial);
    let value = vec![0; size];
    let count = std::iter::repeat_with(|| writer.value(memory, &value));
    let count = count.take_while(Result::is_ok).count();
    disown(memory, serial);
    count
}

/// How many blocks there are for values of that size.
fn blocks(memory: Memory<'_>, size: usize) -> usize {
    let wanted = Class::of(node::value(&vec![0; size]).len());
    let owned = (0..memory.layout().units).filter_map(|unit| segments::owner(memory, unit));
    owned
        .filter(|(_, class)| *class == wanted)
        .map(|(_, class)| class.shape().1)
        .sum()
}

/// Whose the units are that are anyone's.
fn owners(memory: Memory<'_>) -> HashSet<u64> {
    let (mut unit, mut owners) = (0, HashSet::new());
    while unit < memory.layout().units {
        let word = memory.owner(unit).load(Ordering::Acquire);
        let block = segments::owner(memory, unit);
        owners.extend((word != 0).then_some(word >> 8));
        unit += block.map_or(1, |(_, class)| class.shape().0);
    }
    owners
}
