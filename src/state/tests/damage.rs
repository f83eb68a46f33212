//! Another program writes into the memory at random. A read then yields the value that was written, or an
//! error; never a panic.

use proptest::prelude::*;

use super::*;
use crate::state::heap::{GRANULE, SEGMENT};
use crate::state::reclaim;
use crate::state::records::{self, Field, Record};

/// The content of the table: small values, a block of several segments, and several keys.
const VALUES: [(&str, &str, usize); 5] = [
    ("one", "a", 1),
    ("one", "b", 300),
    ("two", "a", 0),
    ("two", "large", 20_000),
    ("three", "c", 5_000),
];

/// A word that is overwritten, and how.
#[derive(Debug, Clone)]
enum Scribble {
    Set(u64),
    Flip(u32),
    Add(u64),
    /// Overwrite it with the word in this place.
    Copy(prop::sample::Index),
}

fn scribbles() -> impl Strategy<Value = Vec<(prop::sample::Index, bool, Scribble)>> {
    let word = prop_oneof![
        any::<u64>(),
        0..300_u64,
        Just(u64::MAX),
        Just(1 << 63),
        (0..64_u32).prop_map(|bit| 1 << bit),
    ];
    let how = prop_oneof![
        word.clone().prop_map(Scribble::Set),
        (0..64_u32).prop_map(Scribble::Flip),
        word.prop_map(Scribble::Add),
        any::<prop::sample::Index>().prop_map(Scribble::Copy),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), how), 1..40)
}

fn value(name: &str, key: &str, size: usize) -> Vec<u8> {
    let byte = name.len() * 16 + key.len();
    vec![u8::try_from(byte % 256).unwrap(); size]
}

/// Return whether a read of a name yields written values only, nothing, or an error.
fn is_right(memory: Memory<'_>, name: &str) -> bool {
    let Ok(versions) = memory.versions(name.as_bytes(), |_| true) else {
        return true;
    };
    let keys = versions.iter().flat_map(|version| &version.keys);
    keys.clone().all(|(key, found)| {
        let is_it = |(one, text, size): &&(&str, &str, usize)| {
            *one == name
                && key.key == text.as_bytes()
                && found.as_ref() == Some(&value(one, text, *size))
        };
        VALUES.iter().any(|one| is_it(&one))
    })
}

/// Use every operation; each must end.
fn use_it(memory: Memory<'_>, writer: &mut Writer) {
    for bucket in 0..memory.layout().buckets {
        let _ = memory.read(bucket, |found| {
            let version = |entry| memory.version(entry, &mut |_| true);
            found
                .entries
                .iter()
                .map(version)
                .collect::<Option<Vec<_>>>()
        });
    }
    let all: HashSet<usize> = memory.live(|_| true);
    assert!(
        all.iter()
            .all(|granule| granule * GRANULE < memory.layout().words())
    );
    reclaim::reclaim(memory, |identity| identity.pid % 2 == 0);
    let record = Record::claim(memory, Identity::undated(9));
    let _ = records::find(memory, 9).map(|record| record.get(memory, Field::Count));
    let mut next = Writer::new(record.map_or(99, |record| record.serial));
    for writer in [writer, &mut next] {
        for (name, key, size) in VALUES {
            let _ = merge(writer, memory, name, &[(key, &value(name, key, size + 1))]);
            let _ = put(writer, memory, name, &[(key, &value(name, key, size))]);
            let _ = change(writer, memory, name).hand_over(9, &[]);
            let _ = remove(writer, memory, name);
        }
    }
    reclaim::free_abandoned(memory, 1);
    segments::abandon(memory, |_| true);
    let _ = fits(memory, 77, 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_read_yields_a_written_value_or_an_error(scribbles in scribbles()) {
        let (words, layout) = room(24);
        let memory = Memory::new(&words, layout).unwrap();
        let mut writer = Writer::new(Record::claim(memory, Identity::undated(7)).unwrap().serial);
        for name in ["one", "two", "three"] {
            put(&mut writer, memory, name, &[]).unwrap();
        }
        for (name, key, size) in VALUES {
            merge(&mut writer, memory, name, &[(key, &value(name, key, size))]).unwrap();
        }
        let begins = layout.heap();
        for (at, is_head, how) in scribbles {
            // Half of the damage goes before the heap, on which everything else depends.
            let at = at.index(if is_head { begins } else { begins + 6 * SEGMENT });
            let before = words[at].load(Ordering::Relaxed);
            let new = match how {
                Scribble::Set(word) => word,
                Scribble::Flip(bit) => before ^ 1 << bit,
                Scribble::Add(more) => before.wrapping_add(more),
                Scribble::Copy(from) => words[from.index(begins + 6 * SEGMENT)].load(Ordering::Relaxed),
            };
            words[at].store(new, Ordering::Relaxed);
        }
        for name in ["one", "two", "three"] {
            prop_assert!(is_right(memory, name));
        }
        use_it(memory, &mut writer);
    }

    #[test]
    fn random_words_do_no_harm(seed: u64, small: bool, density in 1..8_u64) {
        let (words, layout) = room(24);
        let mut state = seed | 1;
        for word in &words {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let one = if small { state % 600 } else { state };
            word.store(if state % density == 0 { one } else { 0 }, Ordering::Relaxed);
        }
        let memory = Memory::reopen(&words, layout);
        use_it(memory, &mut Writer::new(3));
    }
}

/// An owner word may claim a block that would reach beyond the memory.
#[test]
fn an_impossible_size_is_no_block() {
    let (words, layout) = room(8);
    let memory = Memory::new(&words, layout).unwrap();
    for segment in 0..8 {
        for mark in 0..=255 {
            memory
                .owner(segment)
                .store(1 << 8 | mark, Ordering::Relaxed);
            if let Some((_, class)) = segments::owner(memory, segment) {
                let last = segments::blocks(memory, segment, class).last().unwrap() * GRANULE;
                assert!(last + class.words() <= layout.words());
            }
        }
    }
    assert_eq!(segments::owner(memory, 8), None);
    assert_eq!(segments::owner(memory, usize::MAX), None);
}
