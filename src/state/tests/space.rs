//! The space of the table: how it is taken and released.

use super::steps::cost;
use super::*;
use crate::state::heap::SEGMENT;
use crate::state::writer::Refused;

const FULL: Result<(), Failure> = Err(Failure::Refused(Refused::Full));

/// Return two names in one bucket.
fn neighbours(memory: Memory<'_>) -> [String; 2] {
    let bucket = |name: &String| memory.bucket_of(name.as_bytes());
    let mut names = (0..).map(|number| format!("entry-{number}"));
    let one = names.next().unwrap();
    let other = names.find(|name| bucket(name) == bucket(&one)).unwrap();
    [one, other]
}

/// Create entries with a value of that size until no space is left; return their names.
fn fill(writer: &mut Writer, memory: Memory<'_>, size: usize) -> Vec<String> {
    let names = (0..).map(|number| format!("filler-{number}"));
    let value = vec![7; size];
    let made = |name: &String| match put(writer, memory, name, &[("key", &value)]) {
        Ok(()) => true,
        result => {
            assert_eq!(result, FULL);
            false
        }
    };
    names.take_while(made).collect()
}

#[test]
fn abandoned_segments_without_a_free_block_are_no_obstacle() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let mut exited = Writer::new(1);
    for number in 0..1_000 {
        put(
            &mut exited,
            memory,
            &format!("entry-{number}"),
            &[("key", b"1")],
        )
        .unwrap();
    }
    abandon(memory, 1);
    let mut successor = Writer::new(2);
    for number in 0..1_000 {
        let name = format!("entry-{number}");
        merge(&mut successor, memory, &name, &[("key", b"2")]).unwrap();
        assert_eq!(read(memory, &name).unwrap()["key"], b"2");
    }
}

#[test]
fn a_successor_releases_all_that_it_has_adopted() {
    let (words, layout) = room(16);
    let memory = Memory::new(&words, layout).unwrap();
    let (several, one) = (vec![7; 3 * SEGMENT * 8], vec![7; SEGMENT * 4]);
    let all = fits(memory, 1, one.len());
    Writer::new(2).value(memory, &several).unwrap();
    abandon(memory, 2);
    let mut successor = Writer::new(3);
    successor.value(memory, &several).unwrap();
    successor.discard(memory);
    // It needs the space for other blocks, and exits as well.
    while successor.value(memory, &one).is_ok() {}
    abandon(memory, 3);
    assert_eq!(fits(memory, 4, one.len()), all);
}

#[test]
fn a_refused_change_leaves_the_table_as_it_was() {
    let (words, layout) = room(32);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    let names = fill(&mut writer, memory, 3_000);
    let before: Vec<_> = names.iter().map(|name| read(memory, name)).collect();
    for size in [3_000, 60_000, 1 << 24] {
        let large = vec![8; size];
        let new: [(&str, &[u8]); 3] = [("key", b"small"), ("large", &large), ("other", &large)];
        assert_eq!(merge(&mut writer, memory, &names[0], &new), FULL);
        assert_eq!(put(&mut writer, memory, "another", &new), FULL);
        assert_eq!(merge(&mut Writer::new(2), memory, &names[1], &new), FULL);
        abandon(memory, 2);
    }
    let after: Vec<_> = names.iter().map(|name| read(memory, name)).collect();
    assert_eq!(before, after);
    assert_eq!(read(memory, "another"), None);
}

#[test]
fn any_process_can_remove_from_a_full_table() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    for name in neighbours(memory) {
        put(&mut writer, memory, &name, &[("a", b"1"), ("b", b"2")]).unwrap();
    }
    let names = fill(&mut writer, memory, 3_000);
    let mut other = Writer::new(2);
    let [one, another] = neighbours(memory);
    assert_eq!(merge(&mut other, memory, &one, &[("c", &[7; 3_000])]), FULL);
    assert_eq!(
        change(&mut other, memory, &one).discard(b"a", None),
        Ok(true)
    );
    assert_eq!(remove(&mut other, memory, &another), Ok(()));
    for name in &names {
        assert_eq!(remove(&mut other, memory, name), Ok(()));
    }
    assert_eq!(
        read(memory, &one),
        Some([("b".to_string(), b"2".to_vec())].into())
    );
    assert_eq!(fill(&mut writer, memory, 3_000).len(), names.len());
}

#[test]
fn blocks_removed_by_another_process_return_to_their_owner() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let (mut one, mut other) = (Writer::new(1), Writer::new(2));
    let names = fill(&mut one, memory, 3_000);
    for _ in 0..20 {
        for name in &names {
            remove(&mut other, memory, name).unwrap();
        }
        assert_eq!(fill(&mut one, memory, 3_000), names);
    }
}

#[test]
fn segments_emptied_by_others_are_free_once_their_owner_writes_again() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let (mut owner, mut other) = (Writer::new(1), Writer::new(2));
    put(&mut owner, memory, "mine", &[("key", b"1")]).unwrap();
    let names = fill(&mut owner, memory, 10_000);
    for name in &names {
        remove(&mut other, memory, name).unwrap();
    }
    // The smallest change, for which there was a free block all the time.
    merge(&mut owner, memory, "mine", &[("key", b"2")]).unwrap();
    assert!(fits(memory, 3, 10_000) + 4 >= names.len());
    assert_eq!(read(memory, "mine").unwrap()["key"], b"2");
}

#[test]
fn an_essential_change_finds_space_in_a_full_table() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    fill(&mut Writer::new(1), memory, 3_000);
    let mut next = Writer::new(2);
    assert_eq!(put(&mut next, memory, "new", &[("pid", b"7")]), FULL);
    next.may_use_reserve = true;
    put(&mut next, memory, "new", &[("pid", b"7")]).unwrap();
    merge(&mut next, memory, "new", &[("state", b"ACKED")]).unwrap();
    assert_eq!(read(memory, "new").unwrap().len(), 2);
}

#[test]
fn values_come_and_go_in_the_same_space_for_ever() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writers = [Writer::new(1), Writer::new(2)];
    put(&mut writers[0], memory, "entry", &[]).unwrap();
    let taken = || memory.header(Header::Top).load(Ordering::Relaxed);
    let mut write = |rounds: usize| {
        for round in 0..rounds {
            let value = vec![7; [1, 100, 3_000, 40_000][round % 4]];
            let writer = &mut writers[round % 2];
            merge(writer, memory, "entry", &[("key", &value)]).unwrap();
        }
        taken()
    };
    let least = write(2_000);
    assert_eq!(write(10_000), least);
}

#[test]
fn only_used_memory_is_touched() {
    let (words, layout) = room(10_000);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    let size = 1 << 20;
    put(&mut writer, memory, "entry", &[("key", &vec![7; size])]).unwrap();
    put(&mut writer, memory, "other", &[("key", b"1")]).unwrap();
    abandon(memory, 1);
    let mut successor = Writer::new(2);
    put(&mut successor, memory, "other", &[("key", b"2")]).unwrap();
    let touched = |word: &&AtomicU64| word.load(Ordering::Relaxed) != 0;
    // The block, the owner words of its segments, and the small parts.
    let most = size / 8 + Class::of(size / 8).shape().0 + 200;
    assert!(words.iter().filter(touched).count() < most);
    let owners = cost(|| abandon(memory, 2));
    assert!(owners < 200, "{owners} accesses");
}

#[test]
fn the_cost_of_a_change_does_not_grow_with_the_table() {
    let layout = Layout {
        buckets: 4_096,
        processes: 4,
        sheets: 0,
        segments: 6_000,
    };
    let words = words(layout.words());
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    put(&mut writer, memory, "entry", &[("key", b"1")]).unwrap();
    let mut costs = Vec::new();
    for number in 0..5 {
        for filler in 0..500 {
            // Each takes a segment.
            let name = format!("{number} {filler}");
            put(&mut writer, memory, &name, &[("key", &[7; 9_000])]).unwrap();
        }
        costs.push(cost(|| {
            for _ in 0..100 {
                merge(&mut writer, memory, "entry", &[("key", b"2")]).unwrap();
            }
        }));
    }
    assert!(costs.iter().all(|cost| cost / 100 < 100), "{costs:?}");
}

#[test]
fn the_cost_of_an_adoption_is_not_quadratic() {
    let costs = [200, 1_600].map(|count| {
        let (words, layout) = room(count * 2);
        let memory = Memory::new(&words, layout).unwrap();
        let mut writer = Writer::new(1);
        let name = |number: usize| format!("entry-{number}");
        for number in 0..count {
            put(&mut writer, memory, &name(number), &[("key", &[7; 9_000])]).unwrap();
        }
        abandon(memory, 1);
        let mut successor = Writer::new(2);
        cost(|| {
            for number in 0..count / 2 {
                merge(
                    &mut successor,
                    memory,
                    &name(number),
                    &[("key", &[8; 9_000])],
                )
                .unwrap();
            }
        }) / count
    });
    assert!(costs[1] < costs[0] * 3, "{costs:?}");
}

#[test]
fn there_is_no_more_space_than_references_can_name() {
    let layout = Layout::new(1 << 40, 4_096, 16_384, 0);
    assert!(layout.words() <= 1 << 31);
    assert!(layout.words() > (1 << 31) - 2 * SEGMENT);
}

#[test]
fn memory_too_small_for_a_segment_is_refused() {
    for count in [0, 1, 100, 6_000] {
        let words = words(count);
        let layout = Layout::new(count, 64, 16, 0);
        assert!(Memory::new(&words, layout).is_err() || layout.segments > 0);
    }
}
