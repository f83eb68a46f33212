//! Access to the words of the memory by their purpose.

use super::heap::{GRANULE, Ref, SEGMENT};
use super::layout::{Header, Layout, RECORD};
use super::sync::AtomicU64;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// The words of the memory, and the place of each part in them.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a> {
    words: &'a [AtomicU64],
    layout: Layout,
}

/// The error of damaged memory: another program has written to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupt;

impl<'a> Memory<'a> {
    /// Use memory that is all zeros, or that was used as a table before.
    pub fn new(words: &'a [AtomicU64], layout: Layout) -> Result<Self, Corrupt> {
        let memory = Self { words, layout };
        if words.len() < layout.words() || layout.segments == 0 {
            return Err(Corrupt);
        }
        let magic = memory.header(Header::Magic);
        let is_zero = |word: &AtomicU64| word.load(Relaxed) == 0;
        let is_new = magic.load(Acquire) == 0 && words[1..SEGMENT].iter().all(is_zero);
        if is_new {
            let _ = magic.compare_exchange(0, layout.magic(), AcqRel, Acquire);
        }
        let is_right = magic.load(Acquire) == layout.magic();
        is_right.then_some(memory).ok_or(Corrupt)
    }

    /// Use memory that [`new`](Self::new) has accepted before.
    pub fn reopen(words: &'a [AtomicU64], layout: Layout) -> Self {
        Self { words, layout }
    }

    /// Return the place of each part.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Return all words.
    pub fn words(&self) -> &'a [AtomicU64] {
        self.words
    }

    /// Return one of the words at the beginning.
    pub fn header(&self, header: Header) -> &'a AtomicU64 {
        &self.words[header as usize]
    }

    /// Return the reference to the block of a bucket.
    pub fn root(&self, bucket: usize) -> &'a AtomicU64 {
        &self.words[self.layout.roots()][bucket]
    }

    /// Return whether a bucket has no entries.
    pub fn is_empty(&self, bucket: usize) -> bool {
        self.root(bucket).load(Acquire) == Ref::NONE.0
    }

    /// Return the dirty bits of 64 buckets.
    pub fn dirty_bits(&self, word: usize) -> &'a AtomicU64 {
        &self.words[self.layout.dirty_bits()][word]
    }

    /// Return one word of a process record.
    pub fn record(&self, number: usize, word: usize) -> &'a AtomicU64 {
        &self.words[self.layout.records()][number * RECORD + word]
    }

    /// Return the words of the sheets.
    pub fn sheets(&self) -> &'a [AtomicU64] {
        &self.words[self.layout.sheets()]
    }

    /// Return the owner word of a segment.
    pub fn owner(&self, segment: usize) -> &'a AtomicU64 {
        &self.words[self.layout.owners()][segment]
    }

    /// Return the first granule of a segment.
    pub fn granule(&self, segment: usize) -> usize {
        (self.layout.heap() + segment * SEGMENT) / GRANULE
    }

    /// Return the segment of a granule.
    pub fn segment(&self, granule: usize) -> usize {
        (granule * GRANULE).saturating_sub(self.layout.heap()) / SEGMENT
    }

    /// Return the bucket of a name, by its FNV-1a hash.
    pub fn bucket_of(&self, name: &[u8]) -> usize {
        let hash = name.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let bucket = (hash ^ (hash >> 32)) % self.layout.buckets as u64;
        usize::try_from(bucket).unwrap_or_default()
    }
}
