//! How keys are kept, and those that mean something.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyString};

use super::codec::dumps;
use super::messages;
use crate::state::change::Author;

/// How a key is kept: a text as it is, anything else as a pickle.
pub const TEXT: u8 = b's';
/// See [`TEXT`].
pub const PICKLE: u8 = b'p';
/// The key that says whose an entry is.
pub const OWNER: &[u8] = b"spid";
/// The keys of what is counted.
pub const NUMBERS: [&[u8]; 4] = [b"slast_beat", b"srequests", b"sstoppable", b"sstopping"];
/// Without these no process can start, so they are written even where there is no room for anything else.
const VITAL: [&[u8]; 7] = [
    OWNER,
    b"sserver",
    b"sserving",
    b"sstate",
    b"sstart_at",
    b"sstarts",
    b"srestart_at",
];

/// Keys and values, as they are kept.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A key that is a text.
pub fn text_key(text: &Bound<'_, PyString>) -> PyResult<Vec<u8>> {
    Ok([&[TEXT], &*messages::encode(text)?].concat())
}

/// Any key; one that is no text as a pickle of its own.
pub fn any_key(key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match key.cast::<PyString>() {
        Ok(text) => text_key(text),
        Err(_) => Ok([&[PICKLE], dumps(key)?.as_bytes()].concat()),
    }
}

/// Whether all of it is what no process can do without.
pub fn are_vital(pairs: &Pairs) -> bool {
    pairs.iter().all(|(key, _)| VITAL.contains(&key.as_slice()))
}

/// A mapping as bytes.
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
        Ok((key(&name)?, dumps(&value)?.as_bytes().to_vec()))
    };
    items.iter().map(pair).collect()
}

/// What the key of its owner holds in an entry of this process.
pub fn own(py: Python<'_>, pid: u32) -> PyResult<Vec<u8>> {
    if pid == 0 {
        return Ok(Vec::new());
    }
    Ok(dumps(&pid.into_pyobject(py)?.into_any())?
        .as_bytes()
        .to_vec())
}

/// The process that bears the name; nobody of 0.
pub fn author(pid: u32, value: &[u8]) -> Option<Author<'_>> {
    let author = Author {
        pid,
        owner_key: OWNER,
        owner_value: value,
    };
    (pid != 0).then_some(author)
}
