//! A child's watch on its main process: once that is gone, the child is told to leave, then made to.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Signal, getpid, getsid, kill_process, kill_process_group};

/// What the waiting thread needs: it makes system calls and nothing else.
const STACK: usize = 64 << 10;

/// Ends this process when another one is gone.
///
/// Its thread holds nothing that the process may hang with, so it ends one that hangs as well.
#[derive(Debug)]
pub struct Lifeline {
    obeyed: Arc<AtomicBool>,
}

impl Lifeline {
    /// Wait, in a thread, until `watch` is readable, which tells of the end of the other process; then interrupt
    /// this one, every `again` until it obeys, or once. After `grace` it is killed, and all that it leads.
    ///
    /// The thread has the signal mask of the calling one.
    pub fn hold(watch: OwnedFd, grace: Duration, again: Option<Duration>) -> io::Result<Self> {
        let obeyed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&obeyed);
        thread::Builder::new()
            .name("lifeline".into())
            .stack_size(STACK)
            .spawn(move || {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                // What cannot be watched says nothing.
                if retry_on_intr(|| poll(&mut fds, None)).is_ok() {
                    end(grace, again, &seen);
                }
            })?;
        Ok(Self { obeyed })
    }

    /// This process has begun to leave: it need not be told again.
    pub fn let_go(&self) {
        self.obeyed.store(true, Ordering::Relaxed);
    }
}

fn end(grace: Duration, again: Option<Duration>, obeyed: &AtomicBool) {
    let (me, began) = (getpid(), Instant::now());
    let mut told = false;
    while let Some(left) = grace.checked_sub(began.elapsed()) {
        let repeats = again.filter(|_| !obeyed.load(Ordering::Relaxed));
        if repeats.is_some() || !told && !obeyed.load(Ordering::Relaxed) {
            // None of these can fail for one's own process.
            let _ = kill_process(me, Signal::INT);
            told = true;
        }
        thread::sleep(repeats.map_or(left, |again| left.min(again)));
    }
    if getsid(None).is_ok_and(|leader| leader == me) {
        let _ = kill_process_group(me, Signal::KILL);
    }
    let _ = kill_process(me, Signal::KILL);
}
