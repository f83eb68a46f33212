//! A process is stopped before any access to the memory, to continue later or to be killed.

use super::steps::{Fate, at_each_step, stopped_after};
use super::*;
use crate::state::writer::Refused;

const NAMES: [&str; 3] = ["entry", "other", "another"];
/// Larger than one segment.
const LARGE: usize = 16_400;
/// As few as suffice: two processes with blocks of two sizes, and a large block of two segments.
const SEGMENTS: usize = 7;

/// All entries, by name.
type Model = BTreeMap<String, Seen>;

/// A change of the table, and of its model.
struct Case {
    act: fn(&mut Writer, Memory<'_>) -> Result<(), Failure>,
    model: fn(&mut Model),
}

fn seen(pairs: &[(&str, &[u8])]) -> Seen {
    let pair = |(key, value): &(&str, &[u8])| ((*key).to_string(), value.to_vec());
    pairs.iter().map(pair).collect()
}

fn all(memory: Memory<'_>) -> Model {
    let entry = |name: &str| Some((name.to_string(), read(memory, name)?));
    NAMES.into_iter().filter_map(entry).collect()
}

const MERGE: Case = Case {
    act: |writer, memory| merge(writer, memory, "entry", &[("a", b"new"), ("c", b"new")]),
    model: |all| {
        let new = seen(&[("a", b"new"), ("c", b"new")]);
        all.get_mut("entry").unwrap().extend(new);
    },
};
const PUT: Case = Case {
    act: |writer, memory| put(writer, memory, "entry", &[("a", b"put"), ("b", b"put")]),
    model: |all| {
        let new = seen(&[("a", b"put"), ("b", b"put")]);
        all.insert("entry".to_string(), new);
    },
};
const MAKE: Case = Case {
    act: |writer, memory| put(writer, memory, "another", &[("a", b"made")]),
    model: |all| {
        all.insert("another".to_string(), seen(&[("a", b"made")]));
    },
};
const DISCARD: Case = Case {
    act: |writer, memory| {
        change(writer, memory, "entry")
            .discard(b"a", None)
            .map(drop)
    },
    model: |all| {
        all.get_mut("entry").unwrap().remove("a");
    },
};
const REMOVE: Case = Case {
    act: |writer, memory| remove(writer, memory, "entry"),
    model: |all| {
        all.remove("entry");
    },
};
const GROW: Case = Case {
    act: |writer, memory| merge(writer, memory, "entry", &[("a", &[7; LARGE])]),
    model: |all| {
        let new = seen(&[("a", &[7; LARGE])]);
        all.get_mut("entry").unwrap().extend(new);
    },
};
/// The change that another process makes while the first one is stopped.
const MEANWHILE: Case = Case {
    act: |writer, memory| {
        merge(writer, memory, "other", &[("b", b"meanwhile")])?;
        match merge(writer, memory, "entry", &[("b", b"meanwhile")]) {
            Err(Failure::NoEntry) => Ok(()),
            result => result,
        }
    },
    model: |all| {
        for name in ["other", "entry"] {
            if let Some(entry) = all.get_mut(name) {
                entry.extend(seen(&[("b", b"meanwhile")]));
            }
        }
    },
};

/// Return the model after these changes.
fn after(changes: &[&Case]) -> Model {
    let begin = seen(&[("a", b"old"), ("b", b"old")]);
    let mut all = Model::from(["entry", "other"].map(|name| (name.to_string(), begin.clone())));
    for change in changes {
        (change.model)(&mut all);
    }
    all
}

/// Stop a process at each step of a change, and let it continue or exit.
fn stop_at_each_step(change: &Case, fate: Fate) {
    let new = after(&[change]);
    let count = at_each_step(|steps| {
        let (words, layout) = room(SEGMENTS);
        let memory = Memory::new(&words, layout).unwrap();
        let (mut one, mut other) = (Writer::new(1), Writer::new(2));
        for name in ["entry", "other"] {
            put(&mut one, memory, name, &[("a", b"old"), ("b", b"old")]).unwrap();
        }
        merge(&mut other, memory, "other", &[("b", b"old")]).unwrap();
        let mut order = vec![change];
        let act = || (change.act)(&mut one, memory);
        let (result, was_stopped) = stopped_after(steps, act, || {
            let is_done = all(memory) == new;
            assert!(is_done || all(memory) == after(&[]), "at {steps}");
            (MEANWHILE.act)(&mut other, memory).unwrap();
            order.insert(usize::from(is_done), &MEANWHILE);
            if fate == Fate::Exits && !is_done {
                order.pop();
            }
            fate
        });
        let is_killed = was_stopped && fate == Fate::Exits;
        assert_eq!(result, (!is_killed).then_some(Ok(())), "at {steps}");
        assert_eq!(all(memory), after(&order), "at {steps}");

        abandon(memory, 1);
        assert!(owners(memory).is_subset(&[0, 2].into()), "at {steps}");
        for name in NAMES {
            let removed = remove(&mut other, memory, name);
            assert!(matches!(removed, Ok(()) | Err(Failure::NoEntry)));
        }
        abandon(memory, 2);
        for size in [LARGE, 1, 60] {
            let (kept, blocks) = (fits(memory, 3, size), blocks(memory, size));
            assert!(kept >= blocks, "of {size} at {steps}");
        }
        was_stopped
    });
    assert!(count > 20, "only {count} steps");
}

const CASES: [Case; 6] = [MERGE, PUT, MAKE, DISCARD, REMOVE, GROW];

#[test]
fn a_writer_killed_at_any_step_leaves_the_old_or_the_new_entry_and_all_its_space() {
    for change in CASES {
        stop_at_each_step(&change, Fate::Exits);
    }
}

#[test]
fn a_writer_stopped_at_any_step_blocks_no_other_and_continues_without_loss() {
    for change in CASES {
        stop_at_each_step(&change, Fate::Continues);
    }
}

#[test]
fn a_writer_without_space_changes_nothing_at_any_step() {
    at_each_step(|steps| {
        let (words, layout) = room(SEGMENTS - 1);
        let memory = Memory::new(&words, layout).unwrap();
        let (mut one, mut other) = (Writer::new(1), Writer::new(2));
        for name in ["entry", "other"] {
            put(&mut one, memory, name, &[("a", b"old"), ("b", b"old")]).unwrap();
        }
        merge(&mut other, memory, "other", &[("b", b"old")]).unwrap();
        let act = || (GROW.act)(&mut one, memory);
        let (result, was_stopped) = stopped_after(steps, act, || {
            assert_eq!(all(memory), after(&[]), "at {steps}");
            (MEANWHILE.act)(&mut other, memory).unwrap();
            Fate::Continues
        });
        assert_eq!(result, Some(Err(Failure::Refused(Refused::Full))));
        let changes: &[&Case] = if was_stopped { &[&MEANWHILE] } else { &[] };
        assert_eq!(all(memory), after(changes), "at {steps}");
        (MERGE.act)(&mut one, memory).unwrap();
        was_stopped
    });
}

#[test]
fn a_reader_stopped_at_any_step_sees_the_old_or_the_new_entry() {
    at_each_step(|steps| {
        let (words, layout) = room(SEGMENTS);
        let memory = Memory::new(&words, layout).unwrap();
        let mut writer = Writer::new(1);
        let mut write = |byte: u8| {
            let (short, long) = ([byte; 3], [byte; 20]);
            put(&mut writer, memory, "entry", &[("a", &short), ("b", &long)]).unwrap();
        };
        write(0);
        let mut last = 0;
        let read = || read(memory, "entry").unwrap();
        let (entry, was_stopped) = stopped_after(steps, read, || {
            // Often enough that each block is filled anew.
            for byte in 1..=255 {
                write(byte);
                write(byte);
            }
            last = 255;
            Fate::Continues
        });
        let entry = entry.unwrap();
        let byte = entry["a"][0];
        assert!([0, last].contains(&byte), "at {steps}");
        assert_eq!(
            entry,
            seen(&[("a", &[byte; 3]), ("b", &[byte; 20])]),
            "at {steps}"
        );
        was_stopped
    });
}
