//! Answers the questions of other processes whether this one is stuck, and puts such questions.
//!
//! A question wakes a thread of this process by a futex in the shared memory. So an idle process has no
//! descriptor for it, and does not wake up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::futex;

use crate::state::questions::{self, Answerer};
use crate::state::records::{self, Field, Record};
use crate::state::table::SharedTable;
use crate::state::writer::Refused;

/// The stack of the native thread, in bytes. It makes system calls and nothing else.
const STACK: usize = 64 << 10;

/// The reason why a process takes no questions.
#[derive(Debug)]
pub enum StartError {
    /// The state has no room for its record.
    Refused(Refused),
    /// The kernel refused the thread.
    Os(io::Error),
}

/// The questions to this process.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    pid: u32,
}

/// The part that the native thread uses.
#[derive(Debug)]
struct Shared {
    table: Arc<SharedTable>,
    record: Record,
    /// The signal that dumps the stacks, 0 for none, and the address of its handler.
    signal: AtomicI32,
    handler: AtomicUsize,
}

impl Responder {
    /// Take questions, and start the thread that answers them. It has the signal mask of the calling thread.
    pub fn start(table: Arc<SharedTable>) -> Result<Self, StartError> {
        let record = table.own_record().map_err(StartError::Refused)?;
        let shared = Arc::new(Shared {
            table,
            record,
            signal: AtomicI32::new(0),
            handler: AtomicUsize::new(0),
        });
        questions::open(shared.table.memory(), record);
        share_heap_if_limited();
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("responder".into())
            .stack_size(STACK)
            .spawn(move || its.answer_all());
        if let Err(error) = thread {
            shared.close();
            return Err(StartError::Os(error));
        }
        let pid = std::process::id();
        Ok(Self { shared, pid })
    }

    /// Wait for a question other than `after`; return its number, or 0 if no more are taken.
    pub fn next(&self, after: u64) -> u64 {
        if self.is_own() {
            self.shared.next(after)
        } else {
            0
        }
    }

    /// Note that the interpreter has answered a question.
    pub fn answer(&self, number: u64) {
        if self.is_own() {
            self.shared.answer(Answerer::Interpreter, number);
        }
    }

    /// Publish the number of a signal whose present handler dumps the stacks; 0 for none.
    pub fn set_signal(&self, signum: i32) {
        if self.is_own() {
            self.shared.handler.store(handler(signum), SeqCst);
            self.shared.signal.store(signum, SeqCst);
            self.shared.publish_signal(signum);
        }
    }

    /// Take no more questions: both threads end.
    pub fn close(&self) {
        if self.is_own() {
            self.shared.publish_signal(0);
            self.shared.close();
        }
    }

    /// Return whether this process took the questions. A fork of it has no such threads.
    fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Shared {
    fn answer_all(&self) {
        let mut last = questions::FIRST;
        loop {
            last = self.next(last);
            if last == 0 {
                return;
            }
            let signum = self.signal.load(SeqCst);
            // A handler that the application has set since then is no business of other processes.
            if signum != 0 && handler(signum) != self.handler.load(SeqCst) {
                self.signal.store(0, SeqCst);
                self.publish_signal(0);
            }
            self.answer(Answerer::Native, last);
        }
    }

    fn next(&self, after: u64) -> u64 {
        loop {
            let now = questions::last(self.table.memory(), self.record);
            if now != after {
                return now;
            }
            match futex::wait(self.word(), futex::Flags::empty(), low_half(now), None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                // A filter of system calls may refuse it. Then the process takes no questions.
                Err(_) => self.close(),
            }
        }
    }

    fn answer(&self, by: Answerer, number: u64) {
        questions::answer(self.table.memory(), self.record, by, number);
    }

    fn publish_signal(&self, signum: i32) {
        let number = u64::try_from(signum).unwrap_or_default();
        self.record
            .set(self.table.memory(), Field::StackSignal, number);
    }

    fn close(&self) {
        questions::close(self.table.memory(), self.record);
        wake(self.word());
    }

    fn word(&self) -> &AtomicU32 {
        word(&self.table, self.record)
    }
}

/// Put a question to a process; return its number, or 0 if the process takes none.
pub fn ask(table: &SharedTable, pid: u32) -> u64 {
    let Some(record) = records::find(table.memory(), pid) else {
        return 0;
    };
    let number = questions::ask(table.memory(), record);
    if number != 0 {
        wake(word(table, record));
    }
    number
}

/// Return the last questions that the native thread of a process and its interpreter have answered.
pub fn answers(table: &SharedTable, pid: u32) -> (u64, u64) {
    let record = records::find(table.memory(), pid);
    record.map_or((0, 0), |record| questions::answers(table.memory(), record))
}

/// Return the signal at which a process dumps its stacks; 0 for none.
pub fn signal(table: &SharedTable, pid: u32) -> u64 {
    let record = records::find(table.memory(), pid);
    record.map_or(0, |record| record.get(table.memory(), Field::StackSignal))
}

/// Let the threads share one heap if the address space is limited. Each heap of a thread reserves 64 MiB of it.
fn share_heap_if_limited() {
    #[cfg(target_env = "gnu")]
    if getrlimit(Resource::As).current.is_some() {
        // SAFETY: the call changes a parameter of the allocator.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Return the half of the question's word that the kernel compares: its low bits.
fn word(table: &SharedTable, record: Record) -> &AtomicU32 {
    let word = questions::word(table.memory(), record);
    let halves = std::ptr::from_ref(word).cast::<AtomicU32>();
    // SAFETY: the word has two halves and lives as long as the table. Only the kernel reads this half; all of
    // this program uses the whole word.
    unsafe { &*halves.add(usize::from(cfg!(target_endian = "big"))) }
}

fn low_half(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}

fn wake(word: &AtomicU32) {
    // The waiting threads are in other processes, so the futex is not private to this one.
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX.unsigned_abs());
}

/// Return the address of a signal's handler.
fn handler(signum: i32) -> usize {
    // SAFETY: all zeros is a valid value, and the kernel fills it in; the handler is not changed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signum, std::ptr::null(), &raw mut action);
        action.sa_sigaction
    }
}
