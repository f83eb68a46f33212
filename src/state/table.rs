//! The table as one process has it: its mapping of the memory, its writer, and the descriptor that wakes the
//! main process.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, Once, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result as Io};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

use super::change::{Change, Failure};
use super::dirty_bits;
use super::heap::{Ref, SEGMENT};
use super::layout::Layout;
use super::liveness::{self, Liveness};
use super::memory::{Corrupt, Memory};
use super::node::Entry;
use super::numbers::{self, Gauges, Numbers};
use super::reclaim::reclaim;
use super::records::{self, Field, Identity, Record};
use super::segments;
use super::sheet::{self, Sheet};
use super::sync::AtomicU64;
use super::sync::Ordering::{Acquire, Relaxed};
use super::writer::{Refused, Writer};

/// The number of buckets. Names with the same hash share one, so the number of entries is not limited.
const BUCKETS: usize = 4096;
/// The number of processes that can have written and be running at the same time.
const PROCESSES: usize = 16_384;
/// The number of new records after which the space of exited processes is reclaimed. The main process reports
/// the exits of its own children only.
const RECLAIM_EVERY: usize = 64;

/// A mapped file.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: atomics may be used from any thread, and the memory is unmapped only when no borrow exists.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>) -> Io<Option<Self>> {
        let size = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| Errno::FBIG)?;
        let (access, how) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let words = size / size_of::<AtomicU64>();
        if words == 0 {
            return Ok(None);
        }
        // SAFETY: the kernel chooses an address where nothing else is mapped.
        let start = unsafe { mmap(std::ptr::null_mut(), size, access, how, file, 0)? };
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Some(Self { start, words }))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the words are mapped from the beginning of a page and used as atomics only. The caller of
        // `SharedTable::new` ensures that the file is not shortened.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this size, and no borrow exists.
        let _ = unsafe {
            munmap(
                self.start.as_ptr().cast(),
                self.words * size_of::<AtomicU64>(),
            )
        };
    }
}

/// The writer of this process. A forked child inherits it, and must make one of its own before it writes.
#[derive(Debug)]
struct WriterState {
    process: Identity,
    generation: u32,
    writer: Writer,
    /// The record with the numbers of this process; the same one for several tables of one memory.
    numbers: Record,
}

impl WriterState {
    /// Return whether this is the writer of the calling process.
    fn is_own(&self) -> bool {
        self.process.pid == std::process::id() && self.generation == generation()
    }
}

/// Return the number of forks between this process and the first one. A pid does not distinguish a process
/// from its ancestors, because it may be the reused pid of an ancestor that has exited.
fn generation() -> u32 {
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    static IS_COUNTED: Once = Once::new();
    extern "C" fn count() {
        GENERATION.fetch_add(1, Relaxed);
    }
    IS_COUNTED.call_once(|| {
        // SAFETY: the function called in the child only increments a counter.
        unsafe { libc::pthread_atfork(None, None, Some(count)) };
    });
    GENERATION.load(Relaxed)
}

/// The content of the table at the last [`SharedTable::changes`].
#[derive(Debug, Default)]
pub struct LastSeen {
    is_filled: bool,
    buckets: HashMap<usize, (Ref, Vec<Entry>)>,
}

/// The reason why a table cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The kernel refused.
    Os(Errno),
    /// The file is too small, or is not a table.
    Corrupt,
}

/// A table in memory that several processes map.
#[derive(Debug)]
pub struct SharedTable {
    mapping: Mapping,
    layout: Layout,
    sheets: Vec<Sheet>,
    /// A write to it wakes the main process.
    wake: OwnedFd,
    writer: Mutex<Option<WriterState>>,
}

impl SharedTable {
    /// Open the table in a file, which is all zeros or was used as a table with the same sheets before. A
    /// write to `wake` wakes the main process. `sheets` are their numbers of cells and of bytes per cell.
    ///
    /// # Safety
    /// No process may shorten the file.
    pub unsafe fn new(
        file: BorrowedFd<'_>,
        wake: BorrowedFd<'_>,
        sheets: impl ExactSizeIterator<Item = (u32, u32)>,
    ) -> Result<Self, OpenError> {
        // Map first. A descriptor opened here could get the number of one that is passed in but not open.
        let mapping = Mapping::new(file)?.ok_or(OpenError::Corrupt)?;
        let wake = wake.try_clone_to_owned().map_err(|_| Errno::BADF)?;
        let (sheets, words) = sheet::lay_out(sheets);
        let layout = Layout::new(mapping.words, BUCKETS, PROCESSES, words);
        Memory::new(mapping.words(), layout).map_err(|Corrupt| OpenError::Corrupt)?;
        Ok(Self {
            mapping,
            layout,
            sheets,
            wake,
            writer: Mutex::new(None),
        })
    }

    /// Return the memory.
    pub fn memory(&self) -> Memory<'_> {
        Memory::reopen(self.mapping.words(), self.layout)
    }

    /// Return the size of the memory in bytes.
    pub fn size(&self) -> usize {
        self.mapping.words * size_of::<AtomicU64>()
    }

    /// Return the sheet of this number.
    pub fn sheet(&self, number: usize) -> Sheet {
        self.sheets[number]
    }

    /// Return the bytes of the heap that are taken, and those that there are.
    pub fn usage(&self) -> (usize, usize) {
        let memory = self.memory();
        let bytes = |segments| segments * SEGMENT * size_of::<AtomicU64>();
        (bytes(segments::taken(memory)), bytes(self.layout.segments))
    }

    /// Change the entry of a name, and wake the main process if it waits for changes. An `essential` change
    /// may use the reserved space.
    pub fn change(
        &self,
        name: &[u8],
        essential: bool,
        mut act: impl FnMut(&mut Change<'_, '_>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let memory = self.memory();
        let changed = self.with_writer(|state| {
            state.writer.may_use_reserve = essential;
            let process = state.process;
            let liveness = |pid| liveness_of(Some(process), pid);
            let mut change = || {
                let writer = &mut state.writer;
                act(&mut Change {
                    writer,
                    memory,
                    name,
                    liveness: &liveness,
                })
            };
            match change() {
                Err(Failure::Refused(Refused::Full)) => {
                    reclaim(memory, liveness::has_exited);
                    change()
                }
                result => result,
            }
        })??;
        if changed && dirty_bits::is_armed(memory) {
            self.wake();
        }
        Ok(())
    }

    /// Return whether an entry was staged by the process that has this pid now, not by an earlier one.
    pub fn is_staged_by(&self, staged_by: u64, pid: u32) -> bool {
        let Some(stager) = Identity::from_word(staged_by).filter(|stager| stager.pid == pid) else {
            return false;
        };
        let state = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let own = state.as_ref().filter(|state| state.is_own());
        match liveness_of(own.map(|state| state.process), pid) {
            Liveness::Running(now) => stager.may_be(now),
            Liveness::Exited | Liveness::Unknown => true,
        }
    }

    /// Write the heartbeat of a process, add to its count, and set its gauges.
    pub fn beat(&self, pid: u32, more: u64, gauges: Gauges) -> Result<(), Refused> {
        let now = |clock| {
            let now = clock_gettime(clock);
            u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
        };
        self.with_record(pid, |memory, record| {
            record.set(memory, Field::Beat, now(ClockId::Monotonic));
            record.set(memory, Field::BeatAt, now(ClockId::Realtime));
            record.add(memory, Field::Count, more);
            numbers::set_gauges(memory, record, gauges);
        })
    }

    /// Set the flags `on` and clear the flags `off` of a process, and wake the main process if it waits for
    /// changes.
    pub fn flag(&self, pid: u32, on: u64, off: u64) -> Result<(), Refused> {
        self.with_record(pid, |memory, record| {
            numbers::set_flags(memory, record, on, off);
            // Flags are in no bucket. Any dirty bit makes the main process check; it finds no name changed.
            dirty_bits::set(memory, 0);
            if dirty_bits::is_armed(memory) {
                self.wake();
            }
        })
    }

    /// Return the record of the calling process.
    pub fn own_record(&self) -> Result<Record, Refused> {
        self.with_writer(|state| state.numbers)
    }

    /// Return the numbers of a process, if it has written any.
    pub fn numbers(&self, pid: u32) -> Option<Numbers> {
        let memory = self.memory();
        records::find(memory, pid).and_then(|record| Numbers::of(memory, record))
    }

    /// Return whether any process has written numbers.
    pub fn has_numbers(&self) -> bool {
        !self.all_numbers().is_empty()
    }

    /// Return the numbers of all processes, by pid.
    pub fn all_numbers(&self) -> HashMap<u32, Numbers> {
        let memory = self.memory();
        let numbers = |(identity, record): (Identity, Record)| {
            Some((identity.pid, Numbers::of(memory, record)?))
        };
        records::all(memory).filter_map(numbers).collect()
    }

    /// Reclaim the space of a process that has exited.
    pub fn reclaim(&self, pid: u32) {
        // A running process may have its pid by now.
        let is_running = |identity| Liveness::of(pid) == Liveness::Running(identity);
        reclaim(self.memory(), |identity| {
            identity.pid == pid && !is_running(identity)
        });
    }

    /// Have changes wake the main process; return whether there was one since the last
    /// [`changes`](Self::changes).
    pub fn arm(&self) -> bool {
        dirty_bits::arm(self.memory())
    }

    /// Have changes wake no more.
    pub fn disarm(&self) {
        dirty_bits::disarm(self.memory());
    }

    /// Return the names whose entries have changed since `seen`, and update `seen`.
    ///
    /// Each change is reported once, to one caller. A process that exits between a change and its dirty bit
    /// leaves a change that only a comparison of `all` buckets finds. All entries of a damaged bucket count
    /// as changed.
    pub fn changes(&self, seen: &mut LastSeen, all: bool) -> BTreeSet<Vec<u8>> {
        let memory = self.memory();
        let all = all || !seen.is_filled;
        seen.is_filled = true;
        let mut names = BTreeSet::new();
        for word in 0..dirty_bits::words(memory) {
            let dirty = dirty_bits::take(memory, word);
            for bit in 0..64 {
                let bucket = word * 64 + bit;
                let last = seen
                    .buckets
                    .get(&bucket)
                    .map_or(Ref::NONE, |(root, _)| *root);
                let root = || Ref(memory.root(bucket).load(Acquire));
                if dirty >> bit & 1 == 1 || (all && root() != last) {
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
        let mut fds = [PollFd::new(&self.wake, PollFlags::OUT)];
        // A descriptor that cannot be written holds a wakeup already, or its other end is closed.
        if poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready == 1) {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn with_writer<T>(&self, act: impl FnOnce(&mut WriterState) -> T) -> Result<T, Refused> {
        let mut guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match guard.take() {
            Some(state) if state.is_own() => state,
            _ => self.new_writer()?,
        };
        Ok(act(guard.insert(state)))
    }

    /// Use the record of a process: of the calling one, or of one that it was forked from.
    fn with_record(&self, pid: u32, act: impl FnOnce(Memory<'_>, Record)) -> Result<(), Refused> {
        let memory = self.memory();
        if pid == std::process::id() {
            return self.with_writer(|state| act(memory, state.numbers));
        }
        let process = match Liveness::of(pid) {
            Liveness::Running(identity) => identity,
            Liveness::Unknown => Identity::undated(pid),
            // A process that has exited has no numbers.
            Liveness::Exited => return Ok(()),
        };
        let its = records::find(memory, pid).filter(|record| record.is_of(memory, process));
        act(memory, its.map_or_else(|| self.claim_record(process), Ok)?);
        Ok(())
    }

    fn claim_record(&self, process: Identity) -> Result<Record, Refused> {
        let memory = self.memory();
        let record = Record::claim(memory, process).or_else(|| {
            reclaim(memory, liveness::has_exited);
            Record::claim(memory, process)
        });
        record.ok_or(Refused::Full)
    }

    fn new_writer(&self) -> Result<WriterState, Refused> {
        let memory = self.memory();
        let pid = std::process::id();
        let process = match Liveness::of(pid) {
            Liveness::Running(identity) => identity,
            _ => Identity::undated(pid),
        };
        let record = self.claim_record(process)?;
        if record.number % RECLAIM_EVERY == RECLAIM_EVERY - 1 {
            reclaim(memory, liveness::has_exited);
        }
        let writer = Writer::new(record.serial);
        let numbers = records::find(memory, pid).unwrap_or(record);
        Ok(WriterState {
            process,
            generation: generation(),
            writer,
            numbers,
        })
    }
}

/// Return the liveness of a pid. For the calling process, whose identity is given, no system call is needed.
fn liveness_of(own: Option<Identity>, pid: u32) -> Liveness {
    match own.filter(|own| own.pid == pid) {
        Some(own) => Liveness::Running(own),
        None => Liveness::of(pid),
    }
}

impl AsFd for SharedTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl From<Errno> for OpenError {
    fn from(error: Errno) -> Self {
        Self::Os(error)
    }
}
