//! Questions to a process, and its answers.

use super::*;
use crate::state::questions::{self, Answerer, FIRST};
use crate::state::records::{Field, Record};

fn with_record(act: impl FnOnce(Memory<'_>, Record)) {
    let (words, layout) = room(1);
    let memory = Memory::new(&words, layout).unwrap();
    let record = Record::claim(memory, Identity::undated(7)).unwrap();
    act(memory, record);
}

#[test]
fn a_process_takes_questions_only_while_it_is_open() {
    with_record(|memory, record| {
        assert_eq!(questions::ask(memory, record), 0);
        assert_eq!(questions::answers(memory, record), (0, 0));
        questions::open(memory, record);
        assert_eq!(questions::ask(memory, record), FIRST + 1);
        assert_eq!(questions::ask(memory, record), FIRST + 2);
        assert_eq!(questions::last(memory, record), FIRST + 2);
        questions::close(memory, record);
        assert_eq!(questions::ask(memory, record), 0);
        assert_eq!(questions::last(memory, record), 0);
    });
}

#[test]
fn each_thread_has_an_answer_of_its_own() {
    with_record(|memory, record| {
        questions::open(memory, record);
        let number = questions::ask(memory, record);
        assert_eq!(questions::answers(memory, record), (FIRST, FIRST));
        questions::answer(memory, record, Answerer::Native, number);
        assert_eq!(questions::answers(memory, record), (number, FIRST));
        questions::answer(memory, record, Answerer::Interpreter, number);
        assert_eq!(questions::answers(memory, record), (number, number));
    });
}

#[test]
fn a_second_open_forgets_no_question() {
    with_record(|memory, record| {
        questions::open(memory, record);
        let number = questions::ask(memory, record);
        questions::answer(memory, record, Answerer::Native, number);
        questions::open(memory, record);
        assert_eq!(questions::last(memory, record), number);
        assert_eq!(questions::answers(memory, record), (number, FIRST));
    });
}

#[test]
fn a_record_that_is_claimed_anew_takes_no_questions() {
    with_record(|memory, record| {
        questions::open(memory, record);
        record.set(memory, Field::StackSignal, 64);
        record.release(memory, Identity::undated(7).word());
        let next = Record::claim(memory, Identity::undated(8)).unwrap();
        assert_eq!(next.number, record.number);
        assert_eq!(questions::ask(memory, next), 0);
        assert_eq!(next.get(memory, Field::StackSignal), 0);
    });
}
