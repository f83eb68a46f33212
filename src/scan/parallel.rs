//! Spreads work over threads where that is faster.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The number of files from which one more thread pays for itself.
const FILES_PER_THREAD: usize = 1_000;
/// The most threads that use one disk at the same time.
const MAX_THREADS: usize = 4;
/// The number of items that a thread takes at once.
const PORTION: usize = 8;

/// Apply `act` to each item; the results have the order of the items. `files` is the number of files that are
/// inspected for all items together.
pub fn map<T: Send, R: Send>(items: Vec<T>, files: usize, act: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(items.into_iter().enumerate());
    let work = || {
        let mut done = Vec::new();
        loop {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let portion: Vec<_> = queue.by_ref().take(PORTION).collect();
            drop(queue);
            if portion.is_empty() {
                return done;
            }
            done.extend(portion.into_iter().map(|(at, item)| (at, act(item))));
        }
    };
    let helpers = match files / FILES_PER_THREAD {
        0 => 0,
        threads => {
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            threads.min(processors.min(MAX_THREADS) - 1)
        }
    };
    let mut done = thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut done = work();
        for helper in helpers {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
