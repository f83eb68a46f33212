//! The space of exited processes is reclaimed, even if a process exits or stops in the middle of it.

use super::steps::{Fate, at_each_step, stopped_after};
use super::*;
use crate::state::heap::Ref;
use crate::state::liveness::{Liveness, has_exited};
use crate::state::reclaim;
use crate::state::records::{self, Field, Record};

const EXITED: Identity = Identity { pid: 7, started: 1 };
const OTHER: Identity = Identity { pid: 8, started: 1 };
const NEXT: Identity = Identity { pid: 7, started: 2 };
/// Larger than one segment.
const LARGE: usize = 16_400;

fn reclaim(memory: Memory<'_>) {
    reclaim::reclaim(memory, |identity| identity == EXITED);
}

/// Start a process that stores a large value and a small one.
fn begin(memory: Memory<'_>, process: Identity) -> (Record, Writer, Vec<Ref>) {
    let record = Record::claim(memory, process).unwrap();
    let mut writer = Writer::new(record.serial);
    let kept = [1, LARGE].map(|size| writer.value(memory, &vec![0; size]).unwrap());
    (record, writer, kept.into())
}

fn owner(memory: Memory<'_>, block: Ref) -> u64 {
    segments::owner(memory, memory.segment(block.granule()))
        .unwrap()
        .0
}

#[test]
fn a_process_killed_while_it_claims_a_record_leaves_it_free() {
    at_each_step(|steps| {
        let (words, mut layout) = room(8);
        layout.processes = 1;
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, EXITED);
        reclaim(memory);
        let act = || Record::claim(memory, EXITED).is_some();
        let (result, was_killed) = stopped_after(steps, act, || Fate::Exits);
        assert_eq!(result, (!was_killed).then_some(true));
        // The next process claims the record, at the latest after a reclaim.
        let next = Record::claim(memory, NEXT);
        let next = next.or_else(|| {
            reclaim(memory);
            Record::claim(memory, NEXT)
        });
        let next = next.unwrap();
        assert!(next.serial > 1);
        assert!(
            records::find(memory, EXITED.pid).is_some_and(|record| record.serial == next.serial)
        );
        assert_eq!(next.get(memory, Field::Count), 0);
        was_killed
    });
}

#[test]
fn a_process_killed_while_it_reclaims_leaves_the_rest_to_another() {
    at_each_step(|steps| {
        let (words, layout) = room(8);
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, EXITED);
        let (other, ..) = begin(memory, OTHER);
        let (_, was_killed) = stopped_after(steps, || reclaim(memory), || Fate::Exits);
        reclaim(memory);
        assert_eq!(owners(memory), HashSet::from([0, other.serial]));
        assert!(records::find(memory, EXITED.pid).is_none());
        assert!(records::find(memory, OTHER.pid).is_some());
        was_killed
    });
}

#[test]
fn a_second_reclaim_takes_nothing_from_a_successor() {
    at_each_step(|steps| {
        let (words, mut layout) = room(8);
        layout.processes = 1;
        let memory = Memory::new(&words, layout).unwrap();
        begin(memory, EXITED);
        let mut successor = None;
        let (_, was_stopped) = stopped_after(
            steps,
            || reclaim(memory),
            || {
                reclaim(memory);
                successor = Some(begin(memory, NEXT));
                Fate::Continues
            },
        );
        if let Some((record, _, kept)) = successor {
            let at = records::find(memory, NEXT.pid).unwrap();
            assert_eq!(at.serial, record.serial, "at {steps}");
            for kept in kept {
                assert_eq!(owner(memory, kept), record.serial, "at {steps}");
            }
        }
        was_stopped
    });
}

#[test]
fn two_processes_that_take_segments_at_once_take_different_ones() {
    for (abandoned, fate) in [
        (false, Fate::Continues),
        (true, Fate::Continues),
        (false, Fate::Exits),
    ] {
        at_each_step(|steps| {
            let (words, layout) = room(9);
            let memory = Memory::new(&words, layout).unwrap();
            if abandoned {
                begin(memory, EXITED);
                reclaim(memory);
            }
            let mut other = None;
            let act = || begin(memory, EXITED);
            let (one, was_stopped) = stopped_after(steps, act, || {
                other = Some(begin(memory, OTHER));
                fate
            });
            let all = [one, other];
            let all: Vec<_> = all.iter().flatten().collect();
            for (record, _, kept) in &all {
                for kept in kept {
                    assert_eq!(owner(memory, *kept), record.serial, "at {steps}");
                }
            }
            reclaim(memory);
            reclaim::reclaim(memory, |identity| identity == OTHER);
            assert!(owners(memory).is_subset(&[0].into()), "at {steps}");
            for size in [LARGE, 1] {
                assert!(fits(memory, 99, size) >= blocks(memory, size), "at {steps}");
            }
            was_stopped
        });
    }
}

#[test]
fn only_a_process_that_has_certainly_exited_counts_as_exited() {
    let me = std::process::id();
    let Liveness::Running(now) = Liveness::of(me) else {
        panic!("the kernel does not tell about this process");
    };
    let started = now.started + 1;
    assert!(!has_exited(now));
    assert!(has_exited(Identity { pid: me, started }));
    // Its start time is unknown, as when it had no descriptor left to read it.
    assert!(!has_exited(Identity {
        pid: me,
        started: 0
    }));
    let child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    let Liveness::Running(identity) = Liveness::of(pid) else {
        // It has exited already.
        return exits(child);
    };
    assert_eq!(identity.pid, pid);
    exits(child);
    assert!(has_exited(identity));
}

/// A process counts as exited before it is reaped, and after that.
fn exits(mut child: std::process::Child) {
    let pid = child.id();
    while Liveness::of(pid) != Liveness::Exited {
        std::thread::yield_now();
    }
    child.wait().unwrap();
    assert_eq!(Liveness::of(pid), Liveness::Exited);
    assert!(has_exited(Identity { pid, started: 0 }));
}

#[test]
fn a_pid_belongs_to_the_process_that_had_it_last() {
    let (words, layout) = room(8);
    let memory = Memory::new(&words, layout).unwrap();
    for process in [EXITED, OTHER, NEXT] {
        let record = Record::claim(memory, process).unwrap();
        record.set(memory, Field::Count, u64::from(process.started));
    }
    let count = |pid| {
        records::find(memory, pid)
            .unwrap()
            .get(memory, Field::Count)
    };
    assert_eq!(count(NEXT.pid), 2);
    reclaim(memory);
    assert_eq!(count(NEXT.pid), 2);
    assert_eq!(count(OTHER.pid), 1);
}
