//! Blocks of shared memory: how they are filled, and how they are read while they may change.
//!
//! Only the process that owns the segment of a block writes to the block, and only while nothing refers to
//! it. The first word of a block is the reference by which it is known, and each filling has a new one. A
//! reader compares that word before and after it copies the rest, and so detects a block that was filled
//! anew. The second word holds a checksum, which detects words that another program wrote into the block.

use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{AtomicU64, fence};

/// Words of 64 bits in a granule: the unit of references, and the smallest block.
pub const GRANULE: usize = 8;
/// Words in a segment: the space that a process claims at once, to divide it into blocks of one size.
pub const SEGMENT: usize = if cfg!(loom) { 128 } else { 2048 };
/// Words before the content: the reference, and the check word.
const HEAD: usize = 2;
/// Bits of the check word that hold the number of words of content. No memory is that large.
const LENGTH: u32 = 32;
/// Bits of a reference that hold the place of the block, enough for 16 GiB. The other bits are its stamp.
pub const GRANULES: u32 = 28;

/// The name of one filling of one block: its place, and a stamp that is given to one filling in 68 billion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref(pub u64);

impl Ref {
    /// The reference to no block.
    pub const NONE: Self = Self(0);

    /// Return the first granule of the block.
    pub fn granule(self) -> usize {
        (self.0 & ((1 << GRANULES) - 1)) as usize
    }

    fn new(granule: usize, stamp: u64) -> Self {
        Self(stamp << GRANULES | granule as u64)
    }
}

/// A size of blocks: `GRANULE << class` words each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(pub u32);

impl Class {
    /// The largest size that a reference can lead to.
    pub const MOST: Self = Self(GRANULES);

    /// Return the smallest class with space for that many words of content.
    pub fn of(words: usize) -> Self {
        let granules = (words + HEAD).div_ceil(GRANULE).next_power_of_two();
        Self(granules.trailing_zeros())
    }

    /// Return the number of words in a block.
    pub fn words(self) -> usize {
        GRANULE << self.0
    }

    /// Return the number of segments that are claimed together, and the number of blocks in them.
    pub fn shape(self) -> (usize, usize) {
        if self.words() < SEGMENT {
            (1, SEGMENT / self.words())
        } else {
            (self.words() / SEGMENT, 1)
        }
    }
}

/// The purpose of a block. It is part of the checksum, so that no block is taken for one of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value.
    Value,
    /// The keys of an entry.
    Keys,
    /// The entries of the bucket of this number.
    Bucket(usize),
}

impl Kind {
    fn word(self) -> u64 {
        match self {
            Self::Value => 0,
            Self::Keys => 1,
            Self::Bucket(number) => 2 + number as u64,
        }
    }
}

/// Return a check word: the number of words of content, and a checksum of them and of the name that they are
/// stored under.
pub fn check_word(name: [u64; 2], content: &[u64]) -> u64 {
    // Each step is invertible, so one different word always changes the sum. Four sums in parallel take half
    // the time of one.
    let mix = |sum: u64, word: u64| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    let mut sums = [name[0], name[1], 2, 3];
    for words in content.chunks(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, *word);
        }
    }
    let size = content.len() as u64;
    sums.into_iter().fold(size, mix) >> LENGTH << LENGTH | size
}

/// Return the number of words of content from a check word.
pub fn checked_size(check: u64) -> Option<usize> {
    usize::try_from(check & ((1 << LENGTH) - 1)).ok()
}

/// Fill an own block to which nothing refers. `stamp` must not have been used before.
pub fn fill(words: &[AtomicU64], granule: usize, stamp: u64, kind: Kind, content: &[u64]) -> Ref {
    let block = &words[granule * GRANULE..];
    let name = Ref::new(granule, stamp);
    // A reader that sees the new name also sees that nothing refers to the old one. A reader that sees any
    // word of the new content also sees the new name.
    block[0].store(name.0, Release);
    fence(Release);
    block[1].store(check_word([name.0, kind.word()], content), Relaxed);
    for (word, value) in block[HEAD..].iter().zip(content) {
        word.store(*value, Relaxed);
    }
    name
}

/// Erase the names of own blocks to which nothing refers, so that their space may be divided anew.
pub fn erase(words: &[AtomicU64], granules: impl Iterator<Item = usize>) {
    for granule in granules {
        words[granule * GRANULE].store(Ref::NONE.0, Relaxed);
    }
    // A reader that sees any word written there later also sees that the name is erased.
    fence(Release);
}

/// Copy the content of a block of this size. Return `None` if the block was filled anew, is being filled, or
/// is damaged.
pub fn copy(words: &[AtomicU64], name: Ref, class: Class, kind: Kind) -> Option<Vec<u64>> {
    let start = name.granule() * GRANULE;
    let block = words.get(start..start.checked_add(class.words())?)?;
    if block[0].load(Acquire) != name.0 {
        return None;
    }
    let check = block[1].load(Relaxed);
    let content = block[HEAD..].get(..checked_size(check)?)?.iter();
    let content: Vec<u64> = content.map(|word| word.load(Relaxed)).collect();
    fence(Acquire);
    let is_same = block[0].load(Acquire) == name.0;
    let is_whole = is_same && check_word([name.0, kind.word()], &content) == check;
    is_whole.then_some(content)
}
