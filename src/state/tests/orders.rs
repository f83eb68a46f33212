//! Every order of events that the memory model allows, explored by `loom`.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::state::dirty_bits;
use crate::state::heap::{self, Class, Kind, Ref};
use crate::state::questions::{self, Answerer, FIRST};
use crate::state::records::{Field, Record};

/// Try every order, with at most that many preemptions.
fn in_every_order(preemptions: usize, act: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(act);
}

struct Room(Vec<AtomicU64>, Layout);

impl Room {
    fn new(units: usize) -> Arc<Self> {
        let (words, layout) = room(units);
        Arc::new(Self(words, layout))
    }

    fn memory(&self) -> Memory<'_> {
        Memory::reopen(&self.0, self.1)
    }
}

#[test]
fn a_reader_of_a_reference_sees_that_filling_or_none() {
    in_every_order(3, || {
        let shared = Arc::new((words(32), AtomicU64::new(0)));
        let publish = |shared: &(Vec<AtomicU64>, AtomicU64), granule, stamp| {
            let block = heap::fill(&shared.0, granule, stamp, Kind::Value, &[stamp, stamp]);
            shared.1.store(block.0, Ordering::Release);
        };
        publish(&shared, 1, 1);
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                publish(&shared, 2, 2);
                publish(&shared, 1, 3);
            })
        };
        let block = Ref(shared.1.load(Ordering::Acquire));
        if let Some(content) = heap::copy(&shared.0, block, Class(0), Kind::Value) {
            let stamp = block.0 >> heap::GRANULES;
            assert_eq!(content, [stamp, stamp]);
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_block_divided_anew_is_not_read_as_the_old_one() {
    in_every_order(3, || {
        let shared = Arc::new((words(40), AtomicU64::new(0)));
        let block = heap::fill(&shared.0, 2, 1, Kind::Value, &[1, 1]);
        shared.1.store(block.0, Ordering::Release);
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1.store(0, Ordering::Release);
                heap::erase(&shared.0, [1, 2].into_iter());
                // The new block covers both.
                heap::fill(&shared.0, 1, 2, Kind::Value, &[2; 12]);
            })
        };
        let block = Ref(shared.1.load(Ordering::Acquire));
        let content = heap::copy(&shared.0, block, Class(0), Kind::Value);
        if let Some(content) = content.filter(|_| block != Ref::NONE) {
            assert_eq!(content, [1, 1]);
        }
        writer.join().unwrap();
    });
}

#[test]
fn two_writers_of_one_entry_lose_no_change() {
    in_every_order(2, || {
        let room = Room::new(8);
        put(&mut Writer::new(3), room.memory(), "entry", &[]).unwrap();
        let other = {
            let room = room.clone();
            thread::spawn(move || {
                let mut writer = Writer::new(2);
                merge(&mut writer, room.memory(), "entry", &[("b", b"2")]).unwrap();
            })
        };
        let mut writer = Writer::new(1);
        merge(&mut writer, room.memory(), "entry", &[("a", b"1")]).unwrap();
        other.join().unwrap();
        let entry = read(room.memory(), "entry").unwrap();
        let pair = |key: &str, value: &[u8]| (key.to_string(), value.to_vec());
        assert_eq!(entry, [pair("a", b"1"), pair("b", b"2")].into());
    });
}

#[test]
fn a_reader_sees_a_merge_whole_or_not_at_all() {
    in_every_order(2, || {
        let room = Room::new(8);
        let mut writer = Writer::new(1);
        put(
            &mut writer,
            room.memory(),
            "entry",
            &[("a", b"1"), ("b", b"1")],
        )
        .unwrap();
        let other = {
            let room = room.clone();
            thread::spawn(move || {
                merge(
                    &mut writer,
                    room.memory(),
                    "entry",
                    &[("a", b"2"), ("b", b"2")],
                )
                .unwrap();
            })
        };
        let entry = read(room.memory(), "entry").unwrap();
        assert_eq!(entry["a"], entry["b"]);
        other.join().unwrap();
    });
}

#[test]
fn a_reader_sees_one_write_of_a_cell_or_none() {
    in_every_order(3, || {
        let (words, layout, sheets) = room_with(&[(1, 16)]);
        let (room, sheet) = (Arc::new(Room(words, layout)), sheets[0]);
        sheet.write(room.memory(), 0, &[1; 16]).unwrap();
        let writer = {
            let room = room.clone();
            thread::spawn(move || {
                sheet.write(room.memory(), 0, &[2; 16]).unwrap();
                sheet.write(room.memory(), 0, &[3; 16]).unwrap();
            })
        };
        // Before its check word is compared: that would hide a copy of two writes.
        if let Some(copy) = sheet.copy(room.memory(), 0) {
            let contents = (1..=3).map(|byte| node::value(&[byte; 16]));
            assert!(contents.into_iter().any(|content| copy.content == content));
        }
        writer.join().unwrap();
        assert_eq!(sheet.read(room.memory()), [Some(vec![3; 16])]);
    });
}

#[test]
fn no_wakeup_is_lost() {
    in_every_order(4, || {
        let room = Room::new(1);
        let writer = {
            let room = room.clone();
            thread::spawn(move || {
                dirty_bits::set(room.memory(), 0);
                dirty_bits::is_armed(room.memory())
            })
        };
        let is_dirty = dirty_bits::arm(room.memory());
        let wakes = writer.join().unwrap();
        assert!(is_dirty || wakes);
    });
}

/// Return the memory with the record of a process that takes questions.
fn asked() -> (Arc<Room>, Record) {
    let room = Room::new(1);
    let record = Record::claim(room.memory(), Identity::undated(7)).unwrap();
    questions::open(room.memory(), record);
    (room, record)
}

#[test]
fn an_answer_shows_all_that_was_written_before_it() {
    in_every_order(4, || {
        let (room, record) = asked();
        let responder = {
            let room = room.clone();
            thread::spawn(move || {
                let last = questions::last(room.memory(), record);
                if last != FIRST {
                    record.set(room.memory(), Field::Count, last);
                    questions::answer(room.memory(), record, Answerer::Interpreter, last);
                }
                last
            })
        };
        let number = questions::ask(room.memory(), record);
        if questions::answers(room.memory(), record).1 == number {
            assert_eq!(record.get(room.memory(), Field::Count), number);
        }
        let seen = responder.join().unwrap();
        assert!(seen == FIRST || seen == number);
    });
}

#[test]
fn no_question_is_lost_or_put_twice() {
    in_every_order(4, || {
        let (room, record) = asked();
        let ask = |room: Arc<Room>| move || questions::ask(room.memory(), record);
        let other = thread::spawn(ask(room.clone()));
        let own = ask(room.clone())();
        let other = other.join().unwrap();
        assert_eq!(own.min(other), FIRST + 1);
        assert_eq!(own.max(other), FIRST + 2);
        assert_eq!(questions::last(room.memory(), record), FIRST + 2);
    });
}

#[test]
fn no_question_is_taken_after_the_close() {
    in_every_order(4, || {
        let (room, record) = asked();
        let asker = {
            let room = room.clone();
            thread::spawn(move || questions::ask(room.memory(), record))
        };
        questions::close(room.memory(), record);
        let number = asker.join().unwrap();
        assert!(number == 0 || number == FIRST + 1);
        assert_eq!(questions::last(room.memory(), record), 0);
    });
}
