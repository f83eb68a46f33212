//! The class `ParentWatch`.

use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{lent, os_error};
use crate::parent_watch;

/// Ends this process when its main process exits; the stub documents it.
#[pyclass(module = "worker._native", frozen)]
pub struct ParentWatch(parent_watch::ParentWatch);

#[pymethods]
impl ParentWatch {
    #[new]
    fn new(py: Python<'_>, parent: RawFd, grace: f64) -> PyResult<Self> {
        let parent = lent(parent)
            .map_err(std::io::Error::from)
            .and_then(|fd| fd.try_clone_to_owned())
            .map_err(|error| os_error(py, &error))?;
        let grace = seconds(grace)?;
        parent_watch::ParentWatch::start(parent, grace)
            .map(Self)
            .map_err(|error| os_error(py, &error))
    }

    /// Note that this process has begun to stop.
    fn stop_begun(&self) {
        self.0.stop_begun();
    }

    /// Note that the handlers of the stop signals are set.
    fn stop_handlers_set(&self) {
        self.0.stop_handlers_set();
    }
}

fn seconds(value: f64) -> PyResult<Duration> {
    if value >= 0.0 {
        return Ok(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX));
    }
    let message = format!("{value} is no number of seconds from 0 on");
    Err(PyValueError::new_err(message))
}
