//! The entries of a shared table, read through a cache and decoded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::cache::{Cache, CachedEntry, CachedKey, CachedValue};
use super::entry::DictBuilder;
use super::errors::corrupt;
use super::keys::{encode_key, encode_text};
use super::schema::Schema;
use super::{codec, messages};
use crate::state::node::Entry;
use crate::state::table::SharedTable;

/// A shared table, its schema, and the cache of this process.
pub struct Entries {
    /// The table.
    pub table: Arc<SharedTable>,
    /// The keys with a meaning.
    pub schema: Schema,
    /// Never locked while Python code runs, which could call back into the table.
    cache: Mutex<Cache>,
}

impl Entries {
    /// Read this table, with an empty cache.
    pub fn new(table: SharedTable, schema: Schema) -> Self {
        Self {
            table: Arc::new(table),
            schema,
            cache: Mutex::new(Cache::default()),
        }
    }

    /// Lock the cache.
    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Return the bucket of a name, and all versions of its entry with the values that are `wanted`.
    pub fn versions(
        &self,
        name: &Bound<'_, PyString>,
        wanted: &dyn Fn(&Entry, &[u8]) -> bool,
    ) -> PyResult<(usize, Vec<CachedEntry>)> {
        let (py, bytes) = (name.py(), messages::encode(name)?);
        let memory = self.table.memory();
        let bucket = memory.bucket_of(&bytes);
        let wanted = |entry: &Entry, key: &[u8]| entry.name == *bytes && wanted(entry, key);
        let mut cache = self.cache();
        let entries = cache.read(py, memory, bucket, &wanted).map_err(corrupt)?;
        let versions = entries.iter().filter(|cached| cached.entry.name == *bytes);
        Ok((
            bucket,
            versions.map(|cached| cached.clone_ref(py)).collect(),
        ))
    }

    /// Find the version staged by a process.
    pub fn staged_by<'a>(&self, versions: &'a [CachedEntry], pid: u32) -> Option<&'a CachedEntry> {
        let is_its = |one: &&CachedEntry| self.table.is_staged_by(one.entry.staged_by, pid);
        versions.iter().find(is_its)
    }

    /// Decode a version of an entry.
    pub fn build<'a, 'py>(
        &'a self,
        py: Python<'py>,
        bucket: usize,
        version: &CachedEntry,
    ) -> PyResult<DictBuilder<'a, 'py>> {
        let mut built = DictBuilder::new(py, &self.schema);
        for cached in &version.keys {
            let encoded = &cached.bytes[1..];
            let key = match &cached.text {
                Some(text) => text.bind(py).clone().into_any(),
                None => match codec::decode(py, encoded).and_then(|key| key.hash().and(Ok(key))) {
                    Ok(key) => key,
                    Err(error) => {
                        built.fail(PyBytes::new(py, encoded).into_any(), error)?;
                        continue;
                    }
                },
            };
            let value = self.object(py, bucket, cached);
            if let Err(error) = value.and_then(|value| built.dict.set_item(&key, value)) {
                built.fail(key, error)?;
            }
        }
        Ok(built)
    }

    /// Decode a value, or take its object from the cache.
    pub fn object<'py>(
        &self,
        py: Python<'py>,
        bucket: usize,
        cached: &CachedKey,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &cached.value {
            CachedValue::Object(object) => Ok(object.bind(py).clone()),
            CachedValue::Encoded(bytes) => {
                let object = codec::decode(py, bytes)?;
                if codec::is_immutable(&object)? {
                    let kept = object.clone().unbind();
                    self.cache().remember(bucket, cached.block, kept);
                }
                Ok(object)
            }
            CachedValue::Unread => Err(PyRuntimeError::new_err("a value was not read")),
        }
    }

    /// Encode a key. If the entry has an equal key, return that one.
    pub fn key(&self, name: &Bound<'_, PyString>, key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let py = name.py();
        if let Ok(text) = key.cast::<PyString>() {
            return encode_text(text);
        }
        key.hash()?;
        let (_, versions) = self.versions(name, &|_, _| false)?;
        for cached in versions.iter().flat_map(|version| &version.keys) {
            let is_same = |one: Bound<'_, PyAny>| one.eq(key).unwrap_or(false);
            if cached.text.is_none() && codec::decode(py, &cached.bytes[1..]).is_ok_and(is_same) {
                return Ok(cached.bytes.to_vec());
            }
        }
        encode_key(key)
    }
}

/// Find the current version.
pub fn current(versions: &[CachedEntry]) -> Option<&CachedEntry> {
    versions.iter().find(|one| one.entry.staged_by == 0)
}
