//! What was read of the table, so that what has not changed is neither read nor unpickled again.
//!
//! Nothing here runs code of Python's that could come back: values wait as bytes until somebody unpickles
//! them outside, and tells what came of it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::keys::{PICKLE, TEXT};
use super::messages;
use crate::state::heap::Ref;
use crate::state::memory::{Corrupt, Memory, Part};
use crate::state::node::Entry;

/// A value, as far as it was asked for.
#[derive(Debug)]
pub enum Held {
    /// It was not.
    Unread,
    /// Its pickle.
    Pickle(Arc<[u8]>),
    /// An object that nobody can change.
    Object(Py<PyAny>),
}

/// A key of an entry and its value.
#[derive(Debug)]
pub struct Item {
    /// The key as it is kept.
    pub bytes: Arc<[u8]>,
    /// The key itself, if it is a text.
    pub text: Option<Py<PyString>>,
    /// Which value that is.
    pub value: Ref,
    /// What is known of it.
    pub held: Held,
}

impl Item {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            bytes: self.bytes.clone(),
            text: self.text.as_ref().map(|text| text.clone_ref(py)),
            value: self.value,
            held: match &self.held {
                Held::Unread => Held::Unread,
                Held::Pickle(pickle) => Held::Pickle(pickle.clone()),
                Held::Object(object) => Held::Object(object.clone_ref(py)),
            },
        }
    }
}

/// An entry, or a part that is kept apart, at one moment.
#[derive(Debug)]
pub struct Known {
    /// Which one.
    pub entry: Entry,
    /// Its name.
    pub name: Py<PyString>,
    /// Its keys.
    pub items: Vec<Item>,
}

impl Known {
    /// A copy, of the same moment.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            entry: self.entry.clone(),
            name: self.name.clone_ref(py),
            items: self.items.iter().map(|item| item.clone_ref(py)).collect(),
        }
    }

    /// The value of a key.
    pub fn find(&self, key: &[u8]) -> Option<&Item> {
        self.items.iter().find(|item| *item.bytes == *key)
    }

    fn is(&self, entry: &Entry) -> bool {
        self.entry.pid == entry.pid && self.entry.name == entry.name
    }

    fn has_read(&self, value: Ref) -> bool {
        let read = |item: &Item| item.value == value && !matches!(item.held, Held::Unread);
        self.items.iter().any(read)
    }
}

/// All of one hash.
#[derive(Debug)]
struct Bucket {
    root: Ref,
    parts: Vec<Known>,
}

impl Bucket {
    fn empty() -> Self {
        Self {
            root: Ref::NONE,
            parts: Vec::new(),
        }
    }
}

/// What this process knows of the table.
#[derive(Debug, Default)]
pub struct Entries {
    buckets: Vec<Bucket>,
}

impl Entries {
    /// A bucket as it is now, with at least the values that are `wanted` (of which entry, which key).
    pub fn look(
        &mut self,
        py: Python<'_>,
        memory: Memory<'_>,
        number: usize,
        wanted: &dyn Fn(&Entry, &[u8]) -> bool,
    ) -> Result<&[Known], Corrupt> {
        if self.buckets.is_empty() {
            let empty = |_| Bucket::empty();
            self.buckets = (0..memory.layout().buckets).map(empty).collect();
        }
        let known = &mut self.buckets[number];
        let unread = |part: &Known| {
            let lacks =
                |item: &Item| matches!(item.held, Held::Unread) && wanted(&part.entry, &item.bytes);
            part.items.iter().any(lacks)
        };
        let is_same = memory.root(number).load(Acquire) == known.root.0;
        if !is_same || known.parts.iter().any(unread) {
            let (root, parts) = memory.read(number, |now| {
                let part = |entry: &Entry| {
                    let before = known.parts.iter().find(|part| part.is(entry));
                    memory.part(entry, &mut |key| {
                        wanted(entry, &key.key)
                            && !before.is_some_and(|part| part.has_read(key.value))
                    })
                };
                let parts: Option<Vec<_>> = now.entries.iter().map(part).collect();
                Some((now.root, parts?))
            })?;
            let mut before = std::mem::take(&mut known.parts);
            let parts = parts.into_iter().map(|part| {
                let at = before.iter().position(|known| known.is(&part.entry));
                merged(py, part, at.map(|at| before.swap_remove(at)))
            });
            match parts.collect() {
                Ok(parts) => *known = Bucket { root, parts },
                Err(corrupt) => {
                    known.root = Ref::NONE;
                    return Err(corrupt);
                }
            }
        }
        Ok(&known.parts)
    }

    /// There is nothing in a bucket now: what was there is not kept.
    pub fn forget(&mut self, number: usize) {
        if let Some(known) = self.buckets.get_mut(number)
            && known.root != Ref::NONE
        {
            *known = Bucket::empty();
        }
    }

    /// A value was unpickled, and nobody can change what came of it.
    pub fn remember(&mut self, number: usize, value: Ref, object: Py<PyAny>) {
        let parts = self.buckets.get_mut(number).map(|bucket| &mut bucket.parts);
        let mut items = parts.into_iter().flatten().flat_map(|part| &mut part.items);
        if let Some(item) = items.find(|item| item.value == value) {
            item.held = Held::Object(object);
        }
    }
}

/// A name or a key, as it was encoded.
fn text(py: Python<'_>, bytes: &[u8]) -> Result<Py<PyString>, Corrupt> {
    let text = messages::string(py, bytes).map_err(|_| Corrupt)?;
    Ok(text.unbind())
}

/// What was read now, with what is known of it from before.
fn merged(py: Python<'_>, part: Part, before: Option<Known>) -> Result<Known, Corrupt> {
    let (name, mut before) = match before {
        Some(known) => (known.name, known.items),
        None => (text(py, &part.entry.name)?, Vec::new()),
    };
    let item = |(key, read): (crate::state::node::Key, Option<Vec<u8>>)| {
        let at = before.iter().position(|item| *item.bytes == *key.key);
        let before = at.map(|at| before.swap_remove(at));
        let read = read.map_or(Held::Unread, |bytes| Held::Pickle(bytes.into()));
        Ok(match before {
            Some(item) => Item {
                held: if item.value == key.value && matches!(read, Held::Unread) {
                    item.held
                } else {
                    read
                },
                value: key.value,
                ..item
            },
            None => Item {
                text: match key.key.split_first() {
                    Some((&TEXT, bytes)) => Some(text(py, bytes)?),
                    Some((&PICKLE, _)) => None,
                    _ => return Err(Corrupt),
                },
                bytes: key.key.into(),
                value: key.value,
                held: read,
            },
        })
    };
    Ok(Known {
        items: part.keys.into_iter().map(item).collect::<Result<_, _>>()?,
        entry: part.entry,
        name,
    })
}
