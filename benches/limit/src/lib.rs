//! The limit of the machine: the kernel's work and one Python object per message, and nothing else.

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
/// The number of bytes read at once.
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
        // SAFETY: the caller keeps the descriptor open during this call; later only a duplicate is used.
        let socket = fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(fd) }, 0);
        Ok(Self {
            socket: socket.map_err(std::io::Error::from)?,
            buffer: Vec::with_capacity(READ),
        })
    }

    /// Wait for bytes, read all of them, and return the whole payloads.
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

/// A list of files.
#[pyclass(frozen, module = "_limit")]
struct Files(Vec<CString>);

#[pymethods]
impl Files {
    #[new]
    fn new(paths: Vec<String>) -> PyResult<Self> {
        let paths: Result<_, _> = paths.into_iter().map(CString::new).collect();
        Ok(Self(paths?))
    }

    /// Call `stat` on each file, on that many threads; return the number of existing files.
    fn stat(&self, py: Python<'_>, threads: usize) -> usize {
        let count = |paths: &[CString]| paths.iter().filter(|&path| stat(path).is_ok()).count();
        py.detach(|| {
            let mut slices = self.0.chunks(self.0.len().div_ceil(threads).max(1));
            let own = slices.next().unwrap_or_default();
            thread::scope(|scope| {
                let others: Vec<_> = slices
                    .map(|slice| scope.spawn(move || count(slice)))
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
