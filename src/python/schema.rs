//! The keys of an entry that have a meaning for the table.
//!
//! Python passes their names when it opens a table. No name of a key is known in Rust.

use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};

use super::codec;
use super::keys::{Pairs, encode_text};
use crate::state::change::Author;
use crate::state::numbers::{Gauges, MAX_FLAGS, Numbers};
use crate::state::records::GAUGES;

/// A key, as an object and encoded.
struct Key {
    text: Py<PyString>,
    bytes: Vec<u8>,
}

impl Key {
    fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        Ok(Self {
            bytes: encode_text(text)?,
            text: text.clone().unbind(),
        })
    }
}

/// A number that goes up and down.
struct Gauge {
    key: Key,
    /// Whether Python has seconds and the record nanoseconds, instead of whole numbers in both.
    in_seconds: bool,
}

impl Gauge {
    fn encode(&self, value: &Bound<'_, PyAny>) -> PyResult<u64> {
        if !self.in_seconds {
            return value.extract();
        }
        let span = Duration::try_from_secs_f64(value.extract()?);
        let span = span.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }

    fn decode<'py>(&self, py: Python<'py>, value: u64) -> PyResult<Bound<'py, PyAny>> {
        if self.in_seconds {
            let seconds = Duration::from_nanos(value).as_secs_f64();
            return Ok(seconds.into_pyobject(py)?.into_any());
        }
        Ok(value.into_pyobject(py)?.into_any())
    }
}

/// The keys that a table treats specially.
pub struct Schema {
    /// The pid of the process that the entry belongs to.
    owner: Key,
    /// The numbers of that process, which its record holds: the time of its last heartbeat, a count, gauges,
    /// and flags.
    beat: Key,
    count: Key,
    gauges: Vec<Gauge>,
    flags: Vec<Key>,
    /// A change of these keys alone may use the reserved space: without them no process can start.
    essential: Vec<Vec<u8>>,
}

impl Schema {
    /// Keep the names of the keys.
    pub fn new(
        owner: &Bound<'_, PyString>,
        beat: &Bound<'_, PyString>,
        count: &Bound<'_, PyString>,
        gauges: &[Bound<'_, PyString>],
        seconds: &[Bound<'_, PyString>],
        flags: &[Bound<'_, PyString>],
        essential: &[Bound<'_, PyString>],
    ) -> PyResult<Self> {
        if flags.len() > MAX_FLAGS {
            let message = format!("{} flags, {MAX_FLAGS} are allowed", flags.len());
            return Err(PyValueError::new_err(message));
        }
        let gauge = |name, in_seconds| {
            Ok(Gauge {
                key: Key::new(name)?,
                in_seconds,
            })
        };
        let whole = gauges.iter().map(|name| gauge(name, false));
        let gauges: Vec<_> = whole
            .chain(seconds.iter().map(|name| gauge(name, true)))
            .collect::<PyResult<_>>()?;
        if gauges.len() > GAUGES {
            let message = format!("{} gauges, {GAUGES} are allowed", gauges.len());
            return Err(PyValueError::new_err(message));
        }
        Ok(Self {
            owner: Key::new(owner)?,
            beat: Key::new(beat)?,
            count: Key::new(count)?,
            gauges,
            flags: flags.iter().map(Key::new).collect::<PyResult<_>>()?,
            essential: essential.iter().map(encode_text).collect::<PyResult<_>>()?,
        })
    }

    /// Return the encoded key of an entry's owner.
    pub fn owner(&self) -> &[u8] {
        &self.owner.bytes
    }

    /// Return the key of an entry's owner.
    pub fn owner_text<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        self.owner.text.bind(py)
    }

    /// Return whether a change has essential keys only.
    pub fn are_essential(&self, pairs: &Pairs) -> bool {
        pairs.iter().all(|(key, _)| self.essential.contains(key))
    }

    /// Return the author of a change by the process `pid`; `None` for 0. `owner` is the encoded pid.
    pub fn author<'a>(&'a self, pid: u32, owner: &'a [u8]) -> Option<Author<'a>> {
        let author = Author {
            pid,
            owner_key: self.owner(),
            owner_value: owner,
        };
        (pid != 0).then_some(author)
    }

    /// Return whether a record holds the value of this key.
    pub fn is_number(&self, key: &[u8]) -> bool {
        let mut flags = self.flags.iter();
        let is_other = key == self.beat.bytes || key == self.count.bytes;
        is_other || flags.any(|flag| key == flag.bytes) || self.is_gauge(key)
    }

    /// Return whether this is the key of a gauge.
    pub fn is_gauge(&self, key: &[u8]) -> bool {
        self.gauges.iter().any(|gauge| key == gauge.key.bytes)
    }

    /// Return the numbers of a process as a `dict`.
    pub fn numbers<'py>(&self, py: Python<'py>, numbers: Numbers) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        self.add_numbers(&dict, numbers)?;
        Ok(dict)
    }

    /// Add the numbers of a process to its entry. A key that the application has set hides a gauge.
    pub fn add_numbers(&self, dict: &Bound<'_, PyDict>, numbers: Numbers) -> PyResult<()> {
        let py = dict.py();
        if numbers.beat_at != 0 {
            dict.set_item(&self.beat.text, codec::utc_time(py, numbers.beat_at)?)?;
        }
        dict.set_item(&self.count.text, numbers.count)?;
        for (gauge, value) in self.gauges.iter().zip(numbers.gauges) {
            if let Some(value) = value
                && !dict.contains(&gauge.key.text)?
            {
                dict.set_item(&gauge.key.text, gauge.decode(py, value)?)?;
            }
        }
        for (number, flag) in self.flags.iter().enumerate() {
            let is_set = numbers.flags >> number & 1 == 1;
            dict.set_item(&flag.text, PyBool::new(py, is_set))?;
        }
        Ok(())
    }

    /// Return the values of the gauges, given in their order; `None` leaves a gauge as it is.
    pub fn gauges(&self, given: &Bound<'_, PyTuple>) -> PyResult<Gauges> {
        if given.len() > self.gauges.len() {
            let message = format!("{} values for {} gauges", given.len(), self.gauges.len());
            return Err(PyValueError::new_err(message));
        }
        let mut gauges = [None; GAUGES];
        for ((gauge, place), value) in self.gauges.iter().zip(&mut gauges).zip(given) {
            if !value.is_none() {
                *place = Some(gauge.encode(&value)?);
            }
        }
        Ok(gauges)
    }

    /// Return the bits to set and the bits to clear for flags given by name; `None` leaves a flag as it is.
    pub fn flags(&self, given: Option<&Bound<'_, PyDict>>) -> PyResult<(u64, u64)> {
        let (mut on, mut off) = (0, 0);
        for (name, value) in given.into_iter().flatten() {
            let name: Bound<'_, PyString> = name.cast_into()?;
            let bytes = encode_text(&name)?;
            let found = self.flags.iter().position(|flag| flag.bytes == bytes);
            let number = found
                .ok_or_else(|| PyTypeError::new_err(format!("the table has no flag {name:?}")))?;
            match value.extract::<Option<bool>>()? {
                Some(true) => on |= 1 << number,
                Some(false) => off |= 1 << number,
                None => {}
            }
        }
        Ok((on, off))
    }
}
