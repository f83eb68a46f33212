//! Returns the space of exited processes.
//!
//! [`reclaim`] frees their records and makes their segments abandoned. A writer adopts abandoned segments
//! when it needs blocks of their size. [`free_abandoned`] frees those that hold no entries, for blocks of any
//! size.

use std::collections::HashSet;

use super::memory::Memory;
use super::records::{self, Identity};
use super::segments;

/// Make the space of exited processes available to others. `has_exited` must be certain.
pub fn reclaim(memory: Memory<'_>, mut has_exited: impl FnMut(Identity) -> bool) {
    let claimed = records::claimed(memory);
    let exited: Vec<_> = claimed
        .filter(|(identity, ..)| has_exited(*identity))
        .collect();
    if exited.is_empty() {
        return;
    }
    let serials: HashSet<u64> = exited.iter().map(|(.., record)| record.serial).collect();
    segments::abandon(memory, |serial| serials.contains(&serial));
    for (_, word, record) in exited {
        record.release(memory, word);
    }
}

/// Free the abandoned segments to which nothing refers; return whether there were any.
pub fn free_abandoned(memory: Memory<'_>, serial: u64) -> bool {
    let adopted = segments::adopt_all(memory, serial);
    let is_adopted = |granule| {
        adopted
            .binary_search_by_key(&memory.segment(granule), |(segment, _)| *segment)
            .is_ok()
    };
    let live = memory.live(is_adopted);
    let mut freed = false;
    for (segment, class) in adopted {
        if segments::blocks(memory, segment, class).any(|block| live.contains(&block)) {
            segments::return_abandoned(memory, segment, class, serial);
        } else {
            segments::release(memory, segment, class, serial);
            freed = true;
        }
    }
    freed
}
