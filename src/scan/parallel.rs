//! Work that several threads share where that pays.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// From how many files on a second thread pays for itself.
const SHARED: usize = 1_000;
/// As many threads as look at one disk at the same time, at most.
const THREADS: usize = 4;
/// How many items a thread takes at once.
const PORTION: usize = 8;

/// Do something with each item; the results have the order of the items. `files` says how many files are
/// looked at for all of them.
pub fn each<T: Send, R: Send>(items: Vec<T>, files: usize, act: impl Fn(T) -> R + Sync) -> Vec<R> {
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
    let helpers = match files / SHARED {
        0 => 0,
        shares => {
            let processors = thread::available_parallelism().map_or(1, NonZero::get);
            shares.min(processors.min(THREADS) - 1)
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
