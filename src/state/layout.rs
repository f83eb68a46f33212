//! Where in the memory what is.

use std::ops::Range;

use super::heap::{GRANULE, GRANULES, UNIT};

/// What the memory begins with.
pub const MAGIC: u64 = u64::from_le_bytes(*b"sanicwk1");

/// Single words at the beginning.
#[derive(Debug, Clone, Copy)]
pub enum Single {
    /// Tells that this is such a memory.
    Magic,
    /// How many processes have written so far.
    Processes,
    /// How many entries there have been so far.
    Entries,
    /// Whether main wants to be woken by a change.
    Asleep,
    /// Units from here on were never taken.
    Top,
    /// Places of processes from here on were never taken.
    Slots,
    /// How many stamps have been given out.
    Stamps,
    /// How many words of blocks were given up by others than those who own them.
    Freed,
}

/// Words of a process: who it is, and what it counts.
pub const PROCESS: usize = 8;
const SINGLES: usize = 8;

/// How large each part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Chains of entries whose names have the same hash; a multiple of 64.
    pub buckets: usize,
    /// How many processes can write at the same time.
    pub processes: usize,
    /// How many units there are.
    pub units: usize,
}

impl Layout {
    /// As many units as fit in so many words, beside all else.
    pub fn new(words: usize, buckets: usize, processes: usize) -> Self {
        let mut layout = Self {
            buckets,
            processes,
            units: 0,
        };
        // More than that no reference can name.
        let words = words.min(GRANULE << GRANULES);
        layout.units = words.saturating_sub(layout.heap()) / (UNIT + 1);
        while layout.heap() + layout.units * UNIT > words && layout.units > 0 {
            layout.units -= 1;
        }
        layout
    }

    /// Where the blocks that the buckets refer to.
    pub fn roots(&self) -> Range<usize> {
        SINGLES..SINGLES + self.buckets
    }

    /// A bit for each bucket: whether it has changed.
    pub fn changed(&self) -> Range<usize> {
        let start = self.roots().end;
        start..start + self.buckets.div_ceil(64)
    }

    /// The processes.
    pub fn slots(&self) -> Range<usize> {
        let start = self.changed().end.next_multiple_of(PROCESS);
        start..start + self.processes * PROCESS
    }

    /// A word for each unit: whose it is, and how it is cut.
    pub fn owners(&self) -> Range<usize> {
        let start = self.slots().end;
        start..start + self.units
    }

    /// Where the first unit begins: at the same place in every block's granule.
    pub fn heap(&self) -> usize {
        self.owners().end.next_multiple_of(UNIT)
    }

    /// How many words all of it takes.
    pub fn words(&self) -> usize {
        self.heap() + self.units * UNIT
    }
}
