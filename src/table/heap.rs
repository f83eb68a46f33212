//! Blocks of shared memory: who may write to which, and how they are read while they may change.
//!
//! Only the process that owns a block's unit writes to it, and only while nothing refers to it. Its first word is
//! the reference by which it is known; a new one each time that it is filled. So whoever follows a reference sees by
//! that word, before and after it has copied the rest, whether what it has is what was referred to.

use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{AtomicU64, fence};

/// Words of 64 bits in what a reference counts in: the smallest block.
pub const GRANULE: usize = 8;
/// Words in a unit: what a process takes at once, to cut it into blocks of one size.
pub const UNIT: usize = if cfg!(loom) { 128 } else { 2048 };
/// The reference itself, and how many words follow.
const HEAD: usize = 2;
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

/// Fill a block of one's own to which nothing refers; `stamp` was never used before.
pub fn fill(words: &[AtomicU64], granule: usize, stamp: u64, content: &[u64]) -> Ref {
    let block = &words[granule * GRANULE..];
    let name = Ref::new(granule, stamp);
    // Whoever sees the new name sees as well that nothing refers to the old one; and whoever sees any word of
    // the new content sees the new name.
    block[0].store(name.0, Release);
    fence(Release);
    block[1].store(content.len() as u64, Relaxed);
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

/// Copy what is referred to; `None` if the block has been filled anew, or is being.
pub fn copy(words: &[AtomicU64], name: Ref) -> Option<Vec<u64>> {
    let block = words.get(name.granule() * GRANULE..)?;
    if block.first()?.load(Acquire) != name.0 {
        return None;
    }
    let size = usize::try_from(block[1].load(Relaxed)).ok()?;
    let content = block.get(HEAD..HEAD.checked_add(size)?)?;
    let content = content.iter().map(|word| word.load(Relaxed)).collect();
    fence(Acquire);
    (block[0].load(Acquire) == name.0).then_some(content)
}
