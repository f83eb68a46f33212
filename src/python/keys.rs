//! The encoding of keys, and of mappings from keys to values.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyString};

use super::codec;
use super::messages;

/// The first byte of a key that is a `str`; its UTF-8 follows.
pub const TEXT: u8 = b's';
/// The first byte of any other key; its encoded value follows.
pub const VALUE: u8 = b'p';

/// Encoded keys and values.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Encode a key that is a `str`.
pub fn encode_text(text: &Bound<'_, PyString>) -> PyResult<Vec<u8>> {
    Ok([&[TEXT], &*messages::encode(text)?].concat())
}

/// Encode any key.
pub fn encode_key(key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match key.cast::<PyString>() {
        Ok(text) => encode_text(text),
        Err(_) => Ok([&[VALUE], codec::encode(key)?.as_bytes()].concat()),
    }
}

/// Encode a mapping; `key` encodes its keys.
pub fn pairs(
    given: &Bound<'_, PyAny>,
    key: impl Fn(&Bound<'_, PyAny>) -> PyResult<Vec<u8>>,
) -> PyResult<Pairs> {
    let items = if let Ok(given) = given.cast_exact::<PyDict>() {
        given.items()
    } else {
        let copy = PyDict::new(given.py());
        copy.update(given.cast::<PyMapping>()?)?;
        copy.items()
    };
    let pair = |item: Bound<'_, PyAny>| {
        let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        Ok((key(&name)?, codec::encode(&value)?.as_bytes().to_vec()))
    };
    items.iter().map(pair).collect()
}

/// Encode a pid as a value; 0 is encoded as no bytes, which no value is.
pub fn encode_pid(py: Python<'_>, pid: u32) -> PyResult<Vec<u8>> {
    if pid == 0 {
        return Ok(Vec::new());
    }
    let pid = pid.into_pyobject(py)?.into_any();
    Ok(codec::encode(&pid)?.as_bytes().to_vec())
}
