//! One dirty bit per bucket, and whether the next change wakes the main process.
//!
//! A writer sets a dirty bit, then reads whether to wake. The main process arms the wakeup, then
//! reads the dirty bits. Both steps are separated by sequentially consistent fences, so at least one side
//! sees the other: no wakeup is lost.

use super::layout::Header;
use super::memory::Memory;
use super::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use super::sync::fence;

/// Return the number of words that hold the dirty bits.
pub fn words(memory: Memory<'_>) -> usize {
    memory.layout().dirty_bits().len()
}

/// Set the dirty bit of a bucket.
pub fn set(memory: Memory<'_>, bucket: usize) {
    let (word, bit) = (bucket / 64, 1 << (bucket % 64));
    memory.dirty_bits(word).fetch_or(bit, Release);
}

/// Clear the dirty bits of 64 buckets and return them. The changes that they announce are visible from then
/// on.
pub fn take(memory: Memory<'_>, word: usize) -> u64 {
    match memory.dirty_bits(word).load(Relaxed) {
        0 => 0,
        _ => memory.dirty_bits(word).swap(0, Acquire),
    }
}

/// Return whether to wake the main process. To be called after [`set`].
pub fn is_armed(memory: Memory<'_>) -> bool {
    fence(SeqCst);
    memory.header(Header::Armed).load(Relaxed) != 0
}

/// Have the next change wake the main process; return whether a dirty bit is set already.
pub fn arm(memory: Memory<'_>) -> bool {
    memory.header(Header::Armed).store(1, Relaxed);
    fence(SeqCst);
    (0..words(memory)).any(|word| memory.dirty_bits(word).load(Relaxed) != 0)
}

/// Have changes wake no more.
pub fn disarm(memory: Memory<'_>) {
    memory.header(Header::Armed).store(0, Relaxed);
}
