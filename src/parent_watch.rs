//! A child's watch on its main process: once that is gone, the child is told to leave, then made to.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Signal, getpid, getsid, kill_process, kill_process_group};

/// What the waiting thread needs: it makes system calls and nothing else.
const STACK: usize = 64 << 10;

/// This process was told to leave.
const TOLD: u8 = 1;
/// It has begun to leave.
const OBEYED: u8 = 2;
/// Its handlers for a stop are in place.
const STOPPABLE: u8 = 4;

/// Ends this process when another one is gone.
///
/// Its thread holds nothing that the process may hang with, so it ends one that hangs as well.
#[derive(Debug)]
pub struct Lifeline {
    state: Arc<AtomicU8>,
}

impl Lifeline {
    /// Wait, in a thread, until `watch` is readable, which tells of the end of the other process; then interrupt
    /// this one, once. After `grace` it is killed, and all that it leads.
    ///
    /// The thread has the signal mask of the calling one.
    pub fn hold(watch: OwnedFd, grace: Duration) -> io::Result<Self> {
        let state = Arc::new(AtomicU8::new(0));
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("lifeline".into())
            .stack_size(STACK)
            .spawn(move || {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                // What cannot be watched says nothing.
                if retry_on_intr(|| poll(&mut fds, None)).is_ok() {
                    end(grace, &shared);
                }
            })?;
        Ok(Self { state })
    }

    /// This process has begun to leave: it need not be told.
    pub fn let_go(&self) {
        self.state.fetch_or(OBEYED, SeqCst);
    }

    /// The handlers for a stop are in place. While they were set up, a signal may have been lost: if this process
    /// was told to leave before, and has not begun to, it is interrupted once more.
    pub fn stoppable(&self) {
        if self.state.fetch_or(STOPPABLE, SeqCst) == TOLD {
            interrupt();
        }
    }
}

fn end(grace: Duration, state: &AtomicU8) {
    if state.fetch_or(TOLD, SeqCst) & OBEYED == 0 {
        interrupt();
    }
    thread::sleep(grace);
    let me = getpid();
    if getsid(None).is_ok_and(|leader| leader == me) {
        let _ = kill_process_group(me, Signal::KILL);
    }
    let _ = kill_process(me, Signal::KILL);
}

fn interrupt() {
    // It cannot fail for one's own process.
    let _ = kill_process(getpid(), Signal::INT);
}
