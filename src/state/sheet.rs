//! Sheets: fixed tables of fixed-size cells, beside the entries. One process writes them, any process reads.
//!
//! The first word of a cell counts its writes, and is odd during a write. A reader compares it before and
//! after it copies the rest, so it detects a cell that changed meanwhile. A writer that is killed leaves it
//! odd, so the cell cannot be read until it is written again. The second word holds a checksum, which detects
//! words that another program wrote into the cell.

use super::heap::{self, GRANULE};
use super::memory::Memory;
use super::node;
use super::sync::Ordering::{Acquire, Relaxed, Release};
use super::sync::{AtomicU64, fence};

/// Words before the content: the count of writes, and the check word.
const HEAD: usize = 2;
/// The number of times that a reader copies a cell that is being written.
const ATTEMPTS: usize = if cfg!(loom) { 1 } else { 64 };

/// The reason why a cell was not written.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The sheet has no such cell.
    NoCell,
    /// The data are longer than the cell.
    TooLong,
}

/// The place of a sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sheet {
    /// The number of cells.
    pub cells: usize,
    /// The largest size of the data in a cell, in bytes.
    pub bytes: usize,
    /// The place of the word with the number of cells in use: all cells behind them were never written.
    used: usize,
    /// The place of the first cell.
    start: usize,
}

/// A copy of the words of a cell.
#[derive(Debug)]
pub(super) struct Copy {
    writes: u64,
    check: u64,
    pub(super) content: Vec<u64>,
}

/// Lay out sheets with these numbers of cells and of bytes per cell. Return them, and the words that they
/// take together.
pub fn lay_out(sizes: impl ExactSizeIterator<Item = (u32, u32)>) -> (Vec<Sheet>, usize) {
    let mut end = sizes.len().next_multiple_of(GRANULE);
    let place = |(used, (cells, bytes)): (usize, (u32, u32))| {
        let sheet = Sheet {
            cells: cells as usize,
            bytes: bytes as usize,
            used,
            start: end,
        };
        end += sheet.cells * sheet.words();
        sheet
    };
    let sheets = sizes.enumerate().map(place).collect();
    (sheets, end)
}

impl Sheet {
    /// Write a cell. For one process, and one thread of it, at a time.
    pub fn write(self, memory: Memory<'_>, index: usize, data: &[u8]) -> Result<(), Unfit> {
        if index >= self.cells {
            return Err(Unfit::NoCell);
        }
        if data.len() > self.bytes {
            return Err(Unfit::TooLong);
        }
        memory.sheets()[self.used].fetch_max(index as u64 + 1, Relaxed);
        let cell = self.cell(memory, index);
        let content = node::value(data);
        // The write of a process that was killed has left an odd count.
        let writing = cell[0].load(Relaxed).wrapping_add(1) | 1;
        // 0 would stand for a cell that was never written. Only damage leads to it.
        let written = writing.wrapping_add(1).max(2);
        cell[0].store(writing, Relaxed);
        // A reader that sees any word of the new content also sees the odd count.
        fence(Release);
        cell[1].store(self.check_word(index, written, &content), Relaxed);
        for (word, value) in cell[HEAD..].iter().zip(&content) {
            word.store(*value, Relaxed);
        }
        cell[0].store(written, Release);
        Ok(())
    }

    /// Return the data of all cells. `None` stands for a cell that was never written, is being written, or is
    /// damaged.
    pub fn read(self, memory: Memory<'_>) -> Vec<Option<Vec<u8>>> {
        // A read of memory that was never written would take that memory.
        let used = memory.sheets()[self.used].load(Relaxed);
        let used = usize::try_from(used).unwrap_or(usize::MAX).min(self.cells);
        let mut cells: Vec<_> = (0..used).map(|index| self.data(memory, index)).collect();
        cells.resize(self.cells, None);
        cells
    }

    fn data(self, memory: Memory<'_>, index: usize) -> Option<Vec<u8>> {
        let copy = self.copy(memory, index)?;
        let check = self.check_word(index, copy.writes, &copy.content);
        node::bytes(&copy.content).filter(|_| check == copy.check)
    }

    /// Copy a cell that no process writes meanwhile.
    pub(super) fn copy(self, memory: Memory<'_>, index: usize) -> Option<Copy> {
        let cell = self.cell(memory, index);
        for _ in 0..ATTEMPTS {
            let writes = cell[0].load(Acquire);
            if writes == 0 {
                return None;
            }
            if writes % 2 == 0 {
                let check = cell[1].load(Relaxed);
                let content = cell[HEAD..].get(..heap::checked_size(check)?)?;
                let content = content.iter().map(|word| word.load(Relaxed)).collect();
                // If a word is from a later write, the count is, too.
                fence(Acquire);
                if cell[0].load(Relaxed) == writes {
                    return Some(Copy {
                        writes,
                        check,
                        content,
                    });
                }
            }
            std::hint::spin_loop();
        }
        None
    }

    fn check_word(self, index: usize, written: u64, content: &[u64]) -> u64 {
        heap::check_word([written, (self.start + index) as u64], content)
    }

    fn cell(self, memory: Memory<'_>, index: usize) -> &[AtomicU64] {
        let start = self.start + index * self.words();
        &memory.sheets()[start..start + self.words()]
    }

    /// Return the number of words in a cell.
    fn words(self) -> usize {
        (HEAD + node::words(self.bytes)).next_multiple_of(GRANULE)
    }
}
