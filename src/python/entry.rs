//! Builds the `dict` of an entry.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::codec;
use super::schema::Schema;
use crate::state::numbers::Numbers;

/// The `dict` of an entry under construction.
pub struct DictBuilder<'a, 'py> {
    /// The values that could be decoded.
    pub dict: Bound<'py, PyDict>,
    schema: &'a Schema,
    /// The other keys, with their errors.
    unreadable: Vec<(Bound<'py, PyAny>, PyErr)>,
}

impl<'a, 'py> DictBuilder<'a, 'py> {
    /// Start with an empty `dict`.
    pub fn new(py: Python<'py>, schema: &'a Schema) -> Self {
        Self {
            dict: PyDict::new(py),
            schema,
            unreadable: Vec::new(),
        }
    }

    /// Note that a value, or its key, cannot be decoded. Return the error if it must reach the caller.
    pub fn fail(&mut self, key: Bound<'py, PyAny>, error: PyErr) -> PyResult<()> {
        if codec::makes_unreadable(key.py(), &error) {
            self.unreadable.push((key, error));
            return Ok(());
        }
        Err(error)
    }

    /// Return the pid of the process that the entry belongs to.
    pub fn owner(&self) -> PyResult<Option<u32>> {
        let key = self.schema.owner_text(self.dict.py());
        let owner = self.dict.get_item(key)?;
        Ok(owner.and_then(|owner| owner.extract().ok()))
    }

    /// Return whether the entry belongs to this process, or to none.
    pub fn belongs_to(&self, pid: u32) -> PyResult<bool> {
        let owner = self.schema.owner_text(self.dict.py());
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

    /// Add the keys of a staged entry, which replace those of the current one.
    pub fn overlay(&mut self, staged: Self) -> PyResult<()> {
        for (key, _) in &staged.unreadable {
            if self.dict.contains(key).unwrap_or(false) {
                self.dict.del_item(key)?;
            }
        }
        self.unreadable
            .retain(|(key, _)| !staged.dict.contains(key).unwrap_or(false));
        self.dict.update(staged.dict.as_mapping())?;
        self.unreadable.extend(staged.unreadable);
        Ok(())
    }

    /// Return the finished `dict`, with the numbers of the owner if it has any.
    pub fn finish(
        self,
        name: &Bound<'py, PyString>,
        numbers: Option<Numbers>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = name.py();
        if let Some(numbers) = numbers {
            self.schema.add_numbers(&self.dict, numbers)?;
        }
        if self.unreadable.is_empty() {
            return Ok(self.dict);
        }
        let unreadable = PyDict::new(py);
        for (key, error) in self.unreadable {
            let error = codec::unreadable_error(name, &key, &error)?;
            // A key that cannot be compared is left out.
            let _ = unreadable.set_item(key, error);
        }
        codec::partial_entry(&self.dict, &unreadable)
    }
}
