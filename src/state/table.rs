//! The table as one process has it: its view of the memory, its way to write, and what wakes main.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, Once, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result as Io};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

use super::dirty_bits;
use super::heap::Ref;
use super::layout::Layout;
use super::liveness::{self, Whereabouts};
use super::memory::{Corrupt, Memory};
use super::node::Entry;
use super::ops::{Change, Failure};
use super::records::{self, Field, Identity, Slot};
use super::sync::AtomicU64;
use super::sync::Ordering::{Acquire, Relaxed};
use super::writer::{Refused, Writer};

/// Names with the same hash share a bucket, so there may be any number of entries.
const BUCKETS: usize = 4096;
/// How many processes may have written and be alive at the same time.
const PROCESSES: usize = 16_384;
/// After how many processes those are looked for that have died unseen: main is told of its own children alone.
const SWEEP: usize = 64;
const STOPPABLE: u64 = 1;
const STOPPING: u64 = 2;
/// Some flag was set or cleared.
const WRITTEN: u64 = 1 << 63;

/// The memory of a file, for as long as this lives.
#[derive(Debug)]
struct Mapped {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: atomics may be used from any thread, and it is only unmapped when nobody borrows it.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    fn new(file: BorrowedFd<'_>) -> Io<Option<Self>> {
        let size = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| Errno::FBIG)?;
        let (access, how) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let words = size / size_of::<AtomicU64>();
        if words == 0 {
            return Ok(None);
        }
        // SAFETY: the kernel chooses where, so that nothing else is there.
        let start = unsafe { mmap(std::ptr::null_mut(), size, access, how, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Some(Self { start, words }))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: it is mapped, at the beginning of a page, and only as atomics looked at. That the file is not
        // made shorter is what `Shared::new` asks for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nobody borrows it.
        let _ = unsafe {
            munmap(
                self.start.as_ptr().cast(),
                self.words * size_of::<AtomicU64>(),
            )
        };
    }
}

/// What this process writes with; a forked child has that of its parent, and must not use it.
#[derive(Debug)]
struct Own {
    me: Identity,
    generation: u32,
    writer: Writer,
    /// Where its numbers are; if it has several tables of one memory, at the same place.
    numbers: Slot,
}

impl Own {
    /// Whether it is that of the calling process.
    fn is_present(&self) -> bool {
        self.me.pid == std::process::id() && self.generation == generation()
    }
}

/// How often the processes before this one were forked. The pid does not tell a process from its ancestors: it may
/// be that of a dead one.
fn generation() -> u32 {
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    static IS_COUNTED: Once = Once::new();
    extern "C" fn count() {
        GENERATION.fetch_add(1, Relaxed);
    }
    IS_COUNTED.call_once(|| {
        // SAFETY: what is called in the child does nothing but count.
        unsafe { libc::pthread_atfork(None, None, Some(count)) };
    });
    GENERATION.load(Relaxed)
}

/// What was in the table when it was last looked at.
#[derive(Debug, Default)]
pub struct Seen {
    before: bool,
    buckets: HashMap<usize, (Ref, Vec<Entry>)>,
}

/// What a process has said of itself in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// When it last gave a sign of life, in nanoseconds of the clock that only goes forward; 0: never.
    pub beat: u64,
    /// The same in nanoseconds since 1970.
    pub beat_at: u64,
    /// How many requests it has served.
    pub requests: u64,
    /// Whether it obeys a signal to stop.
    pub stoppable: bool,
    /// Whether it has obeyed one.
    pub stopping: bool,
}

impl Numbers {
    fn of(memory: Memory<'_>, slot: Slot) -> Option<Self> {
        let flags = slot.get(memory, Field::Flags);
        let beat = slot.get(memory, Field::Beat);
        (beat != 0 || flags != 0).then(|| Self {
            beat,
            beat_at: slot.get(memory, Field::BeatAt),
            requests: slot.get(memory, Field::Requests),
            stoppable: flags & STOPPABLE != 0,
            stopping: flags & STOPPING != 0,
        })
    }
}

/// Why there is no table.
#[derive(Debug)]
pub enum OpenError {
    /// The kernel says so.
    Os(Errno),
    /// It is too small, or holds something else.
    Corrupt,
}

/// A table that several processes share.
#[derive(Debug)]
pub struct Shared {
    mapped: Mapped,
    layout: Layout,
    wake: OwnedFd,
    own: Mutex<Option<Own>>,
}

impl Shared {
    /// The table in a file that is all zeros or has been one before, and what to write to in order to wake main.
    ///
    /// # Safety
    /// Nobody may make the file shorter.
    pub unsafe fn new(file: BorrowedFd<'_>, wake: BorrowedFd<'_>) -> Result<Self, OpenError> {
        // In this order: a number that is not open may come to mean what is opened here.
        let mapped = Mapped::new(file)?.ok_or(OpenError::Corrupt)?;
        let wake = wake.try_clone_to_owned().map_err(|_| Errno::BADF)?;
        let layout = Layout::new(mapped.words, BUCKETS, PROCESSES);
        Memory::new(mapped.words(), layout).map_err(|Corrupt| OpenError::Corrupt)?;
        let own = Mutex::new(None);
        Ok(Self {
            mapped,
            layout,
            wake,
            own,
        })
    }

    /// What is there now.
    pub fn memory(&self) -> Memory<'_> {
        Memory::again(self.mapped.words(), self.layout)
    }

    /// How much it holds at the most, in bytes, with all that it needs itself.
    pub fn ceiling(&self) -> usize {
        self.mapped.words * size_of::<AtomicU64>()
    }

    /// Change what is kept under a name, and wake main if it waits for that. What is `vital` may take the room
    /// that is kept for when there is none.
    pub fn change(
        &self,
        name: &[u8],
        vital: bool,
        mut act: impl FnMut(&mut Change<'_, '_>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let memory = self.memory();
        let changed = self.with_own(|own| {
            own.writer.vital = vital;
            let me = own.me;
            let census = |pid| known(Some(me), pid);
            let mut change = || {
                let writer = &mut own.writer;
                act(&mut Change {
                    writer,
                    memory,
                    name,
                    census: &census,
                })
            };
            match change() {
                Err(Failure::Refused(Refused::Full)) => {
                    records::bury(memory, liveness::is_dead);
                    change()
                }
                result => result,
            }
        })??;
        if changed && dirty_bits::awaited(memory) {
            self.wake();
        }
        Ok(())
    }

    /// Whether a part is that of the process which has this pid now, and not of one that had it before.
    pub fn is_part_of(&self, part: u64, pid: u32) -> bool {
        let Some(its) = Identity::of(part).filter(|its| its.pid == pid) else {
            return false;
        };
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let me = own.as_ref().filter(|own| own.is_present());
        match known(me.map(|own| own.me), pid) {
            Whereabouts::Lives(now) => its.may_be(now),
            Whereabouts::Dead | Whereabouts::Unknown => true,
        }
    }

    /// Note that a process is alive, and that it has served more requests.
    pub fn beat(&self, pid: u32, requests: u64) -> Result<(), Refused> {
        let now = |clock| {
            let now = clock_gettime(clock);
            u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
        };
        self.with_slot(pid, |memory, slot| {
            slot.set(memory, Field::Beat, now(ClockId::Monotonic));
            slot.set(memory, Field::BeatAt, now(ClockId::Realtime));
            slot.add(memory, Field::Requests, requests);
        })
    }

    /// Set or clear flags of a process, and wake main if it waits for changes.
    pub fn flag(
        &self,
        pid: u32,
        stoppable: Option<bool>,
        stopping: Option<bool>,
    ) -> Result<(), Refused> {
        let (mut on, mut off) = (WRITTEN, 0);
        for (flag, given) in [(STOPPABLE, stoppable), (STOPPING, stopping)] {
            match given {
                Some(true) => on |= flag,
                Some(false) => off |= flag,
                None => {}
            }
        }
        self.with_slot(pid, |memory, slot| {
            slot.mark(memory, Field::Flags, on, off);
            // Flags lie in no bucket. Under the mark of any, main looks, and finds no name changed.
            dirty_bits::set(memory, 0);
            if dirty_bits::awaited(memory) {
                self.wake();
            }
        })
    }

    /// The numbers of a process, if it has written any.
    pub fn numbers(&self, pid: u32) -> Option<Numbers> {
        let memory = self.memory();
        records::of(memory, pid).and_then(|slot| Numbers::of(memory, slot))
    }

    /// Whether any process has written numbers.
    pub fn has_numbers(&self) -> bool {
        !self.all_numbers().is_empty()
    }

    /// The numbers of all processes, by their pids.
    pub fn all_numbers(&self) -> HashMap<u32, Numbers> {
        let memory = self.memory();
        let numbers = |(who, slot): (Identity, Slot)| Some((who.pid, Numbers::of(memory, slot)?));
        records::all(memory).filter_map(numbers).collect()
    }

    /// This process is dead: what it had is for others.
    pub fn bury(&self, pid: u32) {
        // Another one may have its pid by now.
        let lives = |who| Whereabouts::of(pid) == Whereabouts::Lives(who);
        records::bury(self.memory(), |who| who.pid == pid && !lives(who));
    }

    /// Be woken by changes from now on; tell whether there has been one since they were last asked for.
    pub fn arm(&self) -> bool {
        dirty_bits::arm(self.memory())
    }

    /// Be woken no more.
    pub fn disarm(&self) {
        dirty_bits::disarm(self.memory());
    }

    /// The names under which something has changed since `seen`, which is brought up to date. Each change is told
    /// of once, to the one who asks. Where a process has died between a change and the mark that tells of it, only
    /// a look at `all` finds it. What was in a bucket that cannot be read any more has changed.
    pub fn changes(&self, seen: &mut Seen, all: bool) -> BTreeSet<Vec<u8>> {
        let memory = self.memory();
        let all = all || !seen.before;
        seen.before = true;
        let mut names = BTreeSet::new();
        for word in 0..dirty_bits::words(memory) {
            let marks = dirty_bits::take(memory, word);
            for bit in 0..64 {
                let bucket = word * 64 + bit;
                let last = seen
                    .buckets
                    .get(&bucket)
                    .map_or(Ref::NONE, |(root, _)| *root);
                let root = || Ref(memory.root(bucket).load(Acquire));
                if marks >> bit & 1 == 1 || (all && root() != last) {
                    let now = memory.read(bucket, |now| Some((now.root, now.entries.clone())));
                    let now = now.unwrap_or_else(|Corrupt| (root(), Vec::new()));
                    let (_, before) = seen
                        .buckets
                        .remove(&bucket)
                        .unwrap_or((Ref::NONE, Vec::new()));
                    let differs = |entry: &&Entry, others: &[Entry]| !others.contains(entry);
                    let new = now.1.iter().filter(|entry| differs(entry, &before));
                    let gone = before.iter().filter(|entry| differs(entry, &now.1));
                    names.extend(new.chain(gone).map(|entry| entry.name.clone()));
                    seen.buckets.insert(bucket, now);
                }
            }
        }
        names
    }

    fn wake(&self) {
        let mut wake = [PollFd::new(&self.wake, PollFlags::OUT)];
        // One that cannot be written is full of wakes, or there is nobody to wake.
        if poll(&mut wake, Some(&Timespec::default())).is_ok_and(|ready| ready == 1) {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn with_own<T>(&self, act: impl FnOnce(&mut Own) -> T) -> Result<T, Refused> {
        let mut guard = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = match guard.take() {
            Some(own) if own.is_present() => own,
            _ => self.begin()?,
        };
        Ok(act(guard.insert(own)))
    }

    /// Do something with the numbers of a process: of this one, or of one that it was forked by.
    fn with_slot(&self, pid: u32, act: impl FnOnce(Memory<'_>, Slot)) -> Result<(), Refused> {
        let memory = self.memory();
        if pid == std::process::id() {
            return self.with_own(|own| act(memory, own.numbers));
        }
        let who = match Whereabouts::of(pid) {
            Whereabouts::Lives(who) => who,
            Whereabouts::Unknown => Identity::undated(pid),
            // There is nobody to speak as.
            Whereabouts::Dead => return Ok(()),
        };
        let its = records::of(memory, pid).filter(|slot| slot.is_of(memory, who));
        act(memory, its.map_or_else(|| self.take_slot(who), Ok)?);
        Ok(())
    }

    fn take_slot(&self, who: Identity) -> Result<Slot, Refused> {
        let memory = self.memory();
        let slot = Slot::take(memory, who).or_else(|| {
            records::bury(memory, liveness::is_dead);
            Slot::take(memory, who)
        });
        slot.ok_or(Refused::Full)
    }

    fn begin(&self) -> Result<Own, Refused> {
        let memory = self.memory();
        let pid = std::process::id();
        let me = match Whereabouts::of(pid) {
            Whereabouts::Lives(me) => me,
            _ => Identity::undated(pid),
        };
        let slot = self.take_slot(me)?;
        if slot.number % SWEEP == SWEEP - 1 {
            records::bury(memory, liveness::is_dead);
        }
        let writer = Writer::new(slot.serial);
        let numbers = records::of(memory, pid).unwrap_or(slot);
        Ok(Own {
            me,
            generation: generation(),
            writer,
            numbers,
        })
    }
}

/// What is known of a pid, also by the process that has it: that need not ask.
fn known(me: Option<Identity>, pid: u32) -> Whereabouts {
    match me.filter(|me| me.pid == pid) {
        Some(me) => Whereabouts::Lives(me),
        None => Whereabouts::of(pid),
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl From<Errno> for OpenError {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}
