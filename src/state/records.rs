//! The records of the processes that write: their identity, and numbers that they write about themselves.

use super::layout::{Header, RECORD};
use super::memory::Memory;
use super::sync::AtomicU64;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// A number in a record. Its process writes it, and the processes forked from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The time of the last heartbeat, in nanoseconds of the monotonic clock.
    Beat,
    /// The same time in nanoseconds since 1970.
    BeatAt,
    /// A count, such as that of the requests served.
    Count,
    /// Flags, one bit each.
    Flags,
    /// The gauge of this number: a value that goes up and down.
    Gauge(usize),
    /// The number of the last question to the process; 0 if it takes none. Any process may add to it.
    Question,
    /// The last question that its native thread has answered.
    NativeAnswer,
    /// The last question that its interpreter has answered.
    InterpreterAnswer,
    /// The signal at which it dumps its stacks; 0 for none.
    StackSignal,
}

/// The number of gauges.
pub const GAUGES: usize = 5;

impl Field {
    /// Return its place in the record.
    fn word(self) -> usize {
        match self {
            Self::Beat => SERIAL + 1,
            Self::BeatAt => SERIAL + 2,
            Self::Count => SERIAL + 3,
            Self::Flags => SERIAL + 4,
            Self::Gauge(number) => SERIAL + 5 + number,
            Self::Question => SERIAL + 5 + GAUGES,
            Self::NativeAnswer => SERIAL + 6 + GAUGES,
            Self::InterpreterAnswer => SERIAL + 7 + GAUGES,
            Self::StackSignal => SERIAL + 8 + GAUGES,
        }
    }
}

/// The identity of a process: its pid, and its start time, so that a later process with the same pid differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The pid.
    pub pid: u32,
    /// The start time in ticks of the kernel, its low bits; 0 if it is unknown.
    pub started: u32,
}

impl Identity {
    /// Return the identity of a process with an unknown start time.
    pub fn undated(pid: u32) -> Self {
        Self { pid, started: 0 }
    }

    /// Return the identity as one word, which is 0 only if the pid is.
    pub fn word(self) -> u64 {
        (u64::from(self.started) << 32 | u64::from(self.pid)) & !UNREADY
    }

    /// Return whether both may be the same process. An unknown start time matches any other.
    pub fn may_be(self, other: Self) -> bool {
        self.pid == other.pid
            && (self.started == other.started || self.started == 0 || other.started == 0)
    }

    /// Return the identity from its word; `None` for 0.
    pub fn from_word(word: u64) -> Option<Self> {
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default();
        (word != 0).then(|| Self {
            pid: half(word),
            started: half((word & !UNREADY) >> 32),
        })
    }
}

/// The record of one process.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// The number of the record.
    pub number: usize,
    /// The serial number of the process, which marks the segments that it owns. It is never given twice.
    pub serial: u64,
}

impl Record {
    /// Claim a record; `None` if all are taken.
    pub fn claim(memory: Memory<'_>, identity: Identity) -> Option<Self> {
        let unready = identity.word() | UNREADY;
        let claim = |number: &usize| {
            let word = memory.record(*number, IDENTITY);
            word.compare_exchange(0, unready, AcqRel, Relaxed).is_ok()
        };
        let number = (0..memory.layout().processes).find(claim)?;
        let top = memory.header(Header::Records);
        top.fetch_max(number as u64 + 1, AcqRel);
        let before = memory.header(Header::Processes).fetch_add(1, Relaxed);
        // The owner word of a segment has 55 bits for it, and 0 is no owner.
        let serial = before % (1 << 55) + 1;
        memory.record(number, SERIAL).store(serial, Relaxed);
        for word in SERIAL + 1..RECORD {
            memory.record(number, word).store(0, Relaxed);
        }
        memory
            .record(number, IDENTITY)
            .store(identity.word(), Release);
        Some(Self { number, serial })
    }

    /// Return whether this is, or may be, the record of that process.
    pub fn is_of(self, memory: Memory<'_>, identity: Identity) -> bool {
        let word = memory.record(self.number, IDENTITY).load(Acquire);
        Identity::from_word(word).is_some_and(|its| its.may_be(identity))
    }

    /// Set a number.
    pub fn set(self, memory: Memory<'_>, field: Field, value: u64) {
        memory
            .record(self.number, field.word())
            .store(value, Relaxed);
    }

    /// Add to a number.
    pub fn add(self, memory: Memory<'_>, field: Field, more: u64) {
        memory
            .record(self.number, field.word())
            .fetch_add(more, Relaxed);
    }

    /// Set and clear bits of a number.
    pub fn set_bits(self, memory: Memory<'_>, field: Field, on: u64, off: u64) {
        let word = memory.record(self.number, field.word());
        word.fetch_or(on, Relaxed);
        word.fetch_and(!off, Relaxed);
    }

    /// Return a number.
    pub fn get(self, memory: Memory<'_>, field: Field) -> u64 {
        memory.record(self.number, field.word()).load(Relaxed)
    }

    /// Return the word of a number, to use it in another order than the methods above.
    pub(super) fn word(self, memory: Memory<'_>, field: Field) -> &AtomicU64 {
        memory.record(self.number, field.word())
    }

    /// Free the record, unless it was claimed anew since `word` was its identity word.
    pub fn release(self, memory: Memory<'_>, word: u64) {
        // The next process to claim the record writes all of it anew.
        let identity = memory.record(self.number, IDENTITY);
        let _ = identity.compare_exchange(word, 0, Release, Relaxed);
    }
}

const IDENTITY: usize = 0;
const SERIAL: usize = 1;
/// The bit of the identity word that is set while the claim is not complete.
const UNREADY: u64 = 1 << 63;

/// Return the record of a process: of the last process with that pid, and the first one of several records.
pub fn find(memory: Memory<'_>, pid: u32) -> Option<Record> {
    let of_the_pid = || all(memory).filter(|(identity, _)| identity.pid == pid);
    let (last, _) = of_the_pid().max_by_key(|(_, record)| record.serial)?;
    let mut its = of_the_pid().filter(|(identity, _)| *identity == last);
    its.next().map(|(_, record)| record)
}

/// Return the complete records with their processes.
pub fn all(memory: Memory<'_>) -> impl Iterator<Item = (Identity, Record)> {
    let ready = claimed(memory).filter(|(_, word, _)| word & UNREADY == 0);
    ready.map(|(identity, _, record)| (identity, record))
}

/// Return all claimed records, each with its process and its identity word.
pub fn claimed(memory: Memory<'_>) -> impl Iterator<Item = (Identity, u64, Record)> {
    let top = memory.header(Header::Records).load(Acquire);
    let top = usize::try_from(top).unwrap_or(usize::MAX);
    (0..top.min(memory.layout().processes)).filter_map(move |number| {
        let word = memory.record(number, IDENTITY).load(Acquire);
        let serial = memory.record(number, SERIAL).load(Acquire);
        // Identities are unique. If the word is unchanged, the serial number between belongs to it.
        let same = memory.record(number, IDENTITY).load(Acquire) == word;
        same.then_some((Identity::from_word(word)?, word, Record { number, serial }))
    })
}
