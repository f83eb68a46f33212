//! Blocks of shared memory: who may write to which, and how they are read while they may change.
//!
//! Only the process that owns a block's unit writes to it, and only while nothing refers to it. Its first word is
//! the reference by which it is known; a new one each time that it is filled. So whoever follows a reference sees by
//! that word, before and after it has copied the rest, whether what it has is what was referred to. Its second word
//! holds a checksum: what something else has written into a block is not taken for what belongs there.

use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{AtomicU64, fence};

/// Words of 64 bits in what a reference counts in: the smallest block.
pub const GRANULE: usize = 8;
/// Words in a unit: what a process takes at once, to cut it into blocks of one size.
pub const UNIT: usize = if cfg!(loom) { 128 } else { 2048 };
/// The reference itself; then how many words follow, and their checksum.
const HEAD: usize = 2;
/// Bits of the second word that say how many words follow; more than any memory has.
const LENGTH: u32 = 32;
/// Bits of a reference that say where the block is, so that 16 GiB can be referred to; the others are its stamp.
pub const GRANULES: u32 = 28;

/// Names one filling of one block: where it is, and a number that no other filling of all has, in 68 thousand
/// million; 0 is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref(pub u64);

impl Ref {
    /// No block.
    pub const NONE: Self = Self(0);

    /// Where the block begins, in granules.
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
    /// The largest one that a reference can lead to.
    pub const MOST: Self = Self(GRANULES);

    /// The smallest one with room for so many words.
    pub fn of(words: usize) -> Self {
        let granules = (words + HEAD).div_ceil(GRANULE).next_power_of_two();
        Self(granules.trailing_zeros())
    }

    /// Words in a block.
    pub fn words(self) -> usize {
        GRANULE << self.0
    }

    /// Units that a block takes, and blocks in as many units.
    pub fn shape(self) -> (usize, usize) {
        if self.words() < UNIT {
            (1, UNIT / self.words())
        } else {
            (self.words() / UNIT, 1)
        }
    }
}

/// What a block is for. It counts in the checksum, so that none is taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value.
    Value,
    /// The keys of an entry.
    Keys,
    /// The entries of the bucket of this number.
    Bucket(usize),
}

/// What the second word of a block holds: how many words follow, and a checksum.
fn measure(name: Ref, kind: Kind, content: &[u64]) -> u64 {
    let kind = match kind {
        Kind::Value => 0,
        Kind::Keys => 1,
        Kind::Bucket(number) => 2 + number as u64,
    };
    // Each step can be undone, so one word that differs never comes to the same. Four at once take half the time.
    let mix = |sum: u64, word: u64| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    let mut sums = [name.0, kind, 2, 3];
    for words in content.chunks(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = mix(*sum, *word);
        }
    }
    let size = content.len() as u64;
    sums.into_iter().fold(size, mix) >> LENGTH << LENGTH | size
}

/// Fill a block of one's own to which nothing refers; `stamp` was never used before.
pub fn fill(words: &[AtomicU64], granule: usize, stamp: u64, kind: Kind, content: &[u64]) -> Ref {
    let block = &words[granule * GRANULE..];
    let name = Ref::new(granule, stamp);
    // Whoever sees the new name sees as well that nothing refers to the old one; and whoever sees any word of
    // the new content sees the new name.
    block[0].store(name.0, Release);
    fence(Release);
    block[1].store(measure(name, kind, content), Relaxed);
    for (word, value) in block[HEAD..].iter().zip(content) {
        word.store(*value, Relaxed);
    }
    name
}

/// Make blocks of one's own, to which nothing refers, be none: so that they may be cut anew.
pub fn erase(words: &[AtomicU64], granules: impl Iterator<Item = usize>) {
    for granule in granules {
        words[granule * GRANULE].store(Ref::NONE.0, Relaxed);
    }
    // Whoever sees any word that is written there from now on sees as well that the block is none.
    fence(Release);
}

/// Copy what is referred to, from a block of this size; `None` if it has been filled anew, or is being, or does not
/// hold what was written.
pub fn copy(words: &[AtomicU64], name: Ref, class: Class, kind: Kind) -> Option<Vec<u64>> {
    let start = name.granule() * GRANULE;
    let block = words.get(start..start.checked_add(class.words())?)?;
    if block[0].load(Acquire) != name.0 {
        return None;
    }
    let measured = block[1].load(Relaxed);
    let size = usize::try_from(measured & ((1 << LENGTH) - 1)).ok()?;
    let content = block[HEAD..].get(..size)?.iter();
    let content: Vec<u64> = content.map(|word| word.load(Relaxed)).collect();
    fence(Acquire);
    let is_whole = block[0].load(Acquire) == name.0 && measure(name, kind, &content) == measured;
    is_whole.then_some(content)
}
