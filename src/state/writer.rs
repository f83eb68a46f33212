//! How one process writes: it fills blocks of its own, and publishes them with one compare-and-swap.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::dirty_bits;
use super::heap::{self, Class, GRANULES, Kind, Ref, UNIT};
use super::layout::Single;
use super::memory::{Bucket, Corrupt, Memory, Part};
use super::node::{self, Entry, Key};
use super::segments;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// How many stamps are taken at once.
const STAMPS: u64 = 1024;

/// Why a change was not made. The table is as it was.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room for it.
    Full,
    /// Something else has written to the memory.
    Corrupt,
}

impl From<Corrupt> for Refused {
    fn from(_: Corrupt) -> Self {
        Self::Corrupt
    }
}

/// What came of a try.
#[derive(Debug, PartialEq, Eq)]
enum Published {
    /// All see it.
    New,
    /// There was nothing to change.
    Same,
    /// Another was quicker.
    Lost,
}

/// A process that writes.
#[derive(Debug)]
pub struct Writer {
    serial: u64,
    units: Vec<(usize, Class)>,
    /// Blocks to which nothing refers, by class; those that were given up first are used first, so that whoever
    /// still reads them has as long as can be.
    free: Vec<VecDeque<usize>>,
    /// Blocks that were filled, and are not published yet.
    filled: Vec<Ref>,
    /// Words that were filled since the last look for blocks that others have made free.
    spent: usize,
    /// Numbers for the next fillings.
    stamps: Range<u64>,
    /// How many words others had given up, in all, at that last look.
    freed: u64,
    /// Whether what is being done takes something away.
    shrinks: bool,
    /// Whether it may take the room that is kept for when there is none.
    pub vital: bool,
    /// Whether what cannot be read is replaced, as if there were nothing.
    pub anew: bool,
}

impl Writer {
    /// A writer that owns what is taken in the name of this number.
    pub fn new(serial: u64) -> Self {
        Self {
            serial,
            units: Vec::new(),
            free: Vec::new(),
            filled: Vec::new(),
            spent: 0,
            stamps: 0..0,
            freed: 0,
            shrinks: false,
            vital: false,
            anew: false,
        }
    }

    /// Keep a value for the next [`change`](Self::change).
    pub fn value(&mut self, memory: Memory<'_>, bytes: &[u8]) -> Result<Ref, Refused> {
        self.fill(memory, Kind::Value, &node::value(bytes))
    }

    /// Let go of the values that no change has taken.
    pub fn discard(&mut self, memory: Memory<'_>) {
        for filled in std::mem::take(&mut self.filled) {
            self.give_back(memory, filled);
        }
    }

    /// Change what is kept under a name: `act` is told the parts with the values that are `wanted`, and says what
    /// they are to be, each by its pid. It may be asked again, when another process was quicker. Tells whether that
    /// is a change.
    pub fn change<E: From<Refused>>(
        &mut self,
        memory: Memory<'_>,
        name: &[u8],
        mut wanted: impl FnMut(&Key) -> bool,
        mut act: impl FnMut(Vec<Part>) -> Result<Vec<(u64, Vec<Key>)>, E>,
    ) -> Result<bool, E> {
        self.give_back_what_others_freed(memory);
        let result = loop {
            match self.publish(memory, name, &mut wanted, &mut act) {
                Ok(Published::Lost) => {}
                Ok(published) => break Ok(published == Published::New),
                Err(error) => break Err(error),
            }
        };
        self.shrinks = false;
        self.discard(memory);
        result
    }

    /// Try once.
    fn publish<E: From<Refused>>(
        &mut self,
        memory: Memory<'_>,
        name: &[u8],
        wanted: &mut impl FnMut(&Key) -> bool,
        act: &mut impl FnMut(Vec<Part>) -> Result<Vec<(u64, Vec<Key>)>, E>,
    ) -> Result<Published, E> {
        let number = memory.bucket_of(name);
        let look = |bucket: &Bucket| {
            let (same, others): (Vec<_>, Vec<_>) =
                (bucket.entries.iter().cloned()).partition(|entry| entry.name == name);
            let parts: Option<Vec<Part>> = (same.iter())
                .map(|entry| memory.part(entry, wanted))
                .collect();
            Some((bucket.root, others, parts?))
        };
        let (root, mut entries, parts) = match memory.read(number, look) {
            Err(Corrupt) if self.anew => Self::what_is_left(memory, number, name),
            read => read.map_err(Refused::from)?,
        };
        let values = |part: &Part| part.keys.iter().map(|(key, _)| key.value).collect();
        let before: Vec<(Entry, Vec<Ref>)> = (parts.iter())
            .map(|part| (part.entry.clone(), values(part)))
            .collect();
        let after = act(parts)?;

        let keys =
            |parts: &[(u64, Vec<Key>)]| parts.iter().map(|(_, keys)| keys.len()).sum::<usize>();
        let held: usize = before.iter().map(|(_, values)| values.len()).sum();
        self.shrinks = self.filled.is_empty() && keys(&after) + after.len() < held + before.len();
        let mut made = Vec::new();
        let mut given_up = vec![root];
        for (pid, keys) in &after {
            let part = before.iter().find(|(entry, _)| entry.pid == *pid);
            let now = || keys.iter().map(|key| key.value);
            if let Some((entry, _)) = part.filter(|(_, values)| now().eq(values.iter().copied())) {
                entries.push(entry.clone());
                continue;
            }
            let count = || memory.single(Single::Entries).fetch_add(1, Relaxed);
            let block = self.fill(memory, Kind::Keys, &node::entry(keys))?;
            made.push(block);
            entries.push(Entry {
                name: name.to_vec(),
                pid: *pid,
                born: part.map_or_else(count, |(entry, _)| entry.born),
                keys: block,
            });
        }
        let kept = |block: Ref| entries.iter().any(|entry| entry.keys == block);
        let left = before.iter().map(|(entry, _)| entry.keys);
        given_up.extend(left.filter(|block| !kept(*block)));
        if given_up.len() == 1 && made.is_empty() {
            return Ok(Published::Same);
        }
        let new = if entries.is_empty() {
            Ref::NONE
        } else {
            self.fill(memory, Kind::Bucket(number), &node::bucket(&entries))?
        };
        made.push(new);
        let swap = (memory.root(number)).compare_exchange(root.0, new.0, AcqRel, Relaxed);
        self.filled.retain(|filled| !made.contains(filled));
        if swap.is_err() {
            for made in made {
                self.give_back(memory, made);
            }
            return Ok(Published::Lost);
        }
        dirty_bits::set(memory, number);

        let values = after.iter().flat_map(|(_, keys)| keys.iter());
        let mut now: Vec<Ref> = values.map(|key| key.value).collect();
        now.sort_unstable();
        let is_used = |value: &Ref| now.binary_search(value).is_ok();
        self.filled.retain(|filled| !is_used(filled));
        let values = before.iter().flat_map(|(_, values)| values.iter());
        given_up.extend(values.filter(|value| !is_used(value)));
        for given_up in given_up {
            self.give_back(memory, given_up);
        }
        Ok(Published::New)
    }

    /// What can be read of a bucket beside what is kept under a name.
    fn what_is_left(
        memory: Memory<'_>,
        number: usize,
        name: &[u8],
    ) -> (Ref, Vec<Entry>, Vec<Part>) {
        let others = |bucket: &Bucket| {
            let entries = bucket.entries.iter().filter(|entry| entry.name != name);
            Some((bucket.root, entries.cloned().collect(), Vec::new()))
        };
        let nothing = |Corrupt| {
            let root = memory.root(number).load(Acquire);
            (Ref(root), Vec::new(), Vec::new())
        };
        memory.read(number, others).unwrap_or_else(nothing)
    }

    fn fill(&mut self, memory: Memory<'_>, kind: Kind, content: &[u64]) -> Result<Ref, Refused> {
        let class = Class::of(content.len());
        let granule = self.take(memory, class)?;
        let filled = heap::fill(memory.words(), granule, self.stamp(memory), kind, content);
        self.spent += class.words();
        self.filled.push(filled);
        Ok(filled)
    }

    fn stamp(&mut self, memory: Memory<'_>) -> u64 {
        if self.stamps.is_empty() {
            let given = memory.single(Single::Stamps).fetch_add(STAMPS, Relaxed);
            // No reference has room for more bits; 0 is no stamp.
            let next = given % (1 << (u64::BITS - GRANULES)) + 1;
            self.stamps = next..next + STAMPS;
        }
        self.stamps.next().unwrap_or_default()
    }

    /// A block is free, if it is one's own: others see to theirs.
    fn give_back(&mut self, memory: Memory<'_>, block: Ref) {
        let unit = memory.unit(block.granule());
        if block == Ref::NONE {
            return;
        }
        if let Some((serial, class)) = segments::owner(memory, unit) {
            if serial == self.serial {
                self.free(class).push_back(block.granule());
            } else if serial != 0 {
                let freed = memory.single(Single::Freed);
                freed.fetch_add(class.words() as u64, Relaxed);
            }
        }
    }

    /// When others have given up much, see whether it was one's own.
    fn give_back_what_others_freed(&mut self, memory: Memory<'_>) {
        let freed = memory.single(Single::Freed).load(Relaxed);
        let since = usize::try_from(freed.wrapping_sub(self.freed)).unwrap_or(usize::MAX);
        if since >= UNIT && since > self.owned() / 2 {
            self.collect(memory, None);
        }
    }

    fn owned(&self) -> usize {
        let shapes = self.units.iter().map(|(_, class)| class.shape());
        shapes.map(|(units, _)| units * UNIT).sum()
    }

    fn free(&mut self, class: Class) -> &mut VecDeque<usize> {
        let at = class.0 as usize;
        if self.free.len() <= at {
            self.free.resize_with(at + 1, VecDeque::new);
        }
        &mut self.free[at]
    }

    fn take(&mut self, memory: Memory<'_>, class: Class) -> Result<usize, Refused> {
        if self.free(class).is_empty() && self.spent * 2 > self.owned() {
            self.collect(memory, Some(class));
        }
        if self.free(class).is_empty() && !self.claim(memory, class) {
            self.collect(memory, Some(class));
            if self.free(class).is_empty() && !self.claim(memory, class) {
                segments::recycle(memory, self.serial);
                self.claim(memory, class);
            }
        }
        self.free(class).pop_front().ok_or(Refused::Full)
    }

    /// Take units until there is a free block; tell whether there is.
    fn claim(&mut self, memory: Memory<'_>, class: Class) -> bool {
        // What is inherited may have no free block.
        while self.free(class).is_empty() {
            // As many as there are already, so that all is not looked at for each of them.
            let most = self.units.len().max(1);
            let inherited = segments::inherit(memory, class, self.serial, most);
            let mut live = HashSet::new();
            if !inherited.is_empty() {
                let asked = |granule| inherited.binary_search(&memory.unit(granule)).is_ok();
                live = memory.live(asked);
            }
            let reserved = self.shrinks || self.vital;
            let fresh = || segments::claim(memory, class, self.serial, reserved);
            let taken = match inherited.len() {
                0 => Vec::from_iter(fresh()),
                _ => inherited,
            };
            if taken.is_empty() {
                return false;
            }
            for unit in taken {
                self.units.push((unit, class));
                let blocks = segments::blocks(memory, unit, class);
                self.free(class)
                    .extend(blocks.filter(|block| !live.contains(block)));
            }
        }
        true
    }

    /// Find all blocks of one's own that nothing refers to; give back the units that have no others, but of the
    /// class that is wanted.
    fn collect(&mut self, memory: Memory<'_>, wanted: Option<Class>) {
        self.spent = 0;
        self.freed = memory.single(Single::Freed).load(Relaxed);
        let mine = |granule| {
            segments::owner(memory, memory.unit(granule))
                .is_some_and(|(serial, _)| serial == self.serial)
        };
        let mut kept = memory.live(mine);
        kept.extend(self.filled.iter().map(|filled| filled.granule()));
        for free in &mut self.free {
            free.clear();
        }
        for (unit, class) in std::mem::take(&mut self.units) {
            let blocks = segments::blocks(memory, unit, class);
            let is_used = |block: &usize| kept.contains(block);
            if Some(class) != wanted && !blocks.clone().any(|block| is_used(&block)) {
                segments::release(memory, unit, class, self.serial);
                continue;
            }
            self.units.push((unit, class));
            self.free(class)
                .extend(blocks.filter(|block| !is_used(block)));
        }
    }
}
