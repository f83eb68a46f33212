//! The place of each part in the memory.

use std::ops::Range;

use super::heap::{GRANULE, GRANULES, SEGMENT};

/// The first word of the memory, before the number of words of the sheets is added.
const MAGIC: u64 = u64::from_le_bytes(*b"sanicwk3");

/// The single words at the beginning.
#[derive(Debug, Clone, Copy)]
pub enum Header {
    /// [`Layout::magic`], once the memory is in use.
    Magic,
    /// The number of processes that have written so far.
    Processes,
    /// The number of entries created so far.
    Entries,
    /// Whether the next change wakes the main process.
    Armed,
    /// The first segment that was never claimed, as were all behind it.
    Top,
    /// The first process record that was never claimed, as were all behind it.
    Records,
    /// The number of stamps given out.
    Stamps,
    /// The number of words in blocks that a process other than their owner released.
    Freed,
}

/// Words in a process record: its identity, its numbers, and the questions to it.
pub const RECORD: usize = 15;
const HEADERS: usize = 8;

/// The size of each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The number of buckets, a multiple of 64. A bucket holds the entries whose names have the same hash.
    pub buckets: usize,
    /// The number of processes that can write at the same time.
    pub processes: usize,
    /// The number of words that the sheets take together.
    pub sheets: usize,
    /// The number of segments.
    pub segments: usize,
}

impl Layout {
    /// Lay out that many words: as many segments as fit beside all other parts.
    pub fn new(words: usize, buckets: usize, processes: usize, sheets: usize) -> Self {
        let mut layout = Self {
            buckets,
            processes,
            sheets,
            segments: 0,
        };
        // No reference can name a block beyond that.
        let words = words.min(GRANULE << GRANULES);
        layout.segments = words.saturating_sub(layout.heap()) / (SEGMENT + 1);
        while layout.heap() + layout.segments * SEGMENT > words && layout.segments > 0 {
            layout.segments -= 1;
        }
        layout
    }

    /// Return the first word of memory with this layout. Another release may have other sheets.
    pub fn magic(&self) -> u64 {
        MAGIC.wrapping_add(self.sheets as u64)
    }

    /// Return the references to the blocks of the buckets.
    pub fn roots(&self) -> Range<usize> {
        HEADERS..HEADERS + self.buckets
    }

    /// Return the dirty bits, one per bucket.
    pub fn dirty_bits(&self) -> Range<usize> {
        let start = self.roots().end;
        start..start + self.buckets.div_ceil(64)
    }

    /// Return the process records.
    pub fn records(&self) -> Range<usize> {
        let start = self.dirty_bits().end;
        start..start + self.processes * RECORD
    }

    /// Return the sheets.
    pub fn sheets(&self) -> Range<usize> {
        let start = self.records().end.next_multiple_of(GRANULE);
        start..start + self.sheets
    }

    /// Return the owner words, one per segment.
    pub fn owners(&self) -> Range<usize> {
        let start = self.sheets().end;
        start..start + self.segments
    }

    /// Return the start of the first segment. It is aligned, so that every block begins at a granule.
    pub fn heap(&self) -> usize {
        self.owners().end.next_multiple_of(SEGMENT)
    }

    /// Return the number of words of all parts together.
    pub fn words(&self) -> usize {
        self.heap() + self.segments * SEGMENT
    }
}
