//! `Monitor`.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::{lent, messages, os_error};
use crate::monitor::{self, Batch, Event, Waker, WatchError};

/// One wait for the messages of many writers, the exits of processes and wakes.
#[pyclass(frozen, module = "worker._native")]
pub struct Monitor {
    /// `None` once it is closed. Locked for as long as a wait lasts, so never waited for.
    monitor: Mutex<Option<monitor::Monitor>>,
    /// Apart from it, as a wake is for the time of a wait. Locked for no longer than a wake takes.
    waker: Mutex<Option<Waker>>,
}

#[pymethods]
impl Monitor {
    #[new]
    #[pyo3(signature = (fd, bell = None))]
    fn new(py: Python<'_>, fd: RawFd, bell: Option<RawFd>) -> PyResult<Self> {
        let fds = lent(fd).and_then(|fd| Ok((fd, bell.map(lent).transpose()?)));
        let made = fds.map_err(Into::into);
        let made = made.and_then(|(fd, bell)| monitor::Monitor::new(fd, bell));
        let (monitor, waker) = made.map_err(|error| os_error(py, &error))?;
        Ok(Self {
            monitor: Mutex::new(Some(monitor)),
            waker: Mutex::new(Some(waker)),
        })
    }

    /// Where bytes that are written wake the wait: for `signal.set_wakeup_fd`.
    #[getter]
    fn wakeup_fd(&self) -> PyResult<RawFd> {
        let waker = self.waker();
        let waker = waker.as_ref().ok_or_else(closed)?;
        Ok(waker.as_fd().as_raw_fd())
    }

    /// Watch a process from now on.
    fn watch(&self, key: &Bound<'_, PyString>, pid: i32, sentinel: Option<RawFd>) -> PyResult<()> {
        let mut monitor = self.alone()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        let key_bytes = messages::encode(key)?;
        // SAFETY: that the sentinel stays open is what the documentation asks of the caller. If it does
        // not, another file is polled, or none, which counts as an exit.
        let watched = unsafe { monitor.watch(&key_bytes, pid, sentinel) };
        watched.map_err(|error| match error {
            WatchError::Twice => match key.repr() {
                Ok(key) => PyValueError::new_err(format!("{key} is watched already")),
                Err(error) => error,
            },
            WatchError::NoPid => PyValueError::new_err(format!("no process has the pid {pid}")),
            WatchError::Os(error) => os_error(key.py(), &error.into()),
        })
    }

    /// Watch a process no more.
    fn unwatch(&self, key: Bound<'_, PyString>) -> PyResult<()> {
        let mut monitor = self.alone()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        if monitor.unwatch(&messages::encode(&key)?) {
            Ok(())
        } else {
            Err(PyKeyError::new_err(key.unbind()))
        }
    }

    /// Wait for messages, exits or a wake, and return what there is.
    #[pyo3(signature = (timeout, messages = true))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
        messages: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let deadline = timeout.map(deadline).transpose()?.flatten();
        let mut monitor = self.alone()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        loop {
            let over = py.detach(|| monitor.wait(deadline, messages));
            let over = over.map_err(|error| os_error(py, &error.into()))?;
            // If one of them raises, what has happened is there for the next wait.
            py.check_signals()?;
            if over {
                return list(py, &monitor.batch());
            }
        }
    }

    /// Make a running wait, or the next one, return.
    fn wake(&self) -> PyResult<()> {
        let waker = self.waker();
        waker.as_ref().ok_or_else(closed)?.wake();
        Ok(())
    }

    /// Let go of all that is held; the pipe and the sentinels stay as they are.
    fn close(&self) -> PyResult<()> {
        let mut monitor = self.alone()?;
        *self.waker() = None;
        *monitor = None;
        Ok(())
    }
}

impl Monitor {
    fn alone(&self) -> PyResult<MutexGuard<'_, Option<monitor::Monitor>>> {
        match self.monitor.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(error)) => Ok(error.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(
                "the monitor is in use: wait, watch, unwatch and close are for one thread at a time",
            )),
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the monitor is closed")
}

/// When a timeout ends; `None` for what is too far away to end.
fn deadline(timeout: f64) -> PyResult<Option<Instant>> {
    if timeout.is_nan() {
        return Err(PyValueError::new_err("the timeout is not a number"));
    }
    let timeout = Duration::try_from_secs_f64(timeout.max(0.0)).ok();
    Ok(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
}

fn list<'py>(py: Python<'py>, batch: &Batch) -> PyResult<Bound<'py, PyList>> {
    // Most of them have the same sender as the one before.
    let mut last = (None, py.None().into_bound(py));
    let mut object = |sender: Option<i32>| {
        if sender != last.0 {
            last = (sender, sender.into_pyobject(py)?);
        }
        Ok::<_, PyErr>(last.1.clone())
    };
    let events = batch.events.iter().map(|event| match event {
        Event::Message { payload, sender } => {
            messages::received(py, &batch.bytes[payload.clone()], &object(*sender)?)
        }
        Event::Corrupt { fault, sender } => messages::corrupt(py, fault, &object(*sender)?),
        Event::Exited { key, pid, code } => messages::exited(py, key, *pid, *code),
    });
    PyList::new(py, events.collect::<PyResult<Vec<_>>>()?)
}
