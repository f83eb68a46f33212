//! Which buckets have changed, and whether main wants to be woken by the next change.
//!
//! A writer marks, then looks whether it is to wake; main says that it is, then looks for marks. Whichever of the two
//! comes later in the one order of their fences sees what the other one has said.

use super::layout::Single;
use super::memory::Memory;
use super::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};
use super::sync::fence;

/// How many words of marks there are.
pub fn words(memory: Memory<'_>) -> usize {
    memory.layout().changed().len()
}

/// A bucket has changed.
pub fn set(memory: Memory<'_>, bucket: usize) {
    let (word, bit) = (bucket / 64, 1 << (bucket % 64));
    memory.changed(word).fetch_or(bit, Release);
}

/// Take the marks of 64 buckets. What they tell of can be seen from then on.
pub fn take(memory: Memory<'_>, word: usize) -> u64 {
    match memory.changed(word).load(Relaxed) {
        0 => 0,
        _ => memory.changed(word).swap(0, Acquire),
    }
}

/// Whether main is to be woken; asked after [`set`].
pub fn awaited(memory: Memory<'_>) -> bool {
    fence(SeqCst);
    memory.single(Single::Asleep).load(Relaxed) != 0
}

/// Be woken from now on; tell whether there are marks already.
pub fn arm(memory: Memory<'_>) -> bool {
    memory.single(Single::Asleep).store(1, Relaxed);
    fence(SeqCst);
    (0..words(memory)).any(|word| memory.changed(word).load(Relaxed) != 0)
}

/// Be woken no more.
pub fn disarm(memory: Memory<'_>) {
    memory.single(Single::Asleep).store(0, Relaxed);
}
