//! The class `Lifeline`.

use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{lent, os_error};
use crate::parent_watch as lifeline;

/// Ends this process when its main process is gone; the stub documents it.
#[pyclass(module = "worker._native", frozen)]
pub struct Lifeline(lifeline::Lifeline);

#[pymethods]
impl Lifeline {
    #[new]
    fn new(py: Python<'_>, watch: RawFd, grace: f64) -> PyResult<Self> {
        let own = lent(watch)
            .map_err(std::io::Error::from)
            .and_then(|fd| fd.try_clone_to_owned())
            .map_err(|error| os_error(py, &error))?;
        let grace = seconds(grace)?;
        lifeline::Lifeline::hold(own, grace)
            .map(Self)
            .map_err(|error| os_error(py, &error))
    }

    /// This process has begun to leave.
    fn let_go(&self) {
        self.0.let_go();
    }

    /// The handlers for a stop are in place.
    fn stoppable(&self) {
        self.0.stoppable();
    }
}

fn seconds(value: f64) -> PyResult<Duration> {
    if value >= 0.0 {
        return Ok(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX));
    }
    let message = format!("{value} is no number of seconds from 0 on");
    Err(PyValueError::new_err(message))
}
