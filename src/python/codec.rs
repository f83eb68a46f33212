//! The encoding of values as bytes. The Python module `worker._core.codec` has the other half.

use pyo3::exceptions::{PyException, PySystemExit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyNone, PyString, PyType};

use crate::control::pickle;

/// The first byte of an encoded time. Any other value is a pickle.
const TIME: &[u8] = b"t";

/// The Python objects that are used here, imported once.
struct Codec {
    pickle_dumps: Py<PyAny>,
    pickle_loads: Py<PyAny>,
    encode: Py<PyAny>,
    decode: Py<PyAny>,
    utc_time: Py<PyAny>,
    protocol: Py<PyAny>,
    unreadable_error: Py<PyAny>,
    partial_entry: Py<PyAny>,
    datetime: Py<PyType>,
    timezone: Py<PyType>,
}

fn codec(py: Python<'_>) -> PyResult<&Codec> {
    static CODEC: PyOnceLock<Codec> = PyOnceLock::new();
    CODEC.get_or_try_init(py, || {
        let (pickle, times) = (py.import("pickle")?, py.import("datetime")?);
        let ours = py.import("worker._core.codec")?;
        Ok(Codec {
            pickle_dumps: pickle.getattr("dumps")?.unbind(),
            pickle_loads: pickle.getattr("loads")?.unbind(),
            encode: ours.getattr("encode")?.unbind(),
            decode: ours.getattr("decode")?.unbind(),
            utc_time: ours.getattr("utc_time")?.unbind(),
            protocol: ours.getattr("PROTOCOL")?.unbind(),
            unreadable_error: ours.getattr("UnreadableError")?.unbind(),
            partial_entry: ours.getattr("PartialEntry")?.unbind(),
            datetime: times.getattr("datetime")?.cast_into()?.unbind(),
            timezone: times.getattr("timezone")?.cast_into()?.unbind(),
        })
    })
}

/// Encode a value.
pub fn encode<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = value.py();
    let codec = codec(py)?;
    let bytes = if value.get_type().is(&codec.datetime) {
        codec.encode.bind(py).call1((value,))?
    } else {
        let arguments = (value, &codec.protocol);
        codec.pickle_dumps.bind(py).call1(arguments)?
    };
    Ok(bytes.cast_into()?)
}

/// Decode a value.
pub fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let codec = codec(py)?;
    let decode = if bytes.starts_with(TIME) {
        &codec.decode
    } else {
        &codec.pickle_loads
    };
    decode.bind(py).call1((PyBytes::new(py, bytes),))
}

/// Return whether decoding these bytes runs only Python's own code: for a number, a text, bytes, or a time.
pub fn is_plain(bytes: &[u8]) -> bool {
    bytes.starts_with(TIME) || pickle::is_plain(bytes)
}

/// Return whether an object is immutable, so that several callers may share it.
pub fn is_immutable(object: &Bound<'_, PyAny>) -> PyResult<bool> {
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
    let codec = codec(py)?;
    if !object.get_type().is(&codec.datetime) {
        return Ok(false);
    }
    let zone = object.getattr(pyo3::intern!(py, "tzinfo"))?;
    Ok(zone.is_none() || zone.get_type().is(&codec.timezone))
}

/// Return the `datetime` of a time in nanoseconds since 1970.
pub fn utc_time(py: Python<'_>, nanoseconds: u64) -> PyResult<Bound<'_, PyAny>> {
    codec(py)?.utc_time.bind(py).call1((nanoseconds,))
}

/// Return whether an error makes the value unreadable. `SystemExit` from a value must not end the reader,
/// either.
pub fn makes_unreadable(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py) || error.is_instance_of::<PySystemExit>(py)
}

/// Return the error for the caller that asked for a value which cannot be decoded.
pub fn unreadable(
    py: Python<'_>,
    name: &Bound<'_, PyString>,
    key: &Bound<'_, PyAny>,
    error: PyErr,
) -> PyResult<PyErr> {
    if !makes_unreadable(py, &error) {
        return Ok(error);
    }
    let unreadable = PyErr::from_value(unreadable_error(name, key, &error)?);
    unreadable.set_cause(py, Some(error));
    Ok(unreadable)
}

/// Create an `UnreadableError`.
pub fn unreadable_error<'py>(
    name: &Bound<'py, PyString>,
    key: &Bound<'py, PyAny>,
    error: &PyErr,
) -> PyResult<Bound<'py, PyAny>> {
    let py = name.py();
    let class = codec(py)?.unreadable_error.bind(py);
    class.call1((name, key, error.value(py)))
}

/// Create a `PartialEntry` from the readable values, and the errors of the others by key.
pub fn partial_entry<'py>(
    readable: &Bound<'py, PyDict>,
    unreadable: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = readable.py();
    let class = codec(py)?.partial_entry.bind(py);
    Ok(class.call1((readable, unreadable))?.cast_into()?)
}
