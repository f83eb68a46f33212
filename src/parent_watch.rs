//! Ends a child whose main process is gone: by a signal first, then by force.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Signal, getpid, getsid, kill_process, kill_process_group};

/// The stack of the waiting thread, in bytes. It makes system calls and nothing else.
const STACK: usize = 64 << 10;

/// SIGINT was sent to this process.
const INTERRUPTED: u8 = 1;
/// This process has begun to stop.
const STOP_BEGUN: u8 = 2;
/// The handlers of the stop signals are set.
const STOP_HANDLERS_SET: u8 = 4;

/// A watch on the main process that ends this process when the main process exits.
///
/// Its thread uses nothing that a hanging process may hold, and therefore ends a hanging process, too.
#[derive(Debug)]
pub struct ParentWatch {
    state: Arc<AtomicU8>,
}

impl ParentWatch {
    /// Start a thread that waits until `parent` is readable, as a pidfd is after the exit of its process.
    ///
    /// The thread then interrupts this process, once. After `grace` it kills this process, and its process
    /// group if it leads its session. The thread has the signal mask of the calling thread.
    pub fn start(parent: OwnedFd, grace: Duration) -> io::Result<Self> {
        let state = Arc::new(AtomicU8::new(0));
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("parent-watch".into())
            .stack_size(STACK)
            .spawn(move || {
                let mut fds = [PollFd::new(&parent, PollFlags::IN)];
                // A failed poll proves no exit.
                if retry_on_intr(|| poll(&mut fds, None)).is_ok() {
                    end(grace, &shared);
                }
            })?;
        Ok(Self { state })
    }

    /// Note that this process has begun to stop, so that it is not interrupted.
    pub fn stop_begun(&self) {
        self.state.fetch_or(STOP_BEGUN, SeqCst);
    }

    /// Note that the handlers of the stop signals are set. A SIGINT that came before may have been lost: if
    /// one was sent and no stop has begun, send it once more.
    pub fn stop_handlers_set(&self) {
        if self.state.fetch_or(STOP_HANDLERS_SET, SeqCst) == INTERRUPTED {
            interrupt();
        }
    }
}

fn end(grace: Duration, state: &AtomicU8) {
    if state.fetch_or(INTERRUPTED, SeqCst) & STOP_BEGUN == 0 {
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
    // A signal to the own process cannot fail.
    let _ = kill_process(getpid(), Signal::INT);
}
