//! The class `Questions`.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;

use super::errors::refused;
use super::os_error;
use super::table::Table;
use crate::responder::{self, Responder, StartError};
use crate::state::table::SharedTable;

/// Questions between processes whether one of them is stuck; the stub documents it.
#[pyclass(frozen, module = "worker._native")]
pub struct Questions {
    table: Arc<SharedTable>,
    responder: OnceLock<Responder>,
}

#[pymethods]
impl Questions {
    #[new]
    fn new(table: &Bound<'_, Table>) -> Self {
        Self {
            table: table.get().shared(),
            responder: OnceLock::new(),
        }
    }

    /// Put a question to a process.
    fn ask(&self, pid: u32) -> u64 {
        responder::ask(&self.table, pid)
    }

    /// Return the last questions that a process has answered.
    fn answers(&self, pid: u32) -> (u64, u64) {
        responder::answers(&self.table, pid)
    }

    /// Return the signal at which a process dumps its stacks.
    fn signal(&self, pid: u32) -> u64 {
        responder::signal(&self.table, pid)
    }

    /// Take questions to this process.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        if self.responder.get().is_some() {
            return Ok(());
        }
        let started = Responder::start(Arc::clone(&self.table)).map_err(|error| match error {
            StartError::Refused(why) => refused(&why),
            StartError::Os(error) => os_error(py, &error),
        });
        // Of two threads that begin at once, one would be left without an object; the GIL excludes that.
        let _ = self.responder.set(started?);
        Ok(())
    }

    /// Wait for the next question to this process.
    fn next(&self, py: Python<'_>, after: u64) -> u64 {
        let responder = self.responder.get();
        responder.map_or(0, |responder| py.detach(|| responder.next(after)))
    }

    /// Note that the interpreter has answered a question.
    fn answer(&self, number: u64) {
        self.responder
            .get()
            .into_iter()
            .for_each(|its| its.answer(number));
    }

    /// Publish the signal at which this process dumps its stacks.
    fn set_signal(&self, signum: i32) {
        self.responder
            .get()
            .into_iter()
            .for_each(|its| its.set_signal(signum));
    }

    /// Take no more questions.
    fn close(&self) {
        self.responder.get().into_iter().for_each(Responder::close);
    }
}
