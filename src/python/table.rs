//! The class `Table`.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::cache::CachedValue;
use super::codec;
use super::entries::{Entries, current};
use super::errors::{corrupt, failed, missing, refused, unfit};
use super::keys::{Pairs, encode_key, encode_pid, encode_text, pairs};
use super::schema::Schema;
use super::{lent, messages, os_error};
use crate::state::change::{Change, Failure};
use crate::state::node::Entry;
use crate::state::records::Identity;
use crate::state::sheet::Sheet;
use crate::state::table::{LastSeen, OpenError, SharedTable};

/// Entries with keys and values, in memory that several processes map; the stub documents it.
#[pyclass(frozen, module = "worker._native")]
pub struct Table {
    entries: Entries,
    /// The names of the sheets, in their order.
    sheets: Vec<String>,
    seen: Mutex<LastSeen>,
}

#[pymethods]
impl Table {
    #[new]
    #[pyo3(signature = (memory, wake, *, owner, beat, count, gauges, seconds, flags, essential, sheets))]
    #[expect(
        clippy::too_many_arguments,
        reason = "each keyword is one part of the schema"
    )]
    fn new(
        py: Python<'_>,
        memory: RawFd,
        wake: RawFd,
        owner: &Bound<'_, PyString>,
        beat: &Bound<'_, PyString>,
        count: &Bound<'_, PyString>,
        gauges: Vec<Bound<'_, PyString>>,
        seconds: Vec<Bound<'_, PyString>>,
        flags: Vec<Bound<'_, PyString>>,
        essential: Vec<Bound<'_, PyString>>,
        sheets: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let schema = Schema::new(owner, beat, count, &gauges, &seconds, &flags, &essential)?;
        let (sheets, sizes): (Vec<_>, Vec<_>) = (sheets
            .items()
            .extract::<Vec<(String, (u32, u32))>>()?
            .into_iter())
        .unzip();
        let table = lent(memory)
            .and_then(|memory| Ok((memory, lent(wake)?)))
            .map_err(OpenError::from)
            // SAFETY: the stub requires that no process shortens the file.
            .and_then(|(memory, wake)| unsafe {
                SharedTable::new(memory, wake, sizes.into_iter())
            });
        let table = table.map_err(|error| match error {
            OpenError::Os(error) => os_error(py, &error.into()),
            OpenError::Corrupt => PyValueError::new_err(
                "the file is no table: it is below 4 MiB, or holds something else",
            ),
        });
        Ok(Self {
            entries: Entries::new(table?, schema),
            sheets,
            seen: Mutex::new(LastSeen::default()),
        })
    }

    /// Return an entry.
    #[pyo3(signature = (name, pid = 0))]
    fn entry<'py>(&self, name: &Bound<'py, PyString>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        let py = name.py();
        let (bucket, versions) = self.entries.versions(name, &|_, _| true)?;
        let current = current(&versions).ok_or_else(|| missing(name))?;
        let mut built = self.entries.build(py, bucket, current)?;
        if pid != 0
            && !built.belongs_to(pid)?
            && let Some(staged) = self.entries.staged_by(&versions, pid)
        {
            built.overlay(self.entries.build(py, bucket, staged)?)?;
        }
        let numbers = built
            .owner()?
            .and_then(|pid| self.entries.table.numbers(pid));
        built.finish(name, numbers)
    }

    /// Return one value of an entry.
    #[pyo3(signature = (name, key, pid = 0))]
    fn value<'py>(
        &self,
        name: &Bound<'py, PyString>,
        key: &Bound<'py, PyAny>,
        pid: u32,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = name.py();
        let bytes = self.entries.key(name, key)?;
        let owner_key = self.entries.schema.owner();
        let is_number = self.entries.schema.is_number(&bytes) && self.entries.table.has_numbers();
        let needs_owner = pid != 0 || is_number;
        let wanted = |_: &Entry, one: &[u8]| one == bytes || (needs_owner && one == owner_key);
        let (bucket, versions) = self.entries.versions(name, &wanted)?;
        let current = current(&versions).ok_or_else(|| missing(name))?;
        let staged = match (
            self.entries.staged_by(&versions, pid),
            current.find(owner_key),
        ) {
            (Some(staged), Some(owner)) => {
                let owner = self.entries.object(py, bucket, owner)?;
                if owner.eq(pid)? { None } else { Some(staged) }
            }
            _ => None,
        };
        let find = |key| {
            staged
                .and_then(|staged| staged.find(key))
                .or_else(|| current.find(key))
        };
        let found = find(&bytes);
        let is_hidden = found.is_some() && self.entries.schema.is_gauge(&bytes);
        if is_number
            && !is_hidden
            && let Some(owner) = find(owner_key)
        {
            let owner = self.entries.object(py, bucket, owner)?.extract().ok();
            let numbers = owner.and_then(|owner| self.entries.table.numbers(owner));
            let numbers = numbers.map(|numbers| self.entries.schema.numbers(py, numbers));
            let found = numbers.transpose()?.map(|numbers| numbers.get_item(key));
            if let Some(number) = found.transpose()?.flatten() {
                return Ok(number);
            }
        }
        match found {
            Some(found) => {
                let object = self.entries.object(py, bucket, found);
                object.or_else(|error| Err(codec::unreadable(py, name, key, error)?))
            }
            None => Err(missing(key)),
        }
    }

    /// Return the plain values of some keys, of the current entry or of a staged one.
    #[pyo3(signature = (name, keys, pid = 0))]
    fn some<'py>(
        &self,
        name: &Bound<'py, PyString>,
        keys: Vec<Bound<'py, PyString>>,
        pid: u32,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = name.py();
        let keys = keys.into_iter().map(|key| Ok((encode_text(&key)?, key)));
        let keys: Vec<_> = keys.collect::<PyResult<_>>()?;
        let wanted = |entry: &Entry, one: &[u8]| {
            Identity::from_word(entry.staged_by).map_or(0, |stager| stager.pid) == pid
                && keys.iter().any(|(key, _)| key == one)
        };
        let (bucket, versions) = self.entries.versions(name, &wanted)?;
        let current = current(&versions).ok_or_else(|| missing(name))?;
        let version = if pid == 0 {
            Some(current)
        } else {
            self.entries.staged_by(&versions, pid)
        };
        let some = PyDict::new(py);
        for (bytes, key) in &keys {
            if let Some(found) = version.and_then(|version| version.find(bytes)) {
                let is_plain = match &found.value {
                    CachedValue::Encoded(bytes) => codec::is_plain(bytes),
                    CachedValue::Object(_) | CachedValue::Unread => true,
                };
                if is_plain {
                    some.set_item(key, self.entries.object(py, bucket, found)?)?;
                }
            }
        }
        Ok(some)
    }

    /// Read all versions of an entry past the cache; return whether there is a current one.
    fn check(&self, name: &Bound<'_, PyString>) -> PyResult<bool> {
        let versions = (self.entries.table.memory()).versions(&messages::encode(name)?, |_| true);
        let mut versions = versions.map_err(corrupt)?.into_iter();
        Ok(versions.any(|version| version.entry.staged_by == 0))
    }

    /// Return all entries.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let memory = self.entries.table.memory();
        let mut all = Vec::new();
        {
            let mut cache = self.entries.cache();
            for bucket in 0..memory.layout().buckets {
                if memory.is_empty(bucket) {
                    cache.forget(bucket);
                    continue;
                }
                let entries = cache.read(py, memory, bucket, &|entry, _| entry.staged_by == 0);
                let current =
                    (entries.map_err(corrupt)?.iter()).filter(|cached| cached.entry.staged_by == 0);
                all.extend(current.map(|cached| (bucket, cached.clone_ref(py))));
            }
        }
        all.sort_unstable_by_key(|(_, cached)| cached.entry.created);
        let numbers = self.entries.table.all_numbers();
        let result = PyDict::new(py);
        for (bucket, cached) in &all {
            let built = self.entries.build(py, *bucket, cached)?;
            let numbers = match built.owner()? {
                Some(pid) if !numbers.is_empty() => numbers.get(&pid).copied(),
                _ => None,
            };
            let name = cached.name.bind(py);
            result.set_item(name, built.finish(name, numbers)?)?;
        }
        Ok(result)
    }

    /// Return the names of all entries.
    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let memory = self.entries.table.memory();
        let mut all = Vec::new();
        {
            let mut cache = self.entries.cache();
            for bucket in 0..memory.layout().buckets {
                if memory.is_empty(bucket) {
                    continue;
                }
                let entries = cache.read(py, memory, bucket, &|_, _| false);
                let current =
                    (entries.map_err(corrupt)?.iter()).filter(|cached| cached.entry.staged_by == 0);
                all.extend(current.map(|cached| (cached.entry.created, cached.name.clone_ref(py))));
            }
        }
        all.sort_unstable_by_key(|(created, _)| *created);
        PyList::new(py, all.into_iter().map(|(_, name)| name))
    }

    /// Replace all keys of an entry.
    fn put(&self, name: &Bound<'_, PyString>, entry: &Bound<'_, PyAny>) -> PyResult<()> {
        // All keys are replaced, so none is looked up among those that are there.
        let pairs = pairs(entry, encode_key)?;
        self.change(
            name,
            self.entries.schema.are_essential(&pairs),
            &mut |change| change.put(&pairs),
        )
    }

    /// Set some keys of an entry.
    #[pyo3(signature = (name, changes, pid = 0))]
    fn update(
        &self,
        name: &Bound<'_, PyString>,
        changes: &Bound<'_, PyAny>,
        pid: u32,
    ) -> PyResult<()> {
        let pairs = self.pairs(name, changes)?;
        let owner = encode_pid(name.py(), pid)?;
        self.change(
            name,
            self.entries.schema.are_essential(&pairs),
            &mut |change| change.merge(&pairs, self.entries.schema.author(pid, &owner)),
        )
    }

    /// Remove a key of an entry.
    #[pyo3(signature = (name, key, pid = 0))]
    fn discard(
        &self,
        name: &Bound<'_, PyString>,
        key: &Bound<'_, PyAny>,
        pid: u32,
    ) -> PyResult<()> {
        let bytes = self.entries.key(name, key)?;
        let owner = encode_pid(name.py(), pid)?;
        let result = self
            .entries
            .table
            .change(&messages::encode(name)?, false, |change| {
                change.discard(&bytes, self.entries.schema.author(pid, &owner))
            });
        match result {
            Err(Failure::NoKey) => Err(missing(key)),
            result => result.map_err(|failure| self.error(name, &failure)),
        }
    }

    /// Remove an entry, and those staged for its name.
    fn remove(&self, name: &Bound<'_, PyString>) -> PyResult<()> {
        self.change(name, false, &mut |change| change.remove())
    }

    /// Return the entry staged by a process.
    fn staged<'py>(&self, name: &Bound<'py, PyString>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        let (bucket, versions) = self.entries.versions(name, &|_, _| true)?;
        match self.entries.staged_by(&versions, pid) {
            Some(staged) => self
                .entries
                .build(name.py(), bucket, staged)?
                .finish(name, None),
            None => Ok(PyDict::new(name.py())),
        }
    }

    /// Merge changes and the entry staged by a process into the current entry.
    fn hand_over(
        &self,
        name: &Bound<'_, PyString>,
        pid: u32,
        changes: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let pairs = self.pairs(name, changes)?;
        self.change(
            name,
            self.entries.schema.are_essential(&pairs),
            &mut |change| change.hand_over(pid, &pairs),
        )
    }

    /// Drop the entry staged by a process.
    fn drop_staged(&self, name: &Bound<'_, PyString>, pid: u32) -> PyResult<()> {
        self.change(name, false, &mut |change| change.drop_staged(pid))
    }

    /// Write the heartbeat of a process, add to its count, and set its gauges.
    #[pyo3(signature = (count = 0, pid = 0, gauges = None))]
    fn beat(&self, count: u64, pid: u32, gauges: Option<&Bound<'_, PyTuple>>) -> PyResult<()> {
        let gauges = gauges.map(|gauges| self.entries.schema.gauges(gauges));
        let gauges = gauges.transpose()?.unwrap_or_default();
        let result = (self.entries.table).beat(or_this_process(pid), count, gauges);
        result.map_err(|error| refused(&error))
    }

    /// Set or clear flags of a process.
    #[pyo3(signature = (*, pid = 0, **flags))]
    fn flag(&self, pid: u32, flags: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        let (on, off) = self.entries.schema.flags(flags)?;
        let result = self.entries.table.flag(or_this_process(pid), on, off);
        result.map_err(|error| refused(&error))
    }

    /// Return the numbers of a process.
    fn numbers<'py>(&self, py: Python<'py>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        match self.entries.table.numbers(pid) {
            Some(numbers) => self.entries.schema.numbers(py, numbers),
            None => Ok(PyDict::new(py)),
        }
    }

    /// Return the time of the last heartbeat of a process.
    fn last_beat(&self, pid: u32) -> Option<f64> {
        self.entries.table.numbers(pid)?.last_beat()
    }

    /// Write a cell of a sheet.
    fn write_cell(&self, sheet: &Bound<'_, PyString>, index: i64, data: &[u8]) -> PyResult<()> {
        let its = self.sheet(sheet)?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let result = its.write(self.entries.table.memory(), index, data);
        result.map_err(|why| unfit(sheet, its, &why, data.len()))
    }

    /// Return the data of all cells of a sheet.
    fn cells<'py>(&self, sheet: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyList>> {
        let (py, sheet) = (sheet.py(), self.sheet(sheet)?);
        let cells = py.detach(|| sheet.read(self.entries.table.memory()));
        let data = |cell: Option<Vec<u8>>| cell.map(|data| PyBytes::new(py, &data));
        PyList::new(py, cells.into_iter().map(data))
    }

    /// Return the bytes of the heap that are taken, and those that there are.
    fn usage(&self) -> (usize, usize) {
        self.entries.table.usage()
    }

    /// Reclaim the space of a process that has exited.
    fn reclaim(&self, pid: u32) {
        self.entries.table.reclaim(pid);
    }

    /// Return the names whose entries have changed since the last call.
    #[pyo3(signature = (everything = false))]
    fn changes<'py>(&self, py: Python<'py>, everything: bool) -> PyResult<Bound<'py, PyList>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.entries.table.changes(&mut seen, everything);
        // A name that is no text was damaged.
        let names = names
            .iter()
            .filter_map(|name| messages::string(py, name).ok());
        PyList::new(py, names.collect::<Vec<_>>())
    }

    /// Have changes wake the main process.
    fn arm(&self) -> bool {
        self.entries.table.arm()
    }

    /// Have changes wake no more.
    fn disarm(&self) {
        self.entries.table.disarm();
    }
}

impl Table {
    /// Return the table itself, without its cache.
    pub fn shared(&self) -> Arc<SharedTable> {
        Arc::clone(&self.entries.table)
    }

    fn sheet(&self, name: &Bound<'_, PyString>) -> PyResult<Sheet> {
        let number = self.sheets.iter().position(|one| name == one.as_str());
        let number = number.ok_or_else(|| missing(name))?;
        Ok(self.entries.table.sheet(number))
    }

    fn pairs(&self, name: &Bound<'_, PyString>, given: &Bound<'_, PyAny>) -> PyResult<Pairs> {
        pairs(given, |key| self.entries.key(name, key))
    }

    fn change(
        &self,
        name: &Bound<'_, PyString>,
        essential: bool,
        act: &mut dyn FnMut(&mut Change<'_, '_>) -> Result<bool, Failure>,
    ) -> PyResult<()> {
        let result = self
            .entries
            .table
            .change(&messages::encode(name)?, essential, act);
        result.map_err(|failure| self.error(name, &failure))
    }

    fn error(&self, name: &Bound<'_, PyString>, failure: &Failure) -> PyErr {
        failed(name, failure, self.entries.table.size())
    }
}

fn or_this_process(pid: u32) -> u32 {
    if pid == 0 { std::process::id() } else { pid }
}
