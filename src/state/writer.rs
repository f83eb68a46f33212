//! Writes: a process fills blocks of its own, and publishes them with one compare-and-swap.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::dirty_bits;
use super::heap::{self, Class, GRANULES, Kind, Ref, SEGMENT};
use super::layout::Header;
use super::memory::{Corrupt, Memory};
use super::node::{self, Entry, Key};
use super::read::{Bucket, Version};
use super::reclaim;
use super::segments;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// The number of stamps taken at once.
const STAMPS: u64 = 1024;

/// The reason why a change was not made. The table is unchanged then.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no space for it.
    Full,
    /// The memory is damaged.
    Corrupt,
}

impl From<Corrupt> for Refused {
    fn from(_: Corrupt) -> Self {
        Self::Corrupt
    }
}

/// The result of one attempt.
#[derive(Debug, PartialEq, Eq)]
enum Published {
    /// The change is visible to all processes.
    Changed,
    /// There was no difference to publish.
    Unchanged,
    /// Another process published first.
    Lost,
}

/// The blocks and segments with which one process writes.
#[derive(Debug)]
pub struct Writer {
    serial: u64,
    segments: Vec<(usize, Class)>,
    /// Blocks to which nothing refers, by class. The block released first is used first, which gives a
    /// process that still reads it the longest time.
    free: Vec<VecDeque<usize>>,
    /// Blocks that were filled and not published yet.
    filled: Vec<Ref>,
    /// Words filled since the last [`collect`](Self::collect).
    spent: usize,
    /// Stamps for the next fillings.
    stamps: Range<u64>,
    /// The number of words that other processes had released, in all, at the last [`collect`](Self::collect).
    freed: u64,
    /// Whether the present change makes the table smaller.
    shrinks: bool,
    /// Whether a change may use the reserved space.
    pub may_use_reserve: bool,
    /// Whether a change replaces a damaged entry, as if it did not exist.
    pub replaces_damaged: bool,
}

impl Writer {
    /// Create a writer that owns the segments with this serial number.
    pub fn new(serial: u64) -> Self {
        Self {
            serial,
            segments: Vec::new(),
            free: Vec::new(),
            filled: Vec::new(),
            spent: 0,
            stamps: 0..0,
            freed: 0,
            shrinks: false,
            may_use_reserve: false,
            replaces_damaged: false,
        }
    }

    /// Store a value for the next [`change`](Self::change).
    pub fn value(&mut self, memory: Memory<'_>, bytes: &[u8]) -> Result<Ref, Refused> {
        self.fill(memory, Kind::Value, &node::value(bytes))
    }

    /// Release the values that no change has used.
    pub fn discard(&mut self, memory: Memory<'_>) {
        for filled in std::mem::take(&mut self.filled) {
            self.release(memory, filled);
        }
    }

    /// Change the entry of a name: `act` receives its versions with the values that are `wanted`, and returns
    /// the new versions, each with its `staged_by`. It is called again if another process published first.
    /// Return whether there was a difference to publish.
    pub fn change<E: From<Refused>>(
        &mut self,
        memory: Memory<'_>,
        name: &[u8],
        mut wanted: impl FnMut(&Key) -> bool,
        mut act: impl FnMut(Vec<Version>) -> Result<Vec<(u64, Vec<Key>)>, E>,
    ) -> Result<bool, E> {
        self.collect_if_others_released_much(memory);
        let result = loop {
            match self.publish(memory, name, &mut wanted, &mut act) {
                Ok(Published::Lost) => {}
                Ok(published) => break Ok(published == Published::Changed),
                Err(error) => break Err(error),
            }
        };
        self.shrinks = false;
        self.discard(memory);
        result
    }

    /// Make one attempt.
    fn publish<E: From<Refused>>(
        &mut self,
        memory: Memory<'_>,
        name: &[u8],
        wanted: &mut impl FnMut(&Key) -> bool,
        act: &mut impl FnMut(Vec<Version>) -> Result<Vec<(u64, Vec<Key>)>, E>,
    ) -> Result<Published, E> {
        let number = memory.bucket_of(name);
        let look = |bucket: &Bucket| {
            let (same, others): (Vec<_>, Vec<_>) =
                (bucket.entries.iter().cloned()).partition(|entry| entry.name == name);
            let versions: Option<Vec<Version>> = (same.iter())
                .map(|entry| memory.version(entry, wanted))
                .collect();
            Some((bucket.root, others, versions?))
        };
        let (root, mut entries, versions) = match memory.read(number, look) {
            Err(Corrupt) if self.replaces_damaged => Self::salvage(memory, number, name),
            read => read.map_err(Refused::from)?,
        };
        let values = |version: &Version| version.keys.iter().map(|(key, _)| key.value).collect();
        let before: Vec<(Entry, Vec<Ref>)> = (versions.iter())
            .map(|version| (version.entry.clone(), values(version)))
            .collect();
        let after = act(versions)?;

        let keys = |versions: &[(u64, Vec<Key>)]| {
            versions.iter().map(|(_, keys)| keys.len()).sum::<usize>()
        };
        let held: usize = before.iter().map(|(_, values)| values.len()).sum();
        self.shrinks = self.filled.is_empty() && keys(&after) + after.len() < held + before.len();
        let mut made = Vec::new();
        let mut released = vec![root];
        for (staged_by, keys) in &after {
            let version = before
                .iter()
                .find(|(entry, _)| entry.staged_by == *staged_by);
            let now = || keys.iter().map(|key| key.value);
            if let Some((entry, _)) = version.filter(|(_, values)| now().eq(values.iter().copied()))
            {
                entries.push(entry.clone());
                continue;
            }
            let count = || memory.header(Header::Entries).fetch_add(1, Relaxed);
            let block = self.fill(memory, Kind::Keys, &node::entry(keys))?;
            made.push(block);
            entries.push(Entry {
                name: name.to_vec(),
                staged_by: *staged_by,
                created: version.map_or_else(count, |(entry, _)| entry.created),
                keys: block,
            });
        }
        let kept = |block: Ref| entries.iter().any(|entry| entry.keys == block);
        let left = before.iter().map(|(entry, _)| entry.keys);
        released.extend(left.filter(|block| !kept(*block)));
        if released.len() == 1 && made.is_empty() {
            return Ok(Published::Unchanged);
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
                self.release(memory, made);
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
        released.extend(values.filter(|value| !is_used(value)));
        for released in released {
            self.release(memory, released);
        }
        Ok(Published::Changed)
    }

    /// Return the root of a damaged bucket, and its entries of other names as far as they can be read.
    fn salvage(memory: Memory<'_>, number: usize, name: &[u8]) -> (Ref, Vec<Entry>, Vec<Version>) {
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
            let given = memory.header(Header::Stamps).fetch_add(STAMPS, Relaxed);
            // A reference has space for that many bits, and 0 is no stamp.
            let next = given % (1 << (u64::BITS - GRANULES)) + 1;
            self.stamps = next..next + STAMPS;
        }
        self.stamps.next().unwrap_or_default()
    }

    /// Release a block that was replaced. An own block is free; a block of another process is only counted,
    /// and its owner finds it.
    fn release(&mut self, memory: Memory<'_>, block: Ref) {
        let segment = memory.segment(block.granule());
        if block == Ref::NONE {
            return;
        }
        if let Some((serial, class)) = segments::owner(memory, segment) {
            if serial == self.serial {
                self.free(class).push_back(block.granule());
            } else if serial != 0 {
                let freed = memory.header(Header::Freed);
                freed.fetch_add(class.words() as u64, Relaxed);
            }
        }
    }

    /// Find free blocks if other processes have released many: some may be this writer's.
    fn collect_if_others_released_much(&mut self, memory: Memory<'_>) {
        let freed = memory.header(Header::Freed).load(Relaxed);
        let since = usize::try_from(freed.wrapping_sub(self.freed)).unwrap_or(usize::MAX);
        if since >= SEGMENT && since > self.owned() / 2 {
            self.collect(memory, None);
        }
    }

    fn owned(&self) -> usize {
        let shapes = self.segments.iter().map(|(_, class)| class.shape());
        shapes.map(|(segments, _)| segments * SEGMENT).sum()
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
                reclaim::free_abandoned(memory, self.serial);
                self.claim(memory, class);
            }
        }
        self.free(class).pop_front().ok_or(Refused::Full)
    }

    /// Take segments until there is a free block; return whether there is.
    fn claim(&mut self, memory: Memory<'_>, class: Class) -> bool {
        // An adopted segment may have no free block.
        while self.free(class).is_empty() {
            // Adopt as many as this writer has, so that the number of searches for live blocks stays small.
            let most = self.segments.len().max(1);
            let adopted = segments::adopt(memory, class, self.serial, most);
            let mut live = HashSet::new();
            if !adopted.is_empty() {
                let asked = |granule| adopted.binary_search(&memory.segment(granule)).is_ok();
                live = memory.live(asked);
            }
            let reserved = self.shrinks || self.may_use_reserve;
            let fresh = || segments::claim(memory, class, self.serial, reserved);
            let taken = match adopted.len() {
                0 => Vec::from_iter(fresh()),
                _ => adopted,
            };
            if taken.is_empty() {
                return false;
            }
            for segment in taken {
                self.segments.push((segment, class));
                let blocks = segments::blocks(memory, segment, class);
                self.free(class)
                    .extend(blocks.filter(|block| !live.contains(block)));
            }
        }
        true
    }

    /// Find all own blocks to which nothing refers. Free the segments that hold no other blocks, except those
    /// of the class that is wanted.
    fn collect(&mut self, memory: Memory<'_>, wanted: Option<Class>) {
        self.spent = 0;
        self.freed = memory.header(Header::Freed).load(Relaxed);
        let mine = |granule| {
            segments::owner(memory, memory.segment(granule))
                .is_some_and(|(serial, _)| serial == self.serial)
        };
        let mut kept = memory.live(mine);
        kept.extend(self.filled.iter().map(|filled| filled.granule()));
        for free in &mut self.free {
            free.clear();
        }
        for (segment, class) in std::mem::take(&mut self.segments) {
            let blocks = segments::blocks(memory, segment, class);
            let is_used = |block: &usize| kept.contains(block);
            if Some(class) != wanted && !blocks.clone().any(|block| is_used(&block)) {
                segments::release(memory, segment, class, self.serial);
                continue;
            }
            self.segments.push((segment, class));
            self.free(class)
                .extend(blocks.filter(|block| !is_used(block)));
        }
    }
}
