//! The processes that write: who they are, and numbers of theirs that are written without further ado.

use std::collections::HashSet;

use super::layout::{PROCESS, Single};
use super::memory::Memory;
use super::segments;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// What a process keeps count of; it alone writes it, and those that it has forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// When it last gave a sign of life, in nanoseconds of the clock that only goes forward.
    Beat = 2,
    /// The same in nanoseconds since 1970.
    BeatAt,
    /// How many requests it has served.
    Requests,
    /// What may be done with it, a bit each.
    Flags,
}

/// Who a process is: its pid, and when it began, so that another one with the same pid is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its pid.
    pub pid: u32,
    /// When it began, in ticks of the kernel, as far as they fit.
    pub began: u32,
}

impl Identity {
    /// One that does not say when it began.
    pub fn undated(pid: u32) -> Self {
        Self { pid, began: 0 }
    }

    /// As one word, which is not 0 if the pid is not.
    pub fn word(self) -> u64 {
        (u64::from(self.began) << 32 | u64::from(self.pid)) & !UNREADY
    }

    /// Whether the two may be the same process, as far as is known.
    pub fn may_be(self, other: Self) -> bool {
        self.pid == other.pid && (self.began == other.began || self.began == 0 || other.began == 0)
    }

    /// The process of a word; nobody of 0.
    pub fn of(word: u64) -> Option<Self> {
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default();
        (word != 0).then(|| Self {
            pid: half(word),
            began: half((word & !UNREADY) >> 32),
        })
    }
}

/// A place among the processes.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Which place it is.
    pub number: usize,
    /// The number of the process, by which it owns; never given twice.
    pub serial: u64,
}

impl Slot {
    /// Take a place; `None` if there is none left.
    pub fn take(memory: Memory<'_>, identity: Identity) -> Option<Self> {
        let unready = identity.word() | UNREADY;
        let free = |number: &usize| {
            let who = memory.slot(*number, WHO);
            who.compare_exchange(0, unready, AcqRel, Relaxed).is_ok()
        };
        let number = (0..memory.layout().processes).find(free)?;
        let top = memory.single(Single::Slots);
        top.fetch_max(number as u64 + 1, AcqRel);
        let before = memory.single(Single::Processes).fetch_add(1, Relaxed);
        // The word of a unit has room for so many.
        let serial = before % (1 << 55) + 1;
        memory.slot(number, SERIAL).store(serial, Relaxed);
        for word in SERIAL + 1..PROCESS {
            memory.slot(number, word).store(0, Relaxed);
        }
        memory.slot(number, WHO).store(identity.word(), Release);
        Some(Self { number, serial })
    }

    /// Whether it is, or may be, that of this process.
    pub fn is_of(self, memory: Memory<'_>, who: Identity) -> bool {
        let word = memory.slot(self.number, WHO).load(Acquire);
        Identity::of(word).is_some_and(|its| its.may_be(who))
    }

    /// Write one of one's numbers.
    pub fn set(self, memory: Memory<'_>, field: Field, value: u64) {
        memory
            .slot(self.number, field as usize)
            .store(value, Relaxed);
    }

    /// Add to one of one's numbers.
    pub fn add(self, memory: Memory<'_>, field: Field, more: u64) {
        memory
            .slot(self.number, field as usize)
            .fetch_add(more, Relaxed);
    }

    /// Set and clear bits of one of one's numbers.
    pub fn mark(self, memory: Memory<'_>, field: Field, on: u64, off: u64) {
        let word = memory.slot(self.number, field as usize);
        word.fetch_or(on, Relaxed);
        word.fetch_and(!off, Relaxed);
    }

    /// Read one of one's numbers.
    pub fn get(self, memory: Memory<'_>, field: Field) -> u64 {
        memory.slot(self.number, field as usize).load(Relaxed)
    }
}

const WHO: usize = 0;
const SERIAL: usize = 1;
/// Somebody takes the place and has not written all of it yet.
const UNREADY: u64 = 1 << 63;

/// The place of a process; of two that had the same pid, that of the last one, and of several of one, the first.
pub fn of(memory: Memory<'_>, pid: u32) -> Option<Slot> {
    let of_the_pid = || all(memory).filter(|(who, _)| who.pid == pid);
    let (last, _) = of_the_pid().max_by_key(|(_, slot)| slot.serial)?;
    let mut its = of_the_pid().filter(|(who, _)| *who == last);
    its.next().map(|(_, slot)| slot)
}

/// Who writes, and where; not those who are about to begin.
pub fn all(memory: Memory<'_>) -> impl Iterator<Item = (Identity, Slot)> {
    let ready = taken(memory).filter(|(_, word, _)| word & UNREADY == 0);
    ready.map(|(who, _, slot)| (who, slot))
}

/// Give what the dead had to whoever wants it. Only for processes of which it is certain.
pub fn bury(memory: Memory<'_>, mut is_dead: impl FnMut(Identity) -> bool) {
    let dead: Vec<_> = taken(memory).filter(|(who, ..)| is_dead(*who)).collect();
    if dead.is_empty() {
        return;
    }
    let serials: HashSet<u64> = dead.iter().map(|(.., slot)| slot.serial).collect();
    segments::disown(memory, |serial| serials.contains(&serial));
    for (_, word, slot) in dead {
        // Whoever takes the place writes all of it anew.
        let place = memory.slot(slot.number, WHO);
        let _ = place.compare_exchange(word, 0, Release, Relaxed);
    }
}

fn taken(memory: Memory<'_>) -> impl Iterator<Item = (Identity, u64, Slot)> {
    let top = memory.single(Single::Slots).load(Acquire);
    let top = usize::try_from(top).unwrap_or(usize::MAX);
    (0..top.min(memory.layout().processes)).filter_map(move |number| {
        let word = memory.slot(number, WHO).load(Acquire);
        let serial = memory.slot(number, SERIAL).load(Acquire);
        // No two processes are the same one: the number is that of this one if it is still here.
        let same = memory.slot(number, WHO).load(Acquire) == word;
        same.then_some((Identity::of(word)?, word, Slot { number, serial }))
    })
}
