//! Sheets: a cell is read as it was written, or not at all.

use proptest::prelude::*;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::processes::{Random, Shared, soak_rounds, stop};
use super::steps::{Fate, at_each_step, stopped_after};
use super::*;
use crate::state::sheet::Unfit;

const SIZES: [(u32, u32); 3] = [(3, 20), (1, 0), (2, 100)];

fn data(cells: &[Option<&[u8]>]) -> Vec<Option<Vec<u8>>> {
    cells.iter().map(|cell| cell.map(<[u8]>::to_vec)).collect()
}

#[test]
fn a_cell_holds_the_last_data_written() {
    let (words, layout, sheets) = room_with(&SIZES);
    let memory = Memory::new(&words, layout).unwrap();
    assert_eq!(sheets[0].read(memory), data(&[None; 3]));
    for text in [&b"first"[..], b"", &[7; 20], b"last"] {
        sheets[0].write(memory, 1, text).unwrap();
        assert_eq!(sheets[0].read(memory), data(&[None, Some(text), None]));
    }
    sheets[0].write(memory, 2, b"next").unwrap();
    assert_eq!(
        sheets[0].read(memory),
        data(&[None, Some(b"last"), Some(b"next")])
    );
    assert_eq!(sheets[1].read(memory), data(&[None]));
    assert_eq!(sheets[2].read(memory), data(&[None; 2]));
}

#[test]
fn data_that_do_not_fit_are_refused_and_change_nothing() {
    let (words, layout, sheets) = room_with(&SIZES);
    let memory = Memory::new(&words, layout).unwrap();
    sheets[0].write(memory, 2, b"kept").unwrap();
    sheets[1].write(memory, 0, b"").unwrap();
    assert_eq!(sheets[0].write(memory, 2, &[7; 21]), Err(Unfit::TooLong));
    assert_eq!(sheets[1].write(memory, 0, b"x"), Err(Unfit::TooLong));
    for index in [3, usize::MAX] {
        assert_eq!(sheets[0].write(memory, index, b""), Err(Unfit::NoCell));
    }
    assert_eq!(sheets[0].read(memory), data(&[None, None, Some(b"kept")]));
    assert_eq!(sheets[1].read(memory), data(&[Some(b"")]));
}

#[test]
fn only_cells_in_use_are_touched() {
    let (words, layout, sheets) = room_with(&[(1_000, 1_024)]);
    let memory = Memory::new(&words, layout).unwrap();
    let empty = steps::cost(|| drop(sheets[0].read(memory)));
    assert!(empty < 10, "{empty} accesses");
    sheets[0].write(memory, 0, &[7; 1_024]).unwrap();
    let one = steps::cost(|| drop(sheets[0].read(memory)));
    assert!(one < 150, "{one} accesses");
}

#[test]
fn sheets_and_entries_do_not_overlap() {
    let (words, layout, sheets) = room_with(&SIZES);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    put(&mut writer, memory, "entry", &[("key", &[7; 3_000])]).unwrap();
    let mut expected = Vec::new();
    for (number, sheet) in (1..).zip(&sheets) {
        let full = vec![number; sheet.bytes];
        for index in 0..sheet.cells {
            sheet.write(memory, index, &full).unwrap();
        }
        expected.push(vec![Some(full); sheet.cells]);
    }
    merge(&mut writer, memory, "entry", &[("key", &[8; 3_000])]).unwrap();
    let found: Vec<_> = sheets.iter().map(|sheet| sheet.read(memory)).collect();
    assert_eq!(found, expected);
    assert_eq!(read(memory, "entry").unwrap()["key"], [8; 3_000]);
}

#[test]
fn memory_with_other_sheets_is_refused() {
    let (words, layout, _) = room_with(&SIZES);
    Memory::new(&words, layout).unwrap();
    let other = Layout {
        sheets: layout.sheets - 8,
        ..layout
    };
    assert!(Memory::new(&words, other).is_err());
    assert!(Memory::new(&words, layout).is_ok());
}

/// A writer that is stopped at any step leaves the old data, no data, or the new data.
fn stop_at_each_step(fate: Fate) {
    let count = at_each_step(|steps| {
        let (words, layout, sheets) = room_with(&SIZES);
        let memory = Memory::new(&words, layout).unwrap();
        let sheet = sheets[0];
        sheet.write(memory, 0, b"old old old old").unwrap();
        sheet.write(memory, 1, b"beside").unwrap();
        let others = |cells: Vec<Option<Vec<u8>>>| {
            assert_eq!(cells[1..], data(&[Some(b"beside"), None]), "at {steps}");
            cells.into_iter().next().flatten()
        };
        let act = || sheet.write(memory, 0, b"new new new");
        let (result, was_stopped) = stopped_after(steps, act, || {
            let found = others(sheet.read(memory));
            let found = found.as_deref();
            let is_right =
                [None, Some(&b"old old old old"[..]), Some(b"new new new")].contains(&found);
            assert!(is_right, "{found:?} at {steps}");
            fate
        });
        if was_stopped && fate == Fate::Exits {
            // The next write mends the cell.
            sheet.write(memory, 0, b"mended").unwrap();
            assert_eq!(others(sheet.read(memory)).unwrap(), b"mended");
        } else {
            assert_eq!(result, Some(Ok(())));
            assert_eq!(others(sheet.read(memory)).unwrap(), b"new new new");
        }
        was_stopped
    });
    assert!(count > 5, "only {count} steps");
}

#[test]
fn a_writer_killed_at_any_step_leaves_a_cell_that_can_be_written_again() {
    stop_at_each_step(Fate::Exits);
}

#[test]
fn a_writer_stopped_at_any_step_completes_its_write() {
    stop_at_each_step(Fate::Continues);
}

#[test]
fn a_reader_copies_again_while_a_cell_is_written() {
    let (words, layout, sheets) = room_with(&SIZES);
    let memory = Memory::new(&words, layout).unwrap();
    sheets[0].write(memory, 0, b"old").unwrap();
    let reads = steps::cost(|| drop(sheets[0].read(memory)));
    for steps in 0..reads {
        // The reader is stopped, the cell is written, and the reader goes on.
        let read = || sheets[0].read(memory);
        let (found, was_stopped) = stopped_after(steps, read, || {
            sheets[0].write(memory, 0, b"new").unwrap();
            Fate::Continues
        });
        assert!(was_stopped);
        assert_eq!(
            found.unwrap()[0].as_deref(),
            Some(&b"new"[..]),
            "at {steps}"
        );
        sheets[0].write(memory, 0, b"old").unwrap();
    }
}

/// Fork a process that writes to two cells until it is killed. Each cell holds one byte, many times.
fn forked(memory: Memory<'_>, sheet: Sheet) -> Pid {
    // SAFETY: the child uses only this memory and its own heap, and never returns.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return Pid::from_raw(pid).unwrap();
    }
    for byte in (0..=255).cycle() {
        for index in 0..2 {
            if sheet
                .write(memory, index, &vec![byte; usize::from(byte)])
                .is_err()
            {
                stop();
            }
        }
    }
    stop()
}

#[test]
fn a_reader_sees_whole_cells_of_a_writer_killed_at_any_moment() {
    let (_, layout, sheets) = room_with(&[(2, 255)]);
    let (shared, sheet) = (Shared::new(layout), sheets[0]);
    let memory = shared.memory();
    let mut random = Random(42);
    for _ in 0..soak_rounds() * 50 {
        let writer = forked(memory, sheet);
        let mut seen = HashSet::new();
        let few = usize::try_from(2 + random.below(30)).unwrap();
        while seen.len() < few {
            for cell in sheet.read(memory).into_iter().flatten() {
                let byte = cell.first().copied().unwrap_or_default();
                assert_eq!(cell, vec![byte; usize::from(byte)], "torn");
                seen.insert(byte);
            }
        }
        kill_process(writer, Signal::KILL).unwrap();
        waitpid(Some(writer), WaitOptions::empty()).unwrap();
        let lost = sheet
            .read(memory)
            .into_iter()
            .filter(Option::is_none)
            .count();
        assert!(lost <= 1, "{lost} cells lost by one write");
        for index in 0..2 {
            sheet.write(memory, index, b"").unwrap();
        }
        assert_eq!(sheet.read(memory), data(&[Some(b""), Some(b"")]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cells_hold_what_a_list_would(
        writes in prop::collection::vec((0..2_usize, 0..4_usize, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
    ) {
        let (words, layout, sheets) = room_with(&[(3, 20), (4, 33)]);
        let memory = Memory::new(&words, layout).unwrap();
        let mut model = [vec![None; 3], vec![None; 4]];
        for (sheet, index, bytes) in writes {
            let result = sheets[sheet].write(memory, index, &bytes);
            if result.is_ok() {
                model[sheet][index] = Some(bytes);
            } else {
                prop_assert!(index >= sheets[sheet].cells || bytes.len() > sheets[sheet].bytes);
            }
        }
        for (sheet, cells) in sheets.iter().zip(&model) {
            prop_assert_eq!(&sheet.read(memory), cells);
        }
    }

    #[test]
    fn a_cell_that_another_program_has_changed_is_empty_until_it_is_written(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..20),
    ) {
        let (words, layout, sheets) = room_with(&SIZES);
        let memory = Memory::new(&words, layout).unwrap();
        for sheet in &sheets {
            for index in 0..sheet.cells {
                sheet.write(memory, index, &vec![7; sheet.bytes]).unwrap();
            }
        }
        for (place, word) in changes {
            let place = layout.sheets().start + place.index(layout.sheets);
            words[place].store(word, Ordering::Relaxed);
        }
        for sheet in &sheets {
            for cell in sheet.read(memory).into_iter().flatten() {
                prop_assert_eq!(cell, vec![7; sheet.bytes]);
            }
            for index in 0..sheet.cells {
                sheet.write(memory, index, &vec![8; sheet.bytes]).unwrap();
            }
            prop_assert_eq!(sheet.read(memory), vec![Some(vec![8; sheet.bytes]); sheet.cells]);
        }
    }
}
