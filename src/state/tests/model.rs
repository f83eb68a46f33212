//! Random changes by several processes, some of which exit: the table behaves as a map of maps.

use proptest::prelude::*;

use super::*;
use crate::state::writer::Refused;

/// The number of processes.
const WRITERS: usize = 3;

/// A random step.
#[derive(Debug, Clone)]
enum Step {
    Put(usize, u8, Vec<(u8, usize)>),
    Merge(usize, u8, Vec<(u8, usize)>),
    Discard(usize, u8, u8),
    Remove(usize, u8),
    /// The process exits in the middle of a change.
    Exit(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (writer, name, key) = (0..WRITERS, 0..5_u8, 0..4_u8);
    let size = prop_oneof![8 => 0..200_usize, 2 => 200..5_000_usize, 1 => 5_000..60_000_usize];
    let pairs = prop::collection::vec((key.clone(), size), 0..4);
    prop::collection::vec(
        prop_oneof![
            2 => (writer.clone(), name.clone(), pairs.clone()).prop_map(|(w, n, p)| Step::Put(w, n, p)),
            6 => (writer.clone(), name.clone(), pairs).prop_map(|(w, n, p)| Step::Merge(w, n, p)),
            2 => (writer.clone(), name.clone(), key).prop_map(|(w, n, k)| Step::Discard(w, n, k)),
            2 => (writer.clone(), name).prop_map(|(w, n)| Step::Remove(w, n)),
            1 => writer.prop_map(Step::Exit),
        ],
        1..120,
    )
}

fn named(pairs: &[(u8, usize)], round: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut unique: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, size) in pairs {
        let byte = u8::try_from(round % 251).unwrap();
        unique.insert(format!("key-{key}"), vec![byte; *size]);
    }
    (unique.into_iter())
        .map(|(key, value)| (key.into_bytes(), value))
        .collect()
}

fn seen(pairs: &[(Vec<u8>, Vec<u8>)]) -> Seen {
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    pairs
        .iter()
        .map(|(key, value)| (text(key), value.clone()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_a_map_of_maps(steps in steps()) {
        let (words, layout) = room(48);
        let memory = Memory::new(&words, layout).unwrap();
        let mut serial = WRITERS as u64;
        let mut writers: Vec<Writer> = (0..WRITERS).map(|one| Writer::new(1 + one as u64)).collect();
        let mut serials: Vec<u64> = (1..=serial).collect();
        let mut model: BTreeMap<String, Seen> = BTreeMap::new();
        for (round, step) in steps.iter().enumerate() {
            let full = Err(Failure::Refused(Refused::Full));
            match step {
                Step::Put(writer, name, pairs) => {
                    let (name, pairs) = (format!("entry-{name}"), named(pairs, round));
                    let done = change(&mut writers[*writer], memory, &name).put(&pairs);
                    if done == full {
                        continue;
                    }
                    done.unwrap();
                    model.insert(name, seen(&pairs));
                }
                Step::Merge(writer, name, pairs) => {
                    let (name, pairs) = (format!("entry-{name}"), named(pairs, round));
                    let done = change(&mut writers[*writer], memory, &name).merge(&pairs, None);
                    if done == full {
                        continue;
                    }
                    if let Some(entry) = model.get_mut(&name) {
                        done.unwrap();
                        entry.extend(seen(&pairs));
                    } else {
                        prop_assert_eq!(done, Err(Failure::NoEntry));
                    }
                }
                Step::Discard(writer, name, key) => {
                    let (name, key) = (format!("entry-{name}"), format!("key-{key}"));
                    let done = change(&mut writers[*writer], memory, &name).discard(key.as_bytes(), None);
                    let there = model.get_mut(&name).map(|entry| entry.remove(&key).is_some());
                    match there {
                        None => prop_assert_eq!(done, Err(Failure::NoEntry)),
                        Some(false) => prop_assert_eq!(done, Err(Failure::NoKey)),
                        Some(true) => prop_assert_eq!(done, Ok(true)),
                    }
                }
                Step::Remove(writer, name) => {
                    let name = format!("entry-{name}");
                    let done = remove(&mut writers[*writer], memory, &name);
                    let there = model.remove(&name).is_some();
                    prop_assert_eq!(done, if there { Ok(()) } else { Err(Failure::NoEntry) });
                }
                Step::Exit(writer) => {
                    let _ = writers[*writer].value(memory, &vec![1; 300]);
                    abandon(memory, serials[*writer]);
                    serial += 1;
                    serials[*writer] = serial;
                    writers[*writer] = Writer::new(serial);
                }
            }
            for (name, entry) in &model {
                let found = read(memory, name);
                prop_assert_eq!(found.as_ref(), Some(entry));
            }
        }
        for name in model.keys() {
            remove(&mut writers[0], memory, name).unwrap();
        }
        for serial in serials {
            abandon(memory, serial);
        }
        // All segments but the reserve.
        prop_assert!(fits(memory, serial + 1, 10_000) >= 48 - 12);
    }
}
