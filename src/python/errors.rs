//! The errors of a table, as Python exceptions.

use pyo3::exceptions::{PyIndexError, PyKeyError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::state::change::Failure;
use crate::state::memory::Corrupt;
use crate::state::sheet::{Sheet, Unfit};
use crate::state::writer::Refused;

/// Create the error of a `dict` without that key.
pub fn missing(key: &Bound<'_, PyAny>) -> PyErr {
    PyKeyError::new_err((key.clone().unbind(),))
}

/// Create the error of damaged memory.
pub fn corrupt(_: Corrupt) -> PyErr {
    PyRuntimeError::new_err("something else has written to the memory of the table")
}

/// Create the error of numbers that were not written.
pub fn refused(refused: &Refused) -> PyErr {
    match refused {
        Refused::Full => {
            PyMemoryError::new_err("no room in the table for one more process that writes")
        }
        Refused::Corrupt => corrupt(Corrupt),
    }
}

/// Create the error of data of `size` bytes that were not written to a cell of this sheet.
pub fn unfit(name: &Bound<'_, PyString>, sheet: Sheet, unfit: &Unfit, size: usize) -> PyErr {
    let (cells, bytes) = (sheet.cells, sheet.bytes);
    match unfit {
        Unfit::NoCell => PyIndexError::new_err(format!("the sheet {name:?} has {cells} cells")),
        Unfit::TooLong => PyValueError::new_err(format!(
            "{size} bytes for a cell of the sheet {name:?}, {bytes} are allowed"
        )),
    }
}

/// Create the error of a change that was not made, in a table of `size` bytes.
pub fn failed(name: &Bound<'_, PyString>, failure: &Failure, size: usize) -> PyErr {
    match failure {
        Failure::NoEntry | Failure::NoKey => missing(name),
        Failure::Refused(Refused::Full) => {
            let name = name
                .repr()
                .map_or_else(|_| String::new(), |name| name.to_string());
            PyMemoryError::new_err(format!(
                "no room for a change of the entry {name}: the table may have {size} bytes, and they \
                 are taken; `state_max_bytes` sets how many"
            ))
        }
        Failure::Refused(Refused::Corrupt) => corrupt(Corrupt),
    }
}
