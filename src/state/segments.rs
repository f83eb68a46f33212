//! Whose the units are. One word a unit: the number of its owner, and how it is cut.

use super::heap::{self, Class, GRANULE, UNIT};
use super::layout::Single;
use super::memory::Memory;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// What marks the units behind the first of those that one block takes.
const BEHIND: u64 = 0xff;

fn mark(class: Class) -> u64 {
    u64::from(class.0) + 1
}

/// The size of the blocks of a unit of which this is the word, if there can be such blocks in this place.
fn class(memory: Memory<'_>, unit: usize, word: u64) -> Option<Class> {
    let class = Class(u32::try_from((word & 0xff).checked_sub(1)?).ok()?);
    let can_be = class <= Class::MOST && unit + class.shape().0 <= memory.layout().units;
    can_be.then_some(class)
}

/// The number of the owner of a unit (0: nobody), and the size of its blocks; of a block's first unit only.
pub fn owner(memory: Memory<'_>, unit: usize) -> Option<(u64, Class)> {
    if unit >= memory.layout().units {
        return None;
    }
    let word = memory.owner(unit).load(Acquire);
    Some((word >> 8, class(memory, unit, word)?))
}

/// The size of the block that begins at a granule, if there is one.
pub fn block(memory: Memory<'_>, granule: usize) -> Option<Class> {
    let at = (granule * GRANULE).checked_sub(memory.layout().heap())?;
    let (_, class) = owner(memory, at / UNIT)?;
    (at % UNIT % class.words() == 0).then_some(class)
}

/// The blocks in a unit, in granules.
pub fn blocks(
    memory: Memory<'_>,
    unit: usize,
    class: Class,
) -> impl Iterator<Item = usize> + Clone {
    let (_, count) = class.shape();
    let first = memory.granule(unit);
    (0..count).map(move |block| first + block * class.words() / GRANULE)
}

/// Take units of the dead, or as many as one block takes, that are cut like that: at most so many of their first
/// ones, in order. There may be references to their blocks.
pub fn inherit(memory: Memory<'_>, class: Class, serial: u64, most: usize) -> Vec<usize> {
    let (orphan, own) = (mark(class), serial << 8 | mark(class));
    let is_orphan = |unit: &usize| memory.owner(*unit).load(Relaxed) == orphan;
    let last = memory.layout().units.saturating_sub(class.shape().0 - 1);
    let orphans = (0..used(memory).min(last)).filter(is_orphan);
    let taken = orphans.filter(|unit| swap(memory, *unit, orphan, own));
    taken.take(most).collect()
}

/// Take a unit that is nobody's, or as many as one block takes; tell the first one. The last ones are for those who
/// are about to make room.
pub fn claim(memory: Memory<'_>, class: Class, serial: u64, reserved: bool) -> Option<usize> {
    let (count, _) = class.shape();
    let units = memory.layout().units;
    let limit = if reserved {
        units
    } else {
        units - reserve(units)
    };
    let mut first = 0;
    while first + count <= limit {
        let last = first + count - 1;
        let is_taken = |unit: &usize| memory.owner(*unit).load(Relaxed) != 0;
        if let Some(in_the_way) = (first..=last).rev().find(is_taken) {
            first = in_the_way + 1;
            continue;
        }
        // Before they are taken, so that whoever looks for those of the dead looks far enough.
        let top = memory.single(Single::Top);
        top.fetch_max(last as u64 + 1, AcqRel);
        // From the last to the first: only what has a first one is a block.
        let mark = |unit| if unit == first { mark(class) } else { BEHIND };
        let take = |unit: &usize| swap(memory, *unit, 0, serial << 8 | mark(*unit));
        let taken = (first..=last).rev().take_while(take).count();
        if taken == count {
            return Some(first);
        }
        for unit in last + 1 - taken..=last {
            memory.owner(unit).store(0, Release);
        }
    }
    None
}

/// Give back a unit, or as many as one block takes, of which nothing is referred to: it may be cut anew.
pub fn release(memory: Memory<'_>, unit: usize, class: Class, serial: u64) {
    heap::erase(memory.words(), blocks(memory, unit, class));
    let behind = unit + 1..unit + class.shape().0;
    // Those behind the first may still bear the number of a dead owner, where nobody would look for them.
    for unit in behind.clone() {
        memory.owner(unit).store(serial << 8 | BEHIND, Relaxed);
    }
    // From the first to the last: see above.
    swap(memory, unit, serial << 8 | mark(class), 0);
    for unit in behind {
        swap(memory, unit, serial << 8 | BEHIND, 0);
    }
}

/// Give back those of the dead of which nothing is referred to; tell whether there were any.
pub fn recycle(memory: Memory<'_>, serial: u64) -> bool {
    let mut taken = Vec::new();
    for unit in 0..used(memory) {
        let word = memory.owner(unit).load(Acquire);
        if let Some(class) = class(memory, unit, word)
            && word >> 8 == 0
            && swap(memory, unit, word, serial << 8 | word)
        {
            taken.push((unit, class));
        }
    }
    let is_taken = |granule| {
        taken
            .binary_search_by_key(&memory.unit(granule), |(unit, _)| *unit)
            .is_ok()
    };
    let live = memory.live(is_taken);
    let mut recycled = false;
    for (unit, class) in taken {
        if blocks(memory, unit, class).any(|block| live.contains(&block)) {
            swap(memory, unit, serial << 8 | mark(class), mark(class));
        } else {
            release(memory, unit, class, serial);
            recycled = true;
        }
    }
    recycled
}

/// How many units have ever been taken.
fn used(memory: Memory<'_>) -> usize {
    let top = memory.single(Single::Top).load(Acquire);
    usize::try_from(top)
        .unwrap_or(usize::MAX)
        .min(memory.layout().units)
}

/// How many units are kept for those who make room.
fn reserve(units: usize) -> usize {
    (units / 64).max(16).min(units / 4)
}

fn swap(memory: Memory<'_>, unit: usize, from: u64, to: u64) -> bool {
    let word = memory.owner(unit);
    word.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
}

/// Give the units of dead processes to whoever wants them.
pub fn disown(memory: Memory<'_>, is_dead: impl Fn(u64) -> bool) {
    let mut unit = 0;
    while unit < used(memory) {
        let word = memory.owner(unit).load(Acquire);
        let is_of_the_dead = word >> 8 != 0 && is_dead(word >> 8);
        if let Some(class) = class(memory, unit, word) {
            if is_of_the_dead {
                swap(memory, unit, word, mark(class));
            }
            unit += class.shape().0;
        } else {
            // The beginning of its block was never taken.
            if is_of_the_dead {
                swap(memory, unit, word, 0);
            }
            unit += 1;
        }
    }
}
