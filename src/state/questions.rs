//! Questions to a process and its answers, by which another process finds what of it is stuck.
//!
//! A question is a number in the record of the process. Two threads of the process wait for it: a native one,
//! which answers at once, and one of the interpreter, which first needs the GIL. Each writes the number of the
//! question into a word of its own. A new question is also an answer to wait for in place of all before it.

use super::memory::Memory;
use super::records::{Field, Record};
use super::sync::AtomicU64;
use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// The number before the first question.
pub const FIRST: u64 = 1;

/// The thread that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answerer {
    /// A thread that never waits for the interpreter.
    Native,
    /// A thread of the interpreter.
    Interpreter,
}

impl Answerer {
    fn field(self) -> Field {
        match self {
            Self::Native => Field::NativeAnswer,
            Self::Interpreter => Field::InterpreterAnswer,
        }
    }
}

/// Take questions from now on. Nothing changes if the process takes them already.
pub fn open(memory: Memory<'_>, record: Record) {
    let question = record.word(memory, Field::Question);
    if question.load(Relaxed) == 0 {
        answer(memory, record, Answerer::Native, FIRST);
        answer(memory, record, Answerer::Interpreter, FIRST);
        question.store(FIRST, Release);
    }
}

/// Take no questions any more.
pub fn close(memory: Memory<'_>, record: Record) {
    record.word(memory, Field::Question).swap(0, AcqRel);
}

/// Put a question; return its number, or 0 if the process takes none.
pub fn ask(memory: Memory<'_>, record: Record) -> u64 {
    let question = record.word(memory, Field::Question);
    let mut last = question.load(Acquire);
    while last != 0 {
        match question.compare_exchange(last, last + 1, AcqRel, Acquire) {
            Ok(_) => return last + 1,
            Err(now) => last = now,
        }
    }
    0
}

/// Return the number of the last question; 0 if the process takes none.
pub fn last(memory: Memory<'_>, record: Record) -> u64 {
    record.word(memory, Field::Question).load(Acquire)
}

/// Answer a question. A process that reads the answer also sees all that this thread has written before.
pub fn answer(memory: Memory<'_>, record: Record, by: Answerer, number: u64) {
    record.word(memory, by.field()).store(number, Release);
}

/// Return the last questions answered by the native thread and by the interpreter.
pub fn answers(memory: Memory<'_>, record: Record) -> (u64, u64) {
    let answer = |by: Answerer| record.word(memory, by.field()).load(Acquire);
    (answer(Answerer::Native), answer(Answerer::Interpreter))
}

/// Return the word that changes with each question, for a thread that waits for the next one.
pub fn word(memory: Memory<'_>, record: Record) -> &AtomicU64 {
    record.word(memory, Field::Question)
}
