//! Where room is taken, and what becomes of it.

use super::steps::cost;
use super::*;
use crate::state::heap::UNIT;
use crate::state::writer::Refused;

const FULL: Result<(), Failure> = Err(Failure::Refused(Refused::Full));

/// Two names in one bucket.
fn neighbours(memory: Memory<'_>) -> [String; 2] {
    let bucket = |name: &String| memory.bucket_of(name.as_bytes());
    let mut names = (0..).map(|number| format!("entry-{number}"));
    let one = names.next().unwrap();
    let other = names.find(|name| bucket(name) == bucket(&one)).unwrap();
    [one, other]
}

/// Make entries with a value of that size, until there is no room left. Tell their names.
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
fn units_of_the_dead_that_have_no_free_block_are_no_obstacle() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let mut dead = Writer::new(1);
    for number in 0..1_000 {
        put(
            &mut dead,
            memory,
            &format!("entry-{number}"),
            &[("key", b"1")],
        )
        .unwrap();
    }
    disown(memory, 1);
    let mut heir = Writer::new(2);
    for number in 0..1_000 {
        let name = format!("entry-{number}");
        merge(&mut heir, memory, &name, &[("key", b"2")]).unwrap();
        assert_eq!(read(memory, &name).unwrap()["key"], b"2");
    }
}

#[test]
fn what_an_heir_gives_back_is_all_that_it_has_inherited() {
    let (words, layout) = room(16);
    let memory = Memory::new(&words, layout).unwrap();
    let (several, one) = (vec![7; 3 * UNIT * 8], vec![7; UNIT * 4]);
    let all = fits(memory, 1, one.len());
    Writer::new(2).value(memory, &several).unwrap();
    disown(memory, 2);
    let mut heir = Writer::new(3);
    heir.value(memory, &several).unwrap();
    heir.discard(memory);
    // It needs the room for something else, and dies as well.
    while heir.value(memory, &one).is_ok() {}
    disown(memory, 3);
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
        disown(memory, 2);
    }
    let after: Vec<_> = names.iter().map(|name| read(memory, name)).collect();
    assert_eq!(before, after);
    assert_eq!(read(memory, "another"), None);
}

#[test]
fn a_full_table_can_be_made_emptier_by_anyone() {
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
fn what_another_removes_comes_back_to_the_one_that_made_it() {
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
fn what_others_remove_is_anybodys_when_its_owner_has_written_again() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let (mut owner, mut other) = (Writer::new(1), Writer::new(2));
    put(&mut owner, memory, "mine", &[("key", b"1")]).unwrap();
    let names = fill(&mut owner, memory, 10_000);
    for name in &names {
        remove(&mut other, memory, name).unwrap();
    }
    // As small a change as can be: there has been a free block for it all the time.
    merge(&mut owner, memory, "mine", &[("key", b"2")]).unwrap();
    assert!(fits(memory, 3, 10_000) + 4 >= names.len());
    assert_eq!(read(memory, "mine").unwrap()["key"], b"2");
}

#[test]
fn what_is_vital_finds_room_where_there_is_none() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    fill(&mut Writer::new(1), memory, 3_000);
    let mut newcomer = Writer::new(2);
    assert_eq!(put(&mut newcomer, memory, "new", &[("pid", b"7")]), FULL);
    newcomer.vital = true;
    put(&mut newcomer, memory, "new", &[("pid", b"7")]).unwrap();
    merge(&mut newcomer, memory, "new", &[("state", b"ACKED")]).unwrap();
    assert_eq!(read(memory, "new").unwrap().len(), 2);
}

#[test]
fn values_come_and_go_in_the_same_room_for_ever() {
    let (words, layout) = room(64);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writers = [Writer::new(1), Writer::new(2)];
    put(&mut writers[0], memory, "entry", &[]).unwrap();
    let taken = || memory.single(Single::Top).load(Ordering::Relaxed);
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
fn only_what_is_used_is_touched() {
    let (words, layout) = room(10_000);
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    let size = 1 << 20;
    put(&mut writer, memory, "entry", &[("key", &vec![7; size])]).unwrap();
    put(&mut writer, memory, "other", &[("key", b"1")]).unwrap();
    disown(memory, 1);
    let mut heir = Writer::new(2);
    put(&mut heir, memory, "other", &[("key", b"2")]).unwrap();
    let touched = |word: &&AtomicU64| word.load(Ordering::Relaxed) != 0;
    // The block, its unit's words, and what is small.
    let most = size / 8 + Class::of(size / 8).shape().0 + 200;
    assert!(words.iter().filter(touched).count() < most);
    let owners = cost(|| disown(memory, 2));
    assert!(owners < 200, "{owners} looked at");
}

#[test]
fn what_a_change_costs_is_not_a_matter_of_how_much_there_is() {
    let layout = Layout {
        buckets: 4_096,
        processes: 4,
        units: 6_000,
    };
    let words = words(layout.words());
    let memory = Memory::new(&words, layout).unwrap();
    let mut writer = Writer::new(1);
    put(&mut writer, memory, "entry", &[("key", b"1")]).unwrap();
    let mut costs = Vec::new();
    for number in 0..5 {
        for filler in 0..500 {
            // Each takes a unit.
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
fn what_an_inheritance_costs_is_not_its_square() {
    let costs = [200, 1_600].map(|count| {
        let (words, layout) = room(count * 2);
        let memory = Memory::new(&words, layout).unwrap();
        let mut writer = Writer::new(1);
        let name = |number: usize| format!("entry-{number}");
        for number in 0..count {
            put(&mut writer, memory, &name(number), &[("key", &[7; 9_000])]).unwrap();
        }
        disown(memory, 1);
        let mut heir = Writer::new(2);
        cost(|| {
            for number in 0..count / 2 {
                merge(&mut heir, memory, &name(number), &[("key", &[8; 9_000])]).unwrap();
            }
        }) / count
    });
    assert!(costs[1] < costs[0] * 3, "{costs:?}");
}

#[test]
fn there_is_no_more_room_than_can_be_referred_to() {
    let layout = Layout::new(1 << 40, 4_096, 16_384);
    assert!(layout.words() <= 1 << 31);
    assert!(layout.words() > (1 << 31) - 2 * UNIT);
}

#[test]
fn memory_too_small_for_anything_is_refused() {
    for count in [0, 1, 100, 6_000] {
        let words = words(count);
        let layout = Layout::new(count, 64, 16);
        assert!(Memory::new(&words, layout).is_err() || layout.units > 0);
    }
}
