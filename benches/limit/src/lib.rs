//! What the machine can do at best: the kernel's work, one Python object a message, and nothing else.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::thread;

use pyo3::exceptions::PyEOFError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::stat;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{RecvFlags, recv};

const HEADER: usize = 4;
/// As much as the monitor reads at once.
const READ: usize = 256 * 1024;

/// Reads frames from a socket.
#[pyclass(module = "_limit")]
struct Reader {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

#[pymethods]
impl Reader {
    #[new]
    fn new(fd: RawFd) -> PyResult<Self> {
        // SAFETY: the caller keeps it open during this call, and only a duplicate is used after it.
        let socket = fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(fd) }, 0);
        Ok(Self {
            socket: socket.map_err(std::io::Error::from)?,
            buffer: Vec::with_capacity(READ),
        })
    }

    /// Wait for something to read, read all there is, and return the payloads that are whole.
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let socket = &self.socket;
        py.detach(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], None))
            .map_err(std::io::Error::from)?;
        loop {
            self.buffer.reserve(READ);
            let space = spare_capacity(&mut self.buffer);
            match recv(&self.socket, space, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(PyEOFError::new_err("the other end is closed")),
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
        }
        Ok(self.whole(py))
    }
}

impl Reader {
    fn whole<'py>(&mut self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let mut payloads = Vec::new();
        let mut rest = self.buffer.as_slice();
        while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
            let Some((payload, after)) =
                body.split_at_checked(u32::from_be_bytes(*header) as usize)
            else {
                break;
            };
            payloads.push(PyBytes::new(py, payload));
            rest = after;
        }
        let done = self.buffer.len() - rest.len();
        self.buffer.drain(..done);
        payloads
    }
}

/// A list of files to look at.
#[pyclass(frozen, module = "_limit")]
struct Files(Vec<CString>);

#[pymethods]
impl Files {
    #[new]
    fn new(paths: Vec<String>) -> PyResult<Self> {
        let paths: Result<_, _> = paths.into_iter().map(CString::new).collect();
        Ok(Self(paths?))
    }

    /// Look at each of them, on so many threads; return how many there are.
    fn stat(&self, py: Python<'_>, threads: usize) -> usize {
        let count = |paths: &[CString]| paths.iter().filter(|&path| stat(path).is_ok()).count();
        py.detach(|| {
            let mut shares = self.0.chunks(self.0.len().div_ceil(threads).max(1));
            let own = shares.next().unwrap_or_default();
            thread::scope(|scope| {
                let others: Vec<_> = shares
                    .map(|share| scope.spawn(move || count(share)))
                    .collect();
                let counts = others
                    .into_iter()
                    .map(|other| other.join().unwrap_or_default());
                count(own) + counts.sum::<usize>()
            })
        })
    }
}

#[pymodule(name = "_limit")]
mod module {
    #[pymodule_export]
    use super::{Files, Reader};
}
