//! Whatever something else writes into the memory: what is read is what was written, or an error; never a panic.

use proptest::prelude::*;

use super::*;
use crate::state::heap::{GRANULE, UNIT};
use crate::state::records::{self, Field, Slot};

/// What is in the table: small values, one that takes a block of several units, and many keys.
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
    /// With the word in this place.
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

/// What was written under a name, of which an error or nothing may be left.
fn is_right(memory: Memory<'_>, name: &str) -> bool {
    let Ok(parts) = memory.parts(name.as_bytes(), |_| true) else {
        return true;
    };
    let keys = parts.iter().flat_map(|part| &part.keys);
    keys.clone().all(|(key, found)| {
        let is_it = |(one, text, size): &&(&str, &str, usize)| {
            *one == name
                && key.key == text.as_bytes()
                && found.as_ref() == Some(&value(one, text, *size))
        };
        VALUES.iter().any(|one| is_it(&one))
    })
}

/// Do all that can be done, and see that it ends.
fn use_it(memory: Memory<'_>, writer: &mut Writer) {
    for bucket in 0..memory.layout().buckets {
        let _ = memory.read(bucket, |found| {
            let part = |entry| memory.part(entry, &mut |_| true);
            found.entries.iter().map(part).collect::<Option<Vec<_>>>()
        });
    }
    let all: HashSet<usize> = memory.live(|_| true);
    assert!(
        all.iter()
            .all(|granule| granule * GRANULE < memory.layout().words())
    );
    records::bury(memory, |who| who.pid % 2 == 0);
    let slot = Slot::take(memory, Identity::undated(9));
    let _ = records::of(memory, 9).map(|slot| slot.get(memory, Field::Requests));
    let mut newcomer = Writer::new(slot.map_or(99, |slot| slot.serial));
    for writer in [writer, &mut newcomer] {
        for (name, key, size) in VALUES {
            let _ = merge(writer, memory, name, &[(key, &value(name, key, size + 1))]);
            let _ = put(writer, memory, name, &[(key, &value(name, key, size))]);
            let _ = change(writer, memory, name).hand_over(9, &[]);
            let _ = remove(writer, memory, name);
        }
    }
    segments::recycle(memory, 1);
    segments::disown(memory, |_| true);
    let _ = fits(memory, 77, 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_written_or_an_error(scribbles in scribbles()) {
        let (words, layout) = room(24);
        let memory = Memory::new(&words, layout).unwrap();
        let mut writer = Writer::new(Slot::take(memory, Identity::undated(7)).unwrap().serial);
        for name in ["one", "two", "three"] {
            put(&mut writer, memory, name, &[]).unwrap();
        }
        for (name, key, size) in VALUES {
            merge(&mut writer, memory, name, &[(key, &value(name, key, size))]).unwrap();
        }
        let begins = layout.heap();
        for (at, is_head, how) in scribbles {
            // Half of them where it hurts most: what all else is found by.
            let at = at.index(if is_head { begins } else { begins + 6 * UNIT });
            let before = words[at].load(Ordering::Relaxed);
            let new = match how {
                Scribble::Set(word) => word,
                Scribble::Flip(bit) => before ^ 1 << bit,
                Scribble::Add(more) => before.wrapping_add(more),
                Scribble::Copy(from) => words[from.index(begins + 6 * UNIT)].load(Ordering::Relaxed),
            };
            words[at].store(new, Ordering::Relaxed);
        }
        for name in ["one", "two", "three"] {
            prop_assert!(is_right(memory, name));
        }
        use_it(memory, &mut writer);
    }

    #[test]
    fn random_words_are_no_table_that_harms(seed: u64, small: bool, density in 1..8_u64) {
        let (words, layout) = room(24);
        let mut state = seed | 1;
        for word in &words {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let one = if small { state % 600 } else { state };
            word.store(if state % density == 0 { one } else { 0 }, Ordering::Relaxed);
        }
        let memory = Memory::again(&words, layout);
        use_it(memory, &mut Writer::new(3));
    }
}

/// A block of two units whose first one says that there is one behind the end of the memory.
#[test]
fn a_size_that_cannot_be_is_none() {
    let (words, layout) = room(8);
    let memory = Memory::new(&words, layout).unwrap();
    for unit in 0..8 {
        for mark in 0..=255 {
            memory.owner(unit).store(1 << 8 | mark, Ordering::Relaxed);
            if let Some((_, class)) = segments::owner(memory, unit) {
                let last = segments::blocks(memory, unit, class).last().unwrap() * GRANULE;
                assert!(last + class.words() <= layout.words());
            }
        }
    }
    assert_eq!(segments::owner(memory, 8), None);
    assert_eq!(segments::owner(memory, usize::MAX), None);
}
