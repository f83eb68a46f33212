//! Atomics that count their accesses. A thread can be stopped before any access, to continue later or never.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{self, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// The word of the table, in tests.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    pub const fn new(value: u64) -> Self {
        Self(atomic::AtomicU64::new(value))
    }

    pub fn load(&self, order: Ordering) -> u64 {
        step();
        self.0.load(order)
    }

    pub fn store(&self, value: u64, order: Ordering) {
        step();
        self.0.store(value, order);
    }

    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        step();
        self.0.swap(value, order)
    }

    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        step();
        self.0.fetch_add(value, order)
    }

    pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        step();
        self.0.fetch_or(value, order)
    }

    pub fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        step();
        self.0.fetch_and(value, order)
    }

    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        step();
        self.0.fetch_max(value, order)
    }

    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        step();
        self.0.compare_exchange(current, new, success, failure)
    }
}

/// The steps left to a thread, the channel to report that none are left, and the channel of its fate.
struct Stop {
    left: usize,
    stopped: Sender<()>,
    fate: Receiver<Fate>,
}

/// The fate of a stopped thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Continues,
    Exits,
}

/// The panic of a thread that is killed.
struct Killed;

thread_local! {
    static STOP: RefCell<Option<Stop>> = const { RefCell::new(None) };
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

fn step() {
    TAKEN.set(TAKEN.get() + 1);
    let stop = STOP.with_borrow_mut(|stop| match stop {
        Some(Stop { left: 0, .. }) => stop.take(),
        Some(stop) => {
            stop.left -= 1;
            None
        }
        None => None,
    });
    if let Some(stop) = stop {
        stop.stopped.send(()).unwrap();
        if stop.fate.recv() != Ok(Fate::Continues) {
            // As after SIGKILL, no further step is made.
            resume_unwind(Box::new(Killed));
        }
    }
}

/// Let `act` take that many steps and stop it there. `meanwhile` then inspects the memory and decides its
/// fate. Return the result of `act`, if it came to an end, and whether it was stopped.
pub fn stopped_after<T: Send>(
    steps: usize,
    act: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce() -> Fate,
) -> (Option<T>, bool) {
    let (stopped, has_stopped) = channel();
    let (decide, fate) = channel();
    thread::scope(|scope| {
        let actor = scope.spawn(move || {
            let left = steps;
            let stop = Stop {
                left,
                stopped,
                fate,
            };
            STOP.set(Some(stop));
            let result = catch_unwind(AssertUnwindSafe(act));
            STOP.set(None);
            match result {
                Ok(result) => Some(result),
                Err(why) if why.is::<Killed>() => None,
                Err(why) => resume_unwind(why),
            }
        });
        let was_stopped = has_stopped.recv().is_ok();
        if was_stopped {
            decide.send(meanwhile()).unwrap();
        }
        let result = actor.join().unwrap_or_else(|why| resume_unwind(why));
        (result, was_stopped)
    })
}

/// Call `once` with each number of steps in turn, until it returns that it was not stopped any more. Of the
/// many similar steps in the middle of a large change, a sample suffices.
pub fn at_each_step(mut once: impl FnMut(usize) -> bool) -> usize {
    let steps = (0..).filter(|steps| !(100..2_000).contains(steps) || steps % 61 == 0);
    steps.take_while(|steps| once(*steps)).count()
}

/// Return the number of accesses that `act` makes.
pub fn cost(act: impl FnOnce()) -> usize {
    let before = TAKEN.get();
    act();
    TAKEN.get() - before
}
