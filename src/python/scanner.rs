//! The class `Scanner`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyList, PyString};
use pyo3::{ffi, intern};
use rustix::fs::{AtFlags, CWD, statat};

use crate::scan::ignore::IgnoreRules;
use crate::scan::modules::Modules;
use crate::scan::scanner;

const SETTLE: &str = "settle has to be a number of seconds from 0 on";
const SINCE: &str = "since has to be a time, seconds from 1970 on";
/// The pattern of excluded paths, by default.
const IGNORED: &str = "(^|/)__pycache__/?$";
/// The number of objects created in one go: less than a millisecond of work.
const SLICE: usize = 1_000;
/// A pause long enough for another thread to take the GIL.
const PAUSE: Duration = Duration::from_micros(50);

/// Finds changes of files, and the files of modules; the stub documents it.
#[pyclass(frozen, module = "worker._native")]
pub struct Scanner {
    /// A scan holds the lock for its whole length, so no call blocks on it.
    scanner: Mutex<scanner::Scanner>,
    modules: Mutex<Modules>,
}

#[pymethods]
impl Scanner {
    #[new]
    #[pyo3(signature = (roots, ignored = None, settle = 2.0, since = None))]
    fn new(
        roots: &Bound<'_, PyAny>,
        ignored: Option<Vec<(String, bool)>>,
        settle: f64,
        since: Option<f64>,
    ) -> PyResult<Self> {
        if !(0.0..1e9).contains(&settle) {
            return Err(PyValueError::new_err(SETTLE));
        }
        let settle = Duration::from_secs_f64(settle);
        let since = match since.map(Duration::try_from_secs_f64) {
            None => None,
            Some(Ok(since)) => {
                let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
                Some((seconds, since.subsec_nanos()))
            }
            Some(Err(_)) => return Err(PyValueError::new_err(SINCE)),
        };
        let rules = ignored.unwrap_or_else(|| vec![(IGNORED.to_owned(), true)]);
        let rules = IgnoreRules::new(&rules)
            .map_err(|error| PyValueError::new_err(format!("no regular expression: {error}")))?;
        let scanner = scanner::Scanner::new(as_paths(roots)?, rules, settle, since);
        Ok(Self {
            scanner: Mutex::new(scanner),
            modules: Mutex::new(Modules::new(settle)),
        })
    }

    /// Watch these files, too.
    fn watch(&self, py: Python<'_>, files: &Bound<'_, PyAny>) -> PyResult<()> {
        let files = as_paths(files)?;
        let scanner = &mut *self.exclusive()?;
        py.detach(|| scanner.watch(files.iter().map(Vec::as_slice)));
        Ok(())
    }

    /// Scan everything, or the directories of some paths; return the changed paths.
    #[pyo3(signature = (paths = None))]
    fn scan<'py>(
        &self,
        py: Python<'py>,
        paths: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let paths = paths.map(as_paths).transpose()?;
        let scanner = &mut *self.exclusive()?;
        let changed = py.detach(|| scanner.scan(paths.as_deref()));
        let list = PyList::empty(py);
        for slice in changed.chunks(SLICE) {
            for path in slice {
                list.append(decoded(py, path)?)?;
            }
            // Give the GIL to waiting threads. Releasing it without a pause would give it to none of them.
            py.detach(|| thread::sleep(PAUSE));
        }
        // Freeing many paths takes long enough to be done without the GIL.
        py.detach(|| drop(changed));
        Ok(list)
    }

    /// Return the directories that are walked.
    fn folders<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        listed(py, self.exclusive()?.folders())
    }

    /// Return the links in the directories that are walked.
    fn links<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let scanner = &*self.exclusive()?;
        let links: Vec<_> = py.detach(|| scanner.links().collect());
        listed(py, links)
    }

    /// Return the files of modules.
    fn module_files<'py>(&self, modules: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let py = modules.py();
        let mut own = Vec::new();
        for module in modules.try_iter()? {
            if let Some(path) = own_path(&module?)? {
                own.push(possible(path)?);
            }
        }
        let sought: PyResult<Vec<_>> = own.iter().map(as_bytes).collect();
        let sought = sought?;
        let found = py.detach(|| {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            let paths: Vec<_> = sought.iter().map(AsRef::as_ref).collect();
            modules.files(&paths)
        });
        let list = PyList::empty(py);
        for ((path, sought), found) in own.iter().zip(&sought).zip(found) {
            let Some(found) = found else {
                continue;
            };
            let source = found
                .strip_suffix(b".pyc")
                .or_else(|| found.strip_suffix(b".pyo"))
                .map_or(found, |_| &found[..found.len() - 1]);
            if source.len() == sought.len() {
                list.append(path)?;
            } else {
                list.append(decoded(py, source)?)?;
            }
        }
        Ok(list)
    }

    /// Return whether a file is newer than its time in `mtimes`.
    #[staticmethod]
    fn check_file(filename: &Bound<'_, PyAny>, mtimes: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = filename.py();
        let mtime = match mtime(filename) {
            Some(mtime) => PyFloat::new(py, mtime).into_any(),
            // Python handles, or refuses, anything that is no path of a file.
            None => py
                .import(intern!(py, "os"))?
                .call_method1(intern!(py, "stat"), (filename,))?
                .getattr(intern!(py, "st_mtime"))?,
        };
        let known = match mtimes.cast_exact::<PyDict>() {
            Ok(dict) => dict.get_item(filename)?,
            Err(_) => Some(mtimes.call_method1(intern!(py, "get"), (filename,))?),
        };
        let Some(known) = known.filter(|known| !known.is_none()) else {
            mtimes.set_item(filename, mtime)?;
            return Ok(false);
        };
        let newer = mtime.gt(&known)?;
        if newer {
            mtimes.set_item(filename, mtime)?;
        }
        Ok(newer)
    }
}

impl Scanner {
    fn exclusive(&self) -> PyResult<MutexGuard<'_, scanner::Scanner>> {
        match self.scanner.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(error)) => Ok(PoisonError::into_inner(error)),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(
                "the scanner is in use: it is for one thread at a time",
            )),
        }
    }
}

fn as_paths(paths: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u8>>> {
    let path = |path: PyResult<Bound<'_, PyAny>>| {
        let path: PathBuf = path?.extract()?;
        let path = path.into_os_string().into_vec();
        if path.contains(&0) {
            return Err(PyValueError::new_err("embedded null byte"));
        }
        Ok(path)
    };
    paths.try_iter()?.map(path).collect()
}

/// Return the `__file__` of a module, if it is a `str`.
fn own_path<'py>(module: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyString>>> {
    match module.getattr(intern!(module.py(), "__file__")) {
        Ok(path) => Ok(path.cast_into().ok()),
        // An object in place of a module may raise any error.
        Err(error) if error.is_instance_of::<PyException>(module.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Return paths as a list of `str`.
fn listed<P: AsRef<[u8]>>(
    py: Python<'_>,
    paths: impl IntoIterator<Item = P>,
) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for path in paths {
        list.append(decoded(py, path.as_ref())?)?;
    }
    Ok(list)
}

/// Return a path as a `str`, as `os.fsdecode` does.
fn decoded<'py>(py: Python<'py>, path: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let size = ffi::Py_ssize_t::try_from(path.len())?;
    // SAFETY: the bytes outlive the call, which copies them into a new str, or returns null and an
    // exception.
    unsafe {
        let text = ffi::PyUnicode_DecodeFSDefaultAndSize(path.as_ptr().cast(), size);
        Bound::from_owned_ptr_or_err(py, text)
    }
}

/// Return this path, or its first parent that can be encoded for the system.
fn possible(mut path: Bound<'_, PyString>) -> PyResult<Bound<'_, PyString>> {
    while as_bytes(&path).is_err() {
        let os_path = path.py().import("os.path")?;
        path = os_path.call_method1("dirname", (path,))?.cast_into()?;
    }
    Ok(path)
}

/// Return a path as bytes, as `os.fsencode` does.
fn as_bytes<'a>(path: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, [u8]>> {
    match path.to_str() {
        // ASCII is the same in every file system encoding.
        Ok(text) if text.is_ascii() => Ok(Cow::Borrowed(text.as_bytes())),
        _ => Ok(Cow::Owned(path.extract::<OsString>()?.into_vec())),
    }
}

/// Return the `st_mtime` of a file as `os.stat` computes it; `None` if the path needs Python's own `os.stat`.
fn mtime(filename: &Bound<'_, PyAny>) -> Option<f64> {
    let path: PathBuf = filename.extract().ok()?;
    let about = filename
        .py()
        .detach(|| statat(CWD, &path, AtFlags::empty()))
        .ok()?;
    #[expect(clippy::cast_precision_loss, reason = "as Python does")]
    Some(about.st_mtime as f64 + 1e-9 * about.st_mtime_nsec as f64)
}
