//! Values as bytes, and entries made of them.

use pyo3::exceptions::{PyException, PySystemExit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyNone, PyString, PyType};

use crate::control::pickle;
use crate::state::table::Numbers;

/// What a time begins with; all else is a pickle. `worker._core.codec` knows both.
const TIME: &[u8] = b"t";

/// A `dict` in the making.
pub struct Made<'py> {
    /// What could be read.
    pub dict: Bound<'py, PyDict>,
    unreadable: Vec<(Bound<'py, PyAny>, PyErr)>,
}

impl<'py> Made<'py> {
    /// Nothing yet.
    pub fn new(py: Python<'py>) -> Self {
        Self {
            dict: PyDict::new(py),
            unreadable: Vec::new(),
        }
    }

    /// A value, or a key, cannot be unpickled.
    pub fn fails(&mut self, key: Bound<'py, PyAny>, error: PyErr) -> PyResult<()> {
        if ends_nobody(key.py(), &error) {
            self.unreadable.push((key, error));
            return Ok(());
        }
        Err(error)
    }

    /// The process that an entry belongs to.
    pub fn owner(&self) -> PyResult<Option<u32>> {
        let owner = self.dict.get_item(pyo3::intern!(self.dict.py(), "pid"))?;
        Ok(owner.and_then(|owner| owner.extract().ok()))
    }

    /// Whether it is that of this process, or of nobody.
    pub fn belongs_to(&self, pid: u32) -> PyResult<bool> {
        let owner = pyo3::intern!(self.dict.py(), "pid");
        for (key, _) in &self.unreadable {
            if key.eq(owner).unwrap_or(false) {
                return Ok(false);
            }
        }
        match self.dict.get_item(owner)? {
            Some(owner) => owner.eq(pid),
            None => Ok(true),
        }
    }

    /// What is in the other one takes precedence.
    pub fn add(&mut self, other: Self) -> PyResult<()> {
        for (key, _) in &other.unreadable {
            if self.dict.contains(key).unwrap_or(false) {
                self.dict.del_item(key)?;
            }
        }
        self.unreadable
            .retain(|(key, _)| !other.dict.contains(key).unwrap_or(false));
        self.dict.update(other.dict.as_mapping())?;
        self.unreadable.extend(other.unreadable);
        Ok(())
    }

    /// With the numbers of its process, if it has any.
    pub fn finish(
        self,
        name: &Bound<'py, PyString>,
        numbers: Option<Numbers>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (py, values) = (name.py(), values(name.py())?);
        if let Some(numbers) = numbers {
            self.dict.update(counted(py, numbers)?.as_mapping())?;
        }
        if self.unreadable.is_empty() {
            return Ok(self.dict);
        }
        let unreadable = PyDict::new(py);
        for (key, error) in self.unreadable {
            let error = values
                .unreadable
                .bind(py)
                .call1((name, &key, error.value(py)))?;
            // A key that cannot even be compared is left out.
            let _ = unreadable.set_item(key, error);
        }
        let partial = values.partial.bind(py).call1((self.dict, unreadable))?;
        Ok(partial.cast_into()?)
    }
}

/// What is needed of Python, found once.
struct Values {
    pickled: Py<PyAny>,
    unpickled: Py<PyAny>,
    kept: Py<PyAny>,
    loads: Py<PyAny>,
    protocol: Py<PyAny>,
    numbers: Py<PyAny>,
    unreadable: Py<PyAny>,
    partial: Py<PyAny>,
    datetime: Py<PyType>,
    timezone: Py<PyType>,
}

fn values(py: Python<'_>) -> PyResult<&Values> {
    static VALUES: PyOnceLock<Values> = PyOnceLock::new();
    VALUES.get_or_try_init(py, || {
        let (pickle, times) = (py.import("pickle")?, py.import("datetime")?);
        let ours = py.import("worker._core.codec")?;
        Ok(Values {
            pickled: pickle.getattr("dumps")?.unbind(),
            unpickled: pickle.getattr("loads")?.unbind(),
            kept: ours.getattr("dumps")?.unbind(),
            loads: ours.getattr("loads")?.unbind(),
            protocol: ours.getattr("PROTOCOL")?.unbind(),
            numbers: ours.getattr("numbers")?.unbind(),
            unreadable: ours.getattr("UnreadableError")?.unbind(),
            partial: ours.getattr("PartialEntry")?.unbind(),
            datetime: times.getattr("datetime")?.cast_into()?.unbind(),
            timezone: times.getattr("timezone")?.cast_into()?.unbind(),
        })
    })
}

/// What is counted of a process, as keys of its entry.
pub fn counted(py: Python<'_>, numbers: Numbers) -> PyResult<Bound<'_, PyDict>> {
    let numbers = (
        numbers.beat_at,
        numbers.requests,
        numbers.stoppable,
        numbers.stopping,
    );
    Ok(values(py)?.numbers.bind(py).call1(numbers)?.cast_into()?)
}

/// Whether an error is the value's own, which makes it unreadable: `SystemExit`, too, ends no reader.
pub fn ends_nobody(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py) || error.is_instance_of::<PySystemExit>(py)
}

/// A value as bytes.
pub fn dumps<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = value.py();
    let values = values(py)?;
    let bytes = if value.get_type().is(&values.datetime) {
        values.kept.bind(py).call1((value,))?
    } else {
        let arguments = (value, &values.protocol);
        values.pickled.bind(py).call1(arguments)?
    };
    Ok(bytes.cast_into()?)
}

/// The value again.
pub fn loads<'py>(py: Python<'py>, kept: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let values = values(py)?;
    let loads = if kept.starts_with(TIME) {
        &values.loads
    } else {
        &values.unpickled
    };
    loads.bind(py).call1((PyBytes::new(py, kept),))
}

/// Whether to make the value of its bytes takes no code but Python's own: it is a number, a text, bytes, or a
/// time.
pub fn is_plain(kept: &[u8]) -> bool {
    kept.starts_with(TIME) || pickle::is_plain(kept)
}

/// Whether nobody can change it, so that all may have the same one.
pub fn is_simple(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    if object.is_exact_instance_of::<PyString>()
        || object.is_exact_instance_of::<PyInt>()
        || object.is_exact_instance_of::<PyBool>()
        || object.is_exact_instance_of::<PyNone>()
        || object.is_exact_instance_of::<PyFloat>()
        || object.is_exact_instance_of::<PyBytes>()
    {
        return Ok(true);
    }
    let values = values(py)?;
    if !object.get_type().is(&values.datetime) {
        return Ok(false);
    }
    let zone = object.getattr(pyo3::intern!(py, "tzinfo"))?;
    Ok(zone.is_none() || zone.get_type().is(&values.timezone))
}

/// The error of a value that cannot be unpickled.
pub fn unreadable(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    key: &Bound<'_, PyAny>,
    error: PyErr,
) -> PyResult<PyErr> {
    if !ends_nobody(py, &error) {
        return Ok(error);
    }
    let made = values(py)?
        .unreadable
        .bind(py)
        .call1((name, key, error.value(py)))?;
    let made = PyErr::from_value(made);
    made.set_cause(py, Some(error));
    Ok(made)
}
