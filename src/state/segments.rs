//! The owners of segments. The owner word of a segment holds the serial number of its owner and a tag for the
//! size of its blocks. A segment with the serial number 0 and a tag is abandoned: its owner has exited.

use super::heap::{self, Class, GRANULE, SEGMENT};
use super::layout::Header;
use super::memory::Memory;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// The tag of the segments after the first one of a block that takes several.
const CONTINUATION: u64 = 0xff;

fn tag(class: Class) -> u64 {
    u64::from(class.0) + 1
}

/// Return the size of the blocks from an owner word, if blocks of that size can be in this segment.
fn class(memory: Memory<'_>, segment: usize, word: u64) -> Option<Class> {
    let class = Class(u32::try_from((word & 0xff).checked_sub(1)?).ok()?);
    let can_be = class <= Class::MOST && segment + class.shape().0 <= memory.layout().segments;
    can_be.then_some(class)
}

/// Return the serial number of the owner (0 for none) and the size of the blocks. `None` for a segment
/// without blocks, or one that continues the block of another.
pub fn owner(memory: Memory<'_>, segment: usize) -> Option<(u64, Class)> {
    if segment >= memory.layout().segments {
        return None;
    }
    let word = memory.owner(segment).load(Acquire);
    Some((word >> 8, class(memory, segment, word)?))
}

/// Return the size of the block that begins at a granule, if one begins there.
pub fn block(memory: Memory<'_>, granule: usize) -> Option<Class> {
    let at = (granule * GRANULE).checked_sub(memory.layout().heap())?;
    let (_, class) = owner(memory, at / SEGMENT)?;
    (at % SEGMENT % class.words() == 0).then_some(class)
}

/// Return the first granule of each block in a segment.
pub fn blocks(
    memory: Memory<'_>,
    segment: usize,
    class: Class,
) -> impl Iterator<Item = usize> + Clone {
    let (_, count) = class.shape();
    let first = memory.granule(segment);
    (0..count).map(move |block| first + block * class.words() / GRANULE)
}

/// Take over abandoned segments with blocks of this size, at most `most`. Return the first segment of each,
/// in order. Their blocks may be referred to.
pub fn adopt(memory: Memory<'_>, class: Class, serial: u64, most: usize) -> Vec<usize> {
    let (abandoned, own) = (tag(class), serial << 8 | tag(class));
    let is_abandoned = |segment: &usize| memory.owner(*segment).load(Relaxed) == abandoned;
    let last = memory.layout().segments.saturating_sub(class.shape().0 - 1);
    let found = (0..used(memory).min(last)).filter(is_abandoned);
    let taken = found.filter(|segment| swap(memory, *segment, abandoned, own));
    taken.take(most).collect()
}

/// Take over every abandoned segment; return each with the size of its blocks, in order.
pub fn adopt_all(memory: Memory<'_>, serial: u64) -> Vec<(usize, Class)> {
    let mut taken = Vec::new();
    for segment in 0..used(memory) {
        let word = memory.owner(segment).load(Acquire);
        if let Some(class) = class(memory, segment, word)
            && word >> 8 == 0
            && swap(memory, segment, word, serial << 8 | word)
        {
            taken.push((segment, class));
        }
    }
    taken
}

/// Give back an own segment as abandoned, its blocks untouched.
pub fn return_abandoned(memory: Memory<'_>, segment: usize, class: Class, serial: u64) {
    swap(memory, segment, serial << 8 | tag(class), tag(class));
}

/// Claim a free segment, or as many as one block takes, and return the first one. The last segments are
/// `reserved` for changes that make space.
pub fn claim(memory: Memory<'_>, class: Class, serial: u64, reserved: bool) -> Option<usize> {
    let (count, _) = class.shape();
    let segments = memory.layout().segments;
    let limit = if reserved {
        segments
    } else {
        segments - reserve(segments)
    };
    let mut first = 0;
    while first + count <= limit {
        let last = first + count - 1;
        let is_taken = |segment: &usize| memory.owner(*segment).load(Relaxed) != 0;
        if let Some(in_the_way) = (first..=last).rev().find(is_taken) {
            first = in_the_way + 1;
            continue;
        }
        // Raise the top before the segments are taken, so that a search for abandoned ones includes them.
        let top = memory.header(Header::Top);
        top.fetch_max(last as u64 + 1, AcqRel);
        // From the last to the first: only the tag of a first segment makes a block.
        let tag = |segment| {
            if segment == first {
                tag(class)
            } else {
                CONTINUATION
            }
        };
        let take = |segment: &usize| swap(memory, *segment, 0, serial << 8 | tag(*segment));
        let taken = (first..=last).rev().take_while(take).count();
        if taken == count {
            return Some(first);
        }
        for segment in last + 1 - taken..=last {
            memory.owner(segment).store(0, Release);
        }
    }
    None
}

/// Free an own segment, or as many as one block takes, to whose blocks nothing refers.
pub fn release(memory: Memory<'_>, segment: usize, class: Class, serial: u64) {
    heap::erase(memory.words(), blocks(memory, segment, class));
    let rest = segment + 1..segment + class.shape().0;
    // The continuations of an adopted block still have the number of an owner that exited. No search would
    // find them there.
    for segment in rest.clone() {
        memory
            .owner(segment)
            .store(serial << 8 | CONTINUATION, Relaxed);
    }
    // From the first to the last, the reverse of `claim`.
    swap(memory, segment, serial << 8 | tag(class), 0);
    for segment in rest {
        swap(memory, segment, serial << 8 | CONTINUATION, 0);
    }
}

/// Make the segments of exited processes abandoned, so that any process can adopt them.
pub fn abandon(memory: Memory<'_>, has_exited: impl Fn(u64) -> bool) {
    let mut segment = 0;
    while segment < used(memory) {
        let word = memory.owner(segment).load(Acquire);
        let is_abandoned = word >> 8 != 0 && has_exited(word >> 8);
        if let Some(class) = class(memory, segment, word) {
            if is_abandoned {
                swap(memory, segment, word, tag(class));
            }
            segment += class.shape().0;
        } else {
            // The claim of this block was never completed.
            if is_abandoned {
                swap(memory, segment, word, 0);
            }
            segment += 1;
        }
    }
}

/// Return the number of segments that belong to a process, or did so and were not freed.
pub fn taken(memory: Memory<'_>) -> usize {
    let is_taken = |segment: &usize| memory.owner(*segment).load(Relaxed) != 0;
    (0..used(memory)).filter(is_taken).count()
}

/// Return the number of segments that were ever claimed.
fn used(memory: Memory<'_>) -> usize {
    let top = memory.header(Header::Top).load(Acquire);
    usize::try_from(top)
        .unwrap_or(usize::MAX)
        .min(memory.layout().segments)
}

/// Return the number of segments that are kept for changes that make space.
fn reserve(segments: usize) -> usize {
    (segments / 64).max(16).min(segments / 4)
}

fn swap(memory: Memory<'_>, segment: usize, from: u64, to: u64) -> bool {
    let word = memory.owner(segment);
    word.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
}
