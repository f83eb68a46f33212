//! Reads of entries, without a lock, while other processes write.

use std::collections::HashSet;

use super::heap::{self, Kind, Ref};
use super::memory::{Corrupt, Memory};
use super::node::{self, Entry, Key};
use super::segments;
use super::sync::Ordering::Acquire;

/// A bucket at one moment.
#[derive(Debug)]
pub struct Bucket {
    /// The reference to its block.
    pub root: Ref,
    /// Its entries, in any order.
    pub entries: Vec<Entry>,
}

/// An entry at one moment: the current one of its name, or a staged one.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// The entry.
    pub entry: Entry,
    /// Its keys in their order, and the bytes of the values that were asked for.
    pub keys: Vec<(Key, Option<Vec<u8>>)>,
}

impl Memory<'_> {
    /// Read a bucket and return the result of `look`. `look` returns `None` if it follows a reference to a
    /// block that was filled anew. The bucket has changed then, and is read again.
    pub fn read<T>(
        &self,
        bucket: usize,
        mut look: impl FnMut(&Bucket) -> Option<T>,
    ) -> Result<T, Corrupt> {
        let mut root = self.root(bucket).load(Acquire);
        loop {
            if let Some(found) = self.bucket(bucket, Ref(root)).and_then(|it| look(&it)) {
                return Ok(found);
            }
            let now = self.root(bucket).load(Acquire);
            if now == root {
                return Err(Corrupt);
            }
            root = now;
        }
    }

    /// Return all versions of the entry of a name, with the values that are `wanted`.
    pub fn versions(
        &self,
        name: &[u8],
        mut wanted: impl FnMut(&Key) -> bool,
    ) -> Result<Vec<Version>, Corrupt> {
        self.read(self.bucket_of(name), |bucket| {
            let of_the_name = bucket.entries.iter().filter(|entry| entry.name == name);
            of_the_name
                .map(|entry| self.version(entry, &mut wanted))
                .collect()
        })
    }

    /// Return an entry with the values that are `wanted`; `None` if the entry has changed.
    pub fn version(&self, entry: &Entry, wanted: &mut impl FnMut(&Key) -> bool) -> Option<Version> {
        let value = |key: Key| {
            let bytes = if wanted(&key) {
                Some(node::bytes(&self.copy(key.value, Kind::Value)?)?)
            } else {
                None
            };
            Some((key, bytes))
        };
        let keys = self.keys(entry)?.into_iter().map(value);
        Some(Version {
            entry: entry.clone(),
            keys: keys.collect::<Option<_>>()?,
        })
    }

    /// Return the blocks that are referred to, among those for which `asked` is true.
    ///
    /// An unreferenced block stays unreferenced: a writer that still holds a reference to it fails its
    /// compare-and-swap, because the bucket has changed. A bucket that cannot be read refers to no block.
    pub fn live(&self, mut asked: impl FnMut(usize) -> bool) -> HashSet<usize> {
        let mut live = HashSet::new();
        for bucket in 0..self.layout().buckets {
            if self.is_empty(bucket) {
                continue;
            }
            let found = self.read(bucket, |bucket| {
                let mut found = vec![bucket.root];
                for entry in &bucket.entries {
                    found.push(entry.keys);
                    found.extend(self.keys(entry)?.iter().map(|key| key.value));
                }
                let granules = found.into_iter().map(Ref::granule);
                Some(
                    granules
                        .filter(|granule| asked(*granule))
                        .collect::<Vec<_>>(),
                )
            });
            live.extend(found.unwrap_or_default());
        }
        live
    }

    fn bucket(&self, number: usize, root: Ref) -> Option<Bucket> {
        let entries = if root == Ref::NONE {
            Vec::new()
        } else {
            node::entries(&self.copy(root, Kind::Bucket(number))?)?
        };
        Some(Bucket { root, entries })
    }

    fn keys(&self, entry: &Entry) -> Option<Vec<Key>> {
        node::keys(&self.copy(entry.keys, Kind::Keys)?)
    }

    /// Copy a block; `None` if it was filled anew or is damaged.
    fn copy(&self, name: Ref, kind: Kind) -> Option<Vec<u64>> {
        let class = segments::block(*self, name.granule())?;
        heap::copy(self.words(), name, class, kind)
    }
}
