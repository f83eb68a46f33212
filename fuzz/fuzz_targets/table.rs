//! Another program has written into the memory of the table: every operation still ends, without a panic.
//!
//! The first byte of the input decides whether the memory held a table before. Words to overwrite follow: two
//! bytes of place, one of operation, and eight of the new word.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use _native::state::change::Change;
use _native::state::heap::SEGMENT;
use _native::state::layout::Layout;
use _native::state::liveness::Liveness;
use _native::state::memory::Memory;
use _native::state::reclaim;
use _native::state::records::{Identity, Record};
use _native::state::segments;
use _native::state::sheet::{self, Sheet};
use _native::state::writer::Writer;
use libfuzzer_sys::fuzz_target;

const LAYOUT: Layout = Layout {
    buckets: 64,
    processes: 4,
    sheets: 40,
    segments: 16,
};
/// The number of cells of the one sheet, and the bytes of each.
const SHEET: (u32, u32) = (4, 40);
const VALUES: [(&[u8], &[u8], usize); 4] = [
    (b"one", b"a", 1),
    (b"one", b"b", 300),
    (b"two", b"large", 40_000),
    (b"three", b"c", 5_000),
];

fuzz_target!(|input: &[u8]| {
    let [filled, scribbles @ ..] = input else {
        return;
    };
    let words: Vec<AtomicU64> = (0..LAYOUT.words()).map(|_| AtomicU64::new(0)).collect();
    let Ok(memory) = Memory::new(&words, LAYOUT) else {
        panic!("zeros are a table");
    };
    let mut writer =
        Writer::new(Record::claim(memory, Identity::undated(7)).map_or(1, |record| record.serial));
    let (sheets, taken) = sheet::lay_out([SHEET].into_iter());
    assert_eq!(taken, LAYOUT.sheets);
    if filled % 2 == 1 {
        write(memory, &mut writer);
        write_cells(memory, sheets[0], b'x');
    }
    // The words in use: the parts before the heap, and the first segments.
    let used = LAYOUT.heap() + 8 * SEGMENT;
    for scribble in scribbles.chunks_exact(11) {
        let at = usize::from(u16::from_le_bytes([scribble[0], scribble[1]])) % used;
        let mut word = [0; 8];
        word.copy_from_slice(&scribble[3..]);
        let (before, word) = (words[at].load(Relaxed), u64::from_le_bytes(word));
        let other = usize::try_from(word % used as u64).unwrap_or_default();
        words[at].store(
            match scribble[2] % 4 {
                0 => word,
                1 => before ^ word,
                2 => before.wrapping_add(word),
                _ => words[other].load(Relaxed),
            },
            Relaxed,
        );
    }
    for (name, key, size) in VALUES {
        for version in memory.versions(name, |_| true).into_iter().flatten() {
            for (found, value) in version.keys {
                if found.key == key {
                    assert_eq!(value, Some(vec![b'x'; size]));
                }
            }
        }
    }
    for cell in sheets[0].read(memory).into_iter().flatten() {
        assert_eq!(cell, vec![b'x'; sheets[0].bytes]);
    }
    write_cells(memory, sheets[0], b'y');
    let cell = Some(vec![b'y'; sheets[0].bytes]);
    assert_eq!(sheets[0].read(memory), vec![cell; sheets[0].cells]);
    use_it(memory, &mut writer);
});

fn write_cells(memory: Memory<'_>, sheet: Sheet, byte: u8) {
    for index in 0..sheet.cells {
        let result = sheet.write(memory, index, &vec![byte; sheet.bytes]);
        assert_eq!(result, Ok(()));
    }
}

fn change<'a, 'b>(writer: &'a mut Writer, memory: Memory<'b>, name: &'a [u8]) -> Change<'a, 'b> {
    Change {
        writer,
        memory,
        name,
        liveness: &|_| Liveness::Unknown,
    }
}

fn write(memory: Memory<'_>, writer: &mut Writer) {
    for (name, key, size) in VALUES {
        let pairs = [(key.to_vec(), vec![b'x'; size])];
        if change(writer, memory, name).merge(&pairs, None).is_err() {
            let _ = change(writer, memory, name).put(&pairs);
        }
    }
}

fn use_it(memory: Memory<'_>, writer: &mut Writer) {
    for bucket in 0..LAYOUT.buckets {
        let _ = memory.read(bucket, |found| Some(found.entries.len()));
    }
    let _ = memory.live(|_| true);
    reclaim::reclaim(memory, |identity| identity.pid % 2 == 0);
    write(memory, writer);
    let record = Record::claim(memory, Identity::undated(9));
    let mut next = Writer::new(record.map_or(99, |record| record.serial));
    write(memory, &mut next);
    for (name, key, _) in VALUES {
        let _ = change(&mut next, memory, name).hand_over(9, &[]);
        let _ = change(writer, memory, name).discard(key, None);
        let _ = change(&mut next, memory, name).drop_staged(9);
        let _ = change(writer, memory, name).remove();
    }
    reclaim::free_abandoned(memory, 3);
    segments::abandon(memory, |_| true);
}
