//! The memory as it is: what stands where, and how it is read.

use std::collections::HashSet;

use super::heap::{self, GRANULE, Kind, Ref, UNIT};
use super::layout::{Layout, MAGIC, PROCESS, Single};
use super::node::{self, Entry, Key};
use super::segments;
use super::sync::AtomicU64;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// The words of the memory, and where in them what is.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    words: &'a [AtomicU64],
    layout: Layout,
}

/// The memory does not hold what it has to: something else has written to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt;

/// A bucket at one moment.
#[derive(Debug)]
pub struct Bucket {
    /// Its block.
    pub root: Ref,
    /// Its entries, in any order.
    pub entries: Vec<Entry>,
}

/// An entry at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The entry.
    pub entry: Entry,
    /// Its keys in their order, and the bytes of the values that were asked for.
    pub keys: Vec<(Key, Option<Vec<u8>>)>,
}

impl<'a> Memory<'a> {
    /// Look at memory that is all zeros, or that has been looked at like this before.
    pub fn new(words: &'a [AtomicU64], layout: Layout) -> Result<Self, Corrupt> {
        let memory = Self { words, layout };
        if words.len() < layout.words() || layout.units == 0 {
            return Err(Corrupt);
        }
        let magic = memory.single(Single::Magic);
        let is_new =
            magic.load(Acquire) == 0 && !words[1..UNIT].iter().any(|word| word.load(Relaxed) != 0);
        if is_new {
            let _ = magic.compare_exchange(0, MAGIC, AcqRel, Acquire);
        }
        match magic.load(Acquire) {
            MAGIC => Ok(memory),
            _ => Err(Corrupt),
        }
    }

    /// Look at memory that [`new`](Self::new) has found to be right.
    pub fn again(words: &'a [AtomicU64], layout: Layout) -> Self {
        Self { words, layout }
    }

    /// Where in the memory what is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// All of it.
    pub fn words(&self) -> &'a [AtomicU64] {
        self.words
    }

    /// One of the words at the beginning.
    pub fn single(&self, single: Single) -> &'a AtomicU64 {
        &self.words[single as usize]
    }

    /// The reference to a bucket's block.
    pub fn root(&self, bucket: usize) -> &'a AtomicU64 {
        &self.words[self.layout.roots()][bucket]
    }

    /// Whether there is nothing in a bucket.
    pub fn is_empty(&self, bucket: usize) -> bool {
        self.root(bucket).load(Acquire) == Ref::NONE.0
    }

    /// 64 bits that say which buckets have changed.
    pub fn changed(&self, word: usize) -> &'a AtomicU64 {
        &self.words[self.layout.changed()][word]
    }

    /// One of the words of a process.
    pub fn slot(&self, number: usize, word: usize) -> &'a AtomicU64 {
        &self.words[self.layout.slots()][number * PROCESS + word]
    }

    /// Whose a unit is, and how it is cut.
    pub fn owner(&self, unit: usize) -> &'a AtomicU64 {
        &self.words[self.layout.owners()][unit]
    }

    /// Where a unit begins, in granules.
    pub fn granule(&self, unit: usize) -> usize {
        (self.layout.heap() + unit * UNIT) / GRANULE
    }

    /// In which unit a block is.
    pub fn unit(&self, granule: usize) -> usize {
        (granule * GRANULE).saturating_sub(self.layout.heap()) / UNIT
    }

    /// In which bucket an entry of that name is (FNV-1a).
    pub fn bucket_of(&self, name: &[u8]) -> usize {
        let hash = name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let bucket = (hash ^ (hash >> 32)) % self.layout.buckets as u64;
        usize::try_from(bucket).unwrap_or_default()
    }

    /// A bucket as it is now, and what `look` makes of it. That returns `None` where what is referred to is
    /// there no more; then the bucket has changed meanwhile, and is read again.
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

    /// What is referred to, as long as it is there.
    fn copy(&self, name: Ref, kind: Kind) -> Option<Vec<u64>> {
        let class = segments::block(*self, name.granule())?;
        heap::copy(self.words, name, class, kind)
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

    /// All that is kept under a name, with the values that are `wanted`.
    pub fn parts(
        &self,
        name: &[u8],
        mut wanted: impl FnMut(&Key) -> bool,
    ) -> Result<Vec<Part>, Corrupt> {
        self.read(self.bucket_of(name), |bucket| {
            let of_the_name = bucket.entries.iter().filter(|entry| entry.name == name);
            of_the_name
                .map(|entry| self.part(entry, &mut wanted))
                .collect()
        })
    }

    /// An entry with the values that are `wanted`, as long as it is there.
    pub fn part(&self, entry: &Entry, wanted: &mut impl FnMut(&Key) -> bool) -> Option<Part> {
        let value = |key: Key| {
            let bytes = if wanted(&key) {
                Some(node::bytes(&self.copy(key.value, Kind::Value)?)?)
            } else {
                None
            };
            Some((key, bytes))
        };
        let keys = self.keys(entry)?.into_iter().map(value);
        Some(Part {
            entry: entry.clone(),
            keys: keys.collect::<Option<_>>()?,
        })
    }

    /// The blocks that are referred to, of those that are asked about. What is not referred to now will never
    /// be again: whoever has read a reference to it cannot publish it, as its bucket has changed since. A bucket
    /// that cannot be read refers to nothing.
    pub fn live(&self, mut asked: impl FnMut(usize) -> bool) -> HashSet<usize> {
        let mut live = HashSet::new();
        for bucket in 0..self.layout.buckets {
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
}
