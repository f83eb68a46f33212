//! What the dead had is for others, whoever dies or stops while it is given away.

use super::steps::{Fate, at_each_step, stopped_after};
use super::*;
use crate::state::heap::Ref;
use crate::state::liveness::{Whereabouts, is_dead};
use crate::state::records::{self, Field, Slot};

const DEAD: Identity = Identity { pid: 7, began: 1 };
const OTHER: Identity = Identity { pid: 8, began: 1 };
const NEXT: Identity = Identity { pid: 7, began: 2 };
/// More than one unit has.
const LARGE: usize = 16_400;

fn bury(memory: Memory<'_>) {
    records::bury(memory, |who| who == DEAD);
}

/// What a process has that keeps a large value and a small one.
fn begin(memory: Memory<'_>, who: Identity) -> (Slot, Writer, Vec<Ref>) {
    let slot = Slot::take(memory, who).unwrap();
    let mut writer = Writer::new(slot.serial);
    let kept = [1, LARGE].map(|size| writer.value(memory, &vec![0; size]).unwrap());
    (slot, writer, kept.into())
}

fn owner(memory: Memory<'_>, block: Ref) -> u64 {
    segments::owner(memory, memory.unit(block.granule()))
        .unwrap()
        .0
}

#[test]
fn who_is_killed_while_it_takes_a_place_leaves_it_free() {
    at_each_step(|steps| {
        let (words, mut layout) = room(8);
        layout.processes = 1;
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, DEAD);
        bury(memory);
        let act = || Slot::take(memory, DEAD).is_some();
        let (result, was_killed) = stopped_after(steps, act, || Fate::Dies);
        assert_eq!(result, (!was_killed).then_some(true));
        // A place of which nobody says that it is taken is taken by the next one.
        let next = Slot::take(memory, NEXT);
        let next = next.or_else(|| {
            bury(memory);
            Slot::take(memory, NEXT)
        });
        let next = next.unwrap();
        assert!(next.serial > 1);
        assert!(records::of(memory, DEAD.pid).is_some_and(|slot| slot.serial == next.serial));
        assert_eq!(next.get(memory, Field::Requests), 0);
        was_killed
    });
}

#[test]
fn who_is_killed_while_it_buries_leaves_the_rest_to_another() {
    at_each_step(|steps| {
        let (words, layout) = room(8);
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, DEAD);
        let (other, ..) = begin(memory, OTHER);
        let (_, was_killed) = stopped_after(steps, || bury(memory), || Fate::Dies);
        bury(memory);
        assert_eq!(owners(memory), HashSet::from([0, other.serial]));
        assert!(records::of(memory, DEAD.pid).is_none());
        assert!(records::of(memory, OTHER.pid).is_some());
        was_killed
    });
}

#[test]
fn who_buries_after_another_has_takes_nothing_from_an_heir() {
    at_each_step(|steps| {
        let (words, mut layout) = room(8);
        layout.processes = 1;
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, DEAD);
        let mut heir = None;
        let (_, was_stopped) = stopped_after(
            steps,
            || bury(memory),
            || {
                bury(memory);
                heir = Some(begin(memory, NEXT));
                Fate::GoesOn
            },
        );
        if let Some((slot, _, kept)) = heir {
            let at = records::of(memory, NEXT.pid).unwrap();
            assert_eq!(at.serial, slot.serial, "at {steps}");
            for kept in kept {
                assert_eq!(owner(memory, kept), slot.serial, "at {steps}");
            }
        }
        was_stopped
    });
}

#[test]
fn two_that_take_units_at_once_take_different_ones() {
    for (orphans, fate) in [
        (false, Fate::GoesOn),
        (true, Fate::GoesOn),
        (false, Fate::Dies),
    ] {
        at_each_step(|steps| {
            let (words, layout) = room(9);
            let memory = Memory::new(&words, layout).unwrap();
            if orphans {
                begin(memory, DEAD);
                bury(memory);
            }
            let mut other = None;
            let act = || begin(memory, DEAD);
            let (one, was_stopped) = stopped_after(steps, act, || {
                other = Some(begin(memory, OTHER));
                fate
            });
            let all = [one, other];
            let all: Vec<_> = all.iter().flatten().collect();
            for (slot, _, kept) in &all {
                for kept in kept {
                    assert_eq!(owner(memory, *kept), slot.serial, "at {steps}");
                }
            }
            bury(memory);
            records::bury(memory, |who| who == OTHER);
            assert!(owners(memory).is_subset(&[0].into()), "at {steps}");
            for size in [LARGE, 1] {
                assert!(fits(memory, 99, size) >= blocks(memory, size), "at {steps}");
            }
            was_stopped
        });
    }
}

#[test]
fn only_who_is_certainly_dead_is_dead() {
    let me = std::process::id();
    let Whereabouts::Lives(now) = Whereabouts::of(me) else {
        panic!("nothing is known of this process");
    };
    let began = now.began + 1;
    assert!(!is_dead(now));
    assert!(is_dead(Identity { pid: me, began }));
    // It could not tell when it began, as its descriptors were used up.
    assert!(!is_dead(Identity { pid: me, began: 0 }));
    let gone = std::process::Command::new("true").spawn().unwrap();
    let pid = gone.id();
    let Whereabouts::Lives(gone_began) = Whereabouts::of(pid) else {
        // It was quicker.
        return gone_is_dead(gone);
    };
    assert_eq!(gone_began.pid, pid);
    gone_is_dead(gone);
    assert!(is_dead(gone_began));
}

/// One that has ended is dead before it is collected, and after that.
fn gone_is_dead(mut gone: std::process::Child) {
    let pid = gone.id();
    while Whereabouts::of(pid) != Whereabouts::Dead {
        std::thread::yield_now();
    }
    gone.wait().unwrap();
    assert_eq!(Whereabouts::of(pid), Whereabouts::Dead);
    assert!(is_dead(Identity { pid, began: 0 }));
}

#[test]
fn a_pid_is_that_of_the_process_that_had_it_last() {
    let (words, layout) = room(8);
    let memory = Memory::new(&words, layout).unwrap();
    for who in [DEAD, OTHER, NEXT] {
        let slot = Slot::take(memory, who).unwrap();
        slot.set(memory, Field::Requests, u64::from(who.began));
    }
    let requests = |pid| {
        records::of(memory, pid)
            .unwrap()
            .get(memory, Field::Requests)
    };
    assert_eq!(requests(NEXT.pid), 2);
    bury(memory);
    assert_eq!(requests(NEXT.pid), 2);
    assert_eq!(requests(OTHER.pid), 1);
}
