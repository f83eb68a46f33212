//! The Python module `worker._native`: one file per class.
//!
//! Each class wraps a type of another module: it checks arguments, releases the GIL around waits and long
//! work, and converts the results. File descriptors, pids, numbers and paths go in; objects of Python come
//! out. No other module names pyo3.

mod cache;
mod codec;
mod entries;
mod entry;
mod errors;
mod framer;
mod keys;
mod messages;
mod monitor;
mod parent_watch;
mod questions;
mod scanner;
mod schema;
mod table;

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::prelude::*;
use rustix::io::Errno;

/// The native core, which only `worker._core` imports.
#[pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::{PyBytes, PyString};

    #[pymodule_export]
    use super::framer::Framer;
    use super::messages;
    #[pymodule_export]
    use super::monitor::Monitor;
    #[pymodule_export]
    use super::parent_watch::ParentWatch;
    #[pymodule_export]
    use super::questions::Questions;
    #[pymodule_export]
    use super::scanner::Scanner;
    #[pymodule_export]
    use super::table::Table;
    use crate::control::{command, frame};

    #[pymodule_export]
    const LIMIT: usize = frame::LIMIT;

    #[pymodule_export]
    const PROFILE: &str = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };

    /// Parse a text of the control channel.
    #[pyfunction]
    fn parse<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        let bytes = messages::encode(text)?;
        messages::command(text.py(), &command::parse(&bytes), &bytes)
    }

    /// Decode the command in a pickle of None or a str; run no code.
    #[pyfunction]
    fn decode<'py>(payload: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        let py = payload.py();
        messages::decode(py, payload.as_bytes(), || payload.clone())
    }
}

/// Create the `OSError` that Python itself would raise.
fn os_error(py: Python<'_>, error: &std::io::Error) -> PyErr {
    let Some(errno) = error.raw_os_error() else {
        return pyo3::exceptions::PyOSError::new_err(error.to_string());
    };
    let text = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (errno,)));
    match text.and_then(|text| text.extract::<String>()) {
        Ok(text) => pyo3::exceptions::PyOSError::new_err((errno, text)),
        Err(error) => error,
    }
}

/// Borrow a file descriptor, which the caller keeps open during the call.
fn lent<'a>(fd: RawFd) -> Result<BorrowedFd<'a>, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is not -1, and it is only duplicated or mapped, at once, which the kernel refuses if the
    // number is not open.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
