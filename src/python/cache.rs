//! A cache of entries, so that an unchanged value is neither read nor unpickled again.
//!
//! The cache runs no Python code, which could call back into it. It keeps a value as bytes. The table
//! unpickles the bytes and passes the object to [`Cache::remember`].

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::keys::{TEXT, VALUE};
use super::messages;
use crate::state::heap::Ref;
use crate::state::memory::{Corrupt, Memory};
use crate::state::node::{Entry, Key};
use crate::state::read::Version;

/// A value in the cache.
#[derive(Debug)]
pub enum CachedValue {
    /// It was never asked for.
    Unread,
    /// Its encoded bytes.
    Encoded(Arc<[u8]>),
    /// An immutable object.
    Object(Py<PyAny>),
}

/// A key of an entry, with its value.
#[derive(Debug)]
pub struct CachedKey {
    /// The encoded key.
    pub bytes: Arc<[u8]>,
    /// The key itself, if it is a `str`.
    pub text: Option<Py<PyString>>,
    /// The block of the value.
    pub block: Ref,
    /// The value.
    pub value: CachedValue,
}

impl CachedKey {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            bytes: self.bytes.clone(),
            text: self.text.as_ref().map(|text| text.clone_ref(py)),
            block: self.block,
            value: match &self.value {
                CachedValue::Unread => CachedValue::Unread,
                CachedValue::Encoded(bytes) => CachedValue::Encoded(bytes.clone()),
                CachedValue::Object(object) => CachedValue::Object(object.clone_ref(py)),
            },
        }
    }
}

/// A version of an entry, current or staged, at one moment.
#[derive(Debug)]
pub struct CachedEntry {
    /// The version.
    pub entry: Entry,
    /// Its name.
    pub name: Py<PyString>,
    /// Its keys, in their order.
    pub keys: Vec<CachedKey>,
}

impl CachedEntry {
    /// Return a copy, of the same moment.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            entry: self.entry.clone(),
            name: self.name.clone_ref(py),
            keys: self.keys.iter().map(|key| key.clone_ref(py)).collect(),
        }
    }

    /// Return a key with its value.
    pub fn find(&self, key: &[u8]) -> Option<&CachedKey> {
        self.keys.iter().find(|one| *one.bytes == *key)
    }

    fn is(&self, entry: &Entry) -> bool {
        self.entry.staged_by == entry.staged_by && self.entry.name == entry.name
    }

    fn has_read(&self, block: Ref) -> bool {
        let read =
            |key: &CachedKey| key.block == block && !matches!(key.value, CachedValue::Unread);
        self.keys.iter().any(read)
    }
}

/// The entries of one bucket.
#[derive(Debug)]
struct Bucket {
    root: Ref,
    entries: Vec<CachedEntry>,
}

impl Bucket {
    fn empty() -> Self {
        Self {
            root: Ref::NONE,
            entries: Vec::new(),
        }
    }
}

/// The cached buckets of a table.
#[derive(Debug, Default)]
pub struct Cache {
    buckets: Vec<Bucket>,
}

impl Cache {
    /// Return the present entries of a bucket, with at least the values that are `wanted`, by entry and key.
    pub fn read(
        &mut self,
        py: Python<'_>,
        memory: Memory<'_>,
        number: usize,
        wanted: &dyn Fn(&Entry, &[u8]) -> bool,
    ) -> Result<&[CachedEntry], Corrupt> {
        if self.buckets.is_empty() {
            let empty = |_| Bucket::empty();
            self.buckets = (0..memory.layout().buckets).map(empty).collect();
        }
        let cached = &mut self.buckets[number];
        let unread = |one: &CachedEntry| {
            let lacks = |key: &CachedKey| {
                matches!(key.value, CachedValue::Unread) && wanted(&one.entry, &key.bytes)
            };
            one.keys.iter().any(lacks)
        };
        let is_same = memory.root(number).load(Acquire) == cached.root.0;
        if !is_same || cached.entries.iter().any(unread) {
            let (root, versions) = memory.read(number, |now| {
                let version = |entry: &Entry| {
                    let before = cached.entries.iter().find(|one| one.is(entry));
                    memory.version(entry, &mut |key| {
                        wanted(entry, &key.key)
                            && !before.is_some_and(|one| one.has_read(key.value))
                    })
                };
                let versions: Option<Vec<_>> = now.entries.iter().map(version).collect();
                Some((now.root, versions?))
            })?;
            let mut before = std::mem::take(&mut cached.entries);
            let entries = versions.into_iter().map(|version| {
                let at = before.iter().position(|one| one.is(&version.entry));
                merged(py, version, at.map(|at| before.swap_remove(at)))
            });
            match entries.collect() {
                Ok(entries) => *cached = Bucket { root, entries },
                Err(corrupt) => {
                    cached.root = Ref::NONE;
                    return Err(corrupt);
                }
            }
        }
        Ok(&cached.entries)
    }

    /// Drop the entries of a bucket that is empty now.
    pub fn forget(&mut self, number: usize) {
        if let Some(cached) = self.buckets.get_mut(number)
            && cached.root != Ref::NONE
        {
            *cached = Bucket::empty();
        }
    }

    /// Keep the object of a value that was decoded. The object must be immutable.
    pub fn remember(&mut self, number: usize, block: Ref, object: Py<PyAny>) {
        let bucket = self.buckets.get_mut(number);
        let entries = bucket.map(|bucket| &mut bucket.entries);
        let mut keys = entries
            .into_iter()
            .flatten()
            .flat_map(|entry| &mut entry.keys);
        if let Some(key) = keys.find(|key| key.block == block) {
            key.value = CachedValue::Object(object);
        }
    }
}

/// Decode a name, or a key that is a `str`.
fn text(py: Python<'_>, bytes: &[u8]) -> Result<Py<PyString>, Corrupt> {
    let text = messages::string(py, bytes).map_err(|_| Corrupt)?;
    Ok(text.unbind())
}

/// Merge a version that was read with the cached one.
fn merged(
    py: Python<'_>,
    version: Version,
    before: Option<CachedEntry>,
) -> Result<CachedEntry, Corrupt> {
    let (name, mut before) = match before {
        Some(cached) => (cached.name, cached.keys),
        None => (text(py, &version.entry.name)?, Vec::new()),
    };
    let merge = |(key, read): (Key, Option<Vec<u8>>)| {
        let at = before.iter().position(|one| *one.bytes == *key.key);
        let before = at.map(|at| before.swap_remove(at));
        let read = read.map_or(CachedValue::Unread, |bytes| {
            CachedValue::Encoded(bytes.into())
        });
        Ok(match before {
            Some(cached) => CachedKey {
                value: if cached.block == key.value && matches!(read, CachedValue::Unread) {
                    cached.value
                } else {
                    read
                },
                block: key.value,
                ..cached
            },
            None => CachedKey {
                text: match key.key.split_first() {
                    Some((&TEXT, bytes)) => Some(text(py, bytes)?),
                    Some((&VALUE, _)) => None,
                    _ => return Err(Corrupt),
                },
                bytes: key.key.into(),
                block: key.value,
                value: read,
            },
        })
    };
    Ok(CachedEntry {
        keys: version
            .keys
            .into_iter()
            .map(merge)
            .collect::<Result<_, _>>()?,
        entry: version.entry,
        name,
    })
}
