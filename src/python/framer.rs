//! The class `Framer`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::control::frame::{self, Fault, Item, LIMIT};

/// The framer of one stream of bytes; the stub documents it.
#[pyclass(module = "worker._native")]
pub struct Framer {
    framer: frame::Framer,
    faults: Vec<Fault>,
}

#[pymethods]
impl Framer {
    #[new]
    #[pyo3(signature = (limit = i64::try_from(LIMIT).unwrap_or(i64::MAX)))]
    fn new(limit: i64) -> PyResult<Self> {
        let wanted = usize::try_from(limit).ok().filter(|&limit| limit > 0);
        let limit = wanted.ok_or_else(|| {
            PyValueError::new_err(format!(
                "the limit of a frame must be positive, not {limit}"
            ))
        })?;
        Ok(Self {
            framer: frame::Framer::new(limit),
            faults: Vec::new(),
        })
    }

    /// Return the number of bytes kept.
    #[getter]
    fn pending(&self) -> usize {
        self.framer.pending()
    }

    /// Take more bytes; return the payloads that they complete.
    fn feed<'py>(&mut self, chunk: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyList>> {
        let py = chunk.py();
        let mut payloads = Vec::new();
        self.framer.feed(chunk.as_bytes(), |item| match item {
            Item::Payload(payload) => payloads.push(PyBytes::new(py, payload)),
            Item::Fault(fault) => self.faults.push(fault),
        });
        PyList::new(py, payloads)
    }

    /// Return the faults since the last call: for each the reason, and the first bytes that were dropped.
    fn faults<'py>(&mut self, py: Python<'py>) -> Vec<(String, Bound<'py, PyBytes>)> {
        std::mem::take(&mut self.faults)
            .into_iter()
            .map(|fault| (fault.reason, PyBytes::new(py, &fault.sample)))
            .collect()
    }

    /// Drop the unfinished frame of a sender that has exited.
    fn finish(&mut self) {
        self.faults.extend(self.framer.abandon());
    }
}
