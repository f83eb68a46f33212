//! `Table`.

use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use super::cache::{Cache, CachedEntry, CachedKey, CachedValue};
use super::codec::{Made, counted, is_plain, is_simple, loads, unreadable};
use super::errors::{corrupt, failed, missing, refused};
use super::keys::{NUMBERS, OWNER, Pairs, any_key, are_vital, author, own, pairs, text_key};
use super::{lent, messages, os_error};
use crate::state::change::{Change, Failure};
use crate::state::node::Entry;
use crate::state::records::Identity;
use crate::state::table::{LastSeen, OpenError, SharedTable};

/// Cache with keys and values, in memory that several processes share.
#[pyclass(frozen, module = "worker._native")]
pub struct Table {
    shared: SharedTable,
    /// Locked only where no code of Python's runs.
    known: Mutex<Cache>,
    seen: Mutex<LastSeen>,
}

#[pymethods]
impl Table {
    #[new]
    fn new(py: Python<'_>, memory: RawFd, wake: RawFd) -> PyResult<Self> {
        let shared = lent(memory)
            .and_then(|memory| Ok((memory, lent(wake)?)))
            .map_err(OpenError::from)
            // SAFETY: that nobody makes it shorter is what the documentation asks for.
            .and_then(|(memory, wake)| unsafe { SharedTable::new(memory, wake) });
        Ok(Self {
            shared: shared.map_err(|error| match error {
                OpenError::Os(error) => os_error(py, &error.into()),
                OpenError::Corrupt => PyValueError::new_err(
                    "the file is no table: it is below 4 MiB, or holds something else",
                ),
            })?,
            known: Mutex::new(Cache::default()),
            seen: Mutex::new(LastSeen::default()),
        })
    }

    /// An entry.
    #[pyo3(signature = (name, pid = 0))]
    fn entry<'py>(&self, name: &Bound<'py, PyString>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        let py = name.py();
        let (bucket, parts) = self.parts(name, &|_, _| true)?;
        let visible = visible(&parts).ok_or_else(|| missing(name))?;
        let mut made = self.made(py, bucket, visible)?;
        if pid != 0
            && !made.belongs_to(pid)?
            && let Some(own) = self.part_of(&parts, pid)
        {
            made.add(self.made(py, bucket, own)?)?;
        }
        let numbers = made.owner()?.and_then(|pid| self.shared.numbers(pid));
        made.finish(name, numbers)
    }

    /// One value of an entry.
    #[pyo3(signature = (name, key, pid = 0))]
    fn value<'py>(
        &self,
        name: &Bound<'py, PyString>,
        key: &Bound<'py, PyAny>,
        pid: u32,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = name.py();
        let bytes = self.key(name, key)?;
        let is_number = NUMBERS.contains(&&*bytes) && self.shared.has_numbers();
        let asks_whose = pid != 0 || is_number;
        let wanted = |_: &Entry, one: &[u8]| one == bytes || (asks_whose && one == OWNER);
        let (bucket, parts) = self.parts(name, &wanted)?;
        let visible = visible(&parts).ok_or_else(|| missing(name))?;
        let own = match (self.part_of(&parts, pid), visible.find(OWNER)) {
            (Some(own), Some(owner)) => {
                let owner = self.object(py, bucket, owner)?;
                if owner.eq(pid)? { None } else { Some(own) }
            }
            _ => None,
        };
        let find = |key| {
            own.and_then(|own| own.find(key))
                .or_else(|| visible.find(key))
        };
        if is_number && let Some(owner) = find(OWNER) {
            let owner = self.object(py, bucket, owner)?.extract().ok();
            let numbers = owner.and_then(|owner| self.shared.numbers(owner));
            let counted = numbers.map(|numbers| counted(py, numbers)).transpose()?;
            if let Some(number) = counted.and_then(|counted| counted.get_item(key).transpose()) {
                return number;
            }
        }
        match find(&bytes) {
            Some(item) => {
                let object = self.object(py, bucket, item);
                object.or_else(|error| Err(unreadable(py, name, key, error)?))
            }
            None => Err(missing(key)),
        }
    }

    /// Those of some keys that an entry has, or a part that is kept apart, and that are plain.
    #[pyo3(signature = (name, keys, pid = 0))]
    fn some<'py>(
        &self,
        name: &Bound<'py, PyString>,
        keys: Vec<Bound<'py, PyString>>,
        pid: u32,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = name.py();
        let keys = keys.into_iter().map(|key| Ok((text_key(&key)?, key)));
        let keys: Vec<_> = keys.collect::<PyResult<_>>()?;
        let wanted = |entry: &Entry, one: &[u8]| {
            Identity::from_word(entry.staged_by).map_or(0, |its| its.pid) == pid
                && keys.iter().any(|(key, _)| key == one)
        };
        let (bucket, parts) = self.parts(name, &wanted)?;
        let visible = visible(&parts).ok_or_else(|| missing(name))?;
        let some = PyDict::new(py);
        let part = if pid == 0 {
            Some(visible)
        } else {
            self.part_of(&parts, pid)
        };
        for (bytes, key) in &keys {
            if let Some(item) = part.and_then(|part| part.find(bytes)) {
                let is_plain = match &item.value {
                    CachedValue::Encoded(kept) => is_plain(kept),
                    CachedValue::Object(_) | CachedValue::Unread => true,
                };
                if is_plain {
                    some.set_item(key, self.object(py, bucket, item)?)?;
                }
            }
        }
        Ok(some)
    }

    /// Whether there is an entry, once all that is kept under its name has been read anew.
    fn check(&self, name: &Bound<'_, PyString>) -> PyResult<bool> {
        let parts = (self.shared.memory()).versions(&messages::encode(name)?, |_| true);
        let mut parts = parts.map_err(corrupt)?.into_iter();
        Ok(parts.any(|part| part.entry.staged_by == 0))
    }

    /// All entries.
    fn entries<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let memory = self.shared.memory();
        let mut all = Vec::new();
        {
            let mut entries = self.known();
            for bucket in 0..memory.layout().buckets {
                if memory.is_empty(bucket) {
                    entries.forget(bucket);
                    continue;
                }
                let parts = entries.read(py, memory, bucket, &|entry, _| entry.staged_by == 0);
                let parts = parts.map_err(corrupt)?;
                let visible = parts.iter().filter(|part| part.entry.staged_by == 0);
                all.extend(visible.map(|part| (bucket, part.clone_ref(py))));
            }
        }
        all.sort_unstable_by_key(|(_, part)| part.entry.created);
        let numbers = self.shared.all_numbers();
        let result = PyDict::new(py);
        for (bucket, part) in &all {
            let made = self.made(py, *bucket, part)?;
            let numbers = match made.owner()? {
                Some(pid) if !numbers.is_empty() => numbers.get(&pid).copied(),
                _ => None,
            };
            let name = part.name.bind(py);
            result.set_item(name, made.finish(name, numbers)?)?;
        }
        Ok(result)
    }

    /// The names of all entries.
    fn names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let memory = self.shared.memory();
        let mut all = Vec::new();
        {
            let mut entries = self.known();
            for bucket in 0..memory.layout().buckets {
                if memory.is_empty(bucket) {
                    continue;
                }
                let parts = entries.read(py, memory, bucket, &|_, _| false);
                let visible = parts.map_err(corrupt)?.iter();
                let visible = visible.filter(|part| part.entry.staged_by == 0);
                all.extend(visible.map(|part| (part.entry.created, part.name.clone_ref(py))));
            }
        }
        all.sort_unstable_by_key(|(born, _)| *born);
        PyList::new(py, all.into_iter().map(|(_, name)| name))
    }

    /// Let an entry have these keys and no others.
    fn put(&self, name: &Bound<'_, PyString>, entry: &Bound<'_, PyAny>) -> PyResult<()> {
        // The keys are taken as they are, whatever was there.
        let pairs = pairs(entry, any_key)?;
        self.change(name, are_vital(&pairs), &mut |change| change.put(&pairs))
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
        let own = own(name.py(), pid)?;
        self.change(name, are_vital(&pairs), &mut |change| {
            change.merge(&pairs, author(pid, &own))
        })
    }

    /// Remove a key of an entry.
    #[pyo3(signature = (name, key, pid = 0))]
    fn discard(
        &self,
        name: &Bound<'_, PyString>,
        key: &Bound<'_, PyAny>,
        pid: u32,
    ) -> PyResult<()> {
        let bytes = self.key(name, key)?;
        let own = own(name.py(), pid)?;
        let result = self
            .shared
            .change(&messages::encode(name)?, false, |change| {
                change.discard(&bytes, author(pid, &own))
            });
        match result {
            Err(Failure::NoKey) => Err(missing(key)),
            result => result.map_err(|failure| self.error(name, &failure)),
        }
    }

    /// Remove an entry, and what is kept apart from it.
    fn remove(&self, name: &Bound<'_, PyString>) -> PyResult<()> {
        self.change(name, false, &mut |change| change.remove())
    }

    /// What a process has written apart from the entry.
    fn part<'py>(&self, name: &Bound<'py, PyString>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        let (bucket, parts) = self.parts(name, &|_, _| true)?;
        match self.part_of(&parts, pid) {
            Some(own) => self.made(name.py(), bucket, own)?.finish(name, None),
            None => Ok(PyDict::new(name.py())),
        }
    }

    /// Merge into an entry what a process has written apart, and more.
    fn hand_over(
        &self,
        name: &Bound<'_, PyString>,
        pid: u32,
        changes: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let pairs = self.pairs(name, changes)?;
        self.change(name, are_vital(&pairs), &mut |change| {
            change.hand_over(pid, &pairs)
        })
    }

    /// Forget what a process has written apart.
    fn drop(&self, name: &Bound<'_, PyString>, pid: u32) -> PyResult<()> {
        self.change(name, false, &mut |change| change.drop_staged(pid))
    }

    /// Note that a process is alive.
    #[pyo3(signature = (requests = 0, pid = 0))]
    fn beat(&self, requests: u64, pid: u32) -> PyResult<()> {
        let result = self.shared.beat(or_this_process(pid), requests);
        result.map_err(|error| refused(&error))
    }

    /// Set or clear the flags of a process.
    #[pyo3(signature = (*, stoppable = None, stopping = None, pid = 0))]
    fn flag(&self, stoppable: Option<bool>, stopping: Option<bool>, pid: u32) -> PyResult<()> {
        let result = self.shared.flag(or_this_process(pid), stoppable, stopping);
        result.map_err(|error| refused(&error))
    }

    /// What a process has said of itself in numbers.
    fn numbers<'py>(&self, py: Python<'py>, pid: u32) -> PyResult<Bound<'py, PyDict>> {
        match self.shared.numbers(pid) {
            Some(numbers) => counted(py, numbers),
            None => Ok(PyDict::new(py)),
        }
    }

    /// Let others use what a process had.
    fn bury(&self, pid: u32) {
        self.shared.reclaim(pid);
    }

    /// The names under which something has changed since the last call.
    #[pyo3(signature = (everything = false))]
    fn changes<'py>(&self, py: Python<'py>, everything: bool) -> PyResult<Bound<'py, PyList>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.shared.changes(&mut seen, everything);
        // One that is no text is nobody's.
        let names = names
            .iter()
            .filter_map(|name| messages::string(py, name).ok());
        PyList::new(py, names.collect::<Vec<_>>())
    }

    /// Have changes wake.
    fn arm(&self) -> bool {
        self.shared.arm()
    }

    /// Have changes wake no more.
    fn disarm(&self) {
        self.shared.disarm();
    }
}

impl Table {
    fn known(&self) -> MutexGuard<'_, Cache> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is kept under a name, with the values that are wanted, and in which bucket that is.
    fn parts(
        &self,
        name: &Bound<'_, PyString>,
        wanted: &dyn Fn(&Entry, &[u8]) -> bool,
    ) -> PyResult<(usize, Vec<CachedEntry>)> {
        let (py, bytes) = (name.py(), messages::encode(name)?);
        let memory = self.shared.memory();
        let bucket = memory.bucket_of(&bytes);
        let wanted = |entry: &Entry, key: &[u8]| entry.name == *bytes && wanted(entry, key);
        let mut entries = self.known();
        let parts = entries.read(py, memory, bucket, &wanted).map_err(corrupt)?;
        let parts = parts.iter().filter(|part| part.entry.name == *bytes);
        Ok((bucket, parts.map(|part| part.clone_ref(py)).collect()))
    }

    /// What a process has written apart.
    fn part_of<'a>(&self, parts: &'a [CachedEntry], pid: u32) -> Option<&'a CachedEntry> {
        let is_its = |part: &&CachedEntry| self.shared.is_staged_by(part.entry.staged_by, pid);
        parts.iter().find(is_its)
    }

    /// The `dict` of what was read.
    fn made<'py>(&self, py: Python<'py>, bucket: usize, part: &CachedEntry) -> PyResult<Made<'py>> {
        let mut made = Made::new(py);
        for item in &part.keys {
            let key = match &item.text {
                Some(text) => text.bind(py).clone().into_any(),
                None => match loads(py, &item.bytes[1..]).and_then(|key| key.hash().and(Ok(key))) {
                    Ok(key) => key,
                    Err(error) => {
                        made.fails(PyBytes::new(py, &item.bytes[1..]).into_any(), error)?;
                        continue;
                    }
                },
            };
            let value = self.object(py, bucket, item);
            if let Err(error) = value.and_then(|value| made.dict.set_item(&key, value)) {
                made.fails(key, error)?;
            }
        }
        Ok(made)
    }

    /// A value that was read.
    fn object<'py>(
        &self,
        py: Python<'py>,
        bucket: usize,
        item: &CachedKey,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &item.value {
            CachedValue::Object(object) => Ok(object.bind(py).clone()),
            CachedValue::Encoded(pickle) => {
                let object = loads(py, pickle)?;
                if is_simple(&object)? {
                    let kept = object.clone().unbind();
                    self.known().remember(bucket, item.block, kept);
                }
                Ok(object)
            }
            CachedValue::Unread => Err(PyRuntimeError::new_err("a value was not read")),
        }
    }

    /// How a key is kept: as the one that is equal to it, if there is one.
    fn key(&self, name: &Bound<'_, PyString>, key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let py = name.py();
        if let Ok(text) = key.cast::<PyString>() {
            return text_key(text);
        }
        key.hash()?;
        let (_, parts) = self.parts(name, &|_, _| false)?;
        for item in parts.iter().flat_map(|part| &part.keys) {
            let is_same = |one: Bound<'_, PyAny>| one.eq(key).unwrap_or(false);
            if item.text.is_none() && loads(py, &item.bytes[1..]).is_ok_and(is_same) {
                return Ok(item.bytes.to_vec());
            }
        }
        any_key(key)
    }

    fn pairs(&self, name: &Bound<'_, PyString>, given: &Bound<'_, PyAny>) -> PyResult<Pairs> {
        pairs(given, |key| self.key(name, key))
    }

    fn change(
        &self,
        name: &Bound<'_, PyString>,
        vital: bool,
        act: &mut dyn FnMut(&mut Change<'_, '_>) -> Result<bool, Failure>,
    ) -> PyResult<()> {
        let result = self.shared.change(&messages::encode(name)?, vital, act);
        result.map_err(|failure| self.error(name, &failure))
    }

    fn error(&self, name: &Bound<'_, PyString>, failure: &Failure) -> PyErr {
        failed(name, failure, self.shared.size())
    }
}

/// What everybody sees.
fn visible(parts: &[CachedEntry]) -> Option<&CachedEntry> {
    parts.iter().find(|part| part.entry.staged_by == 0)
}

fn or_this_process(pid: u32) -> u32 {
    if pid == 0 { std::process::id() } else { pid }
}
