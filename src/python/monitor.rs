//! The class `Monitor`.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::{lent, messages, os_error};
use crate::control::receive::Message;
use crate::monitor::{self, Events, Exit, Waker, WatchError};

/// One wait for the messages of many senders, the exits of processes and wakeups; the stub documents it.
#[pyclass(frozen, module = "worker._native")]
pub struct Monitor {
    /// `None` once it is closed. A wait holds the lock for its whole length, so no call blocks on it.
    monitor: Mutex<Option<monitor::Monitor>>,
    /// Apart from the monitor, because a wakeup comes during a wait. The lock is held for one wakeup only.
    waker: Mutex<Option<Waker>>,
}

#[pymethods]
impl Monitor {
    #[new]
    #[pyo3(signature = (fd, notify_fd = None))]
    fn new(py: Python<'_>, fd: RawFd, notify_fd: Option<RawFd>) -> PyResult<Self> {
        let fds = lent(fd).and_then(|fd| Ok((fd, notify_fd.map(lent).transpose()?)));
        let made = fds.map_err(Into::into);
        let made = made.and_then(|(fd, notify_fd)| monitor::Monitor::new(fd, notify_fd));
        let (monitor, waker) = made.map_err(|error| os_error(py, &error))?;
        Ok(Self {
            monitor: Mutex::new(Some(monitor)),
            waker: Mutex::new(Some(waker)),
        })
    }

    /// Return the descriptor for `signal.set_wakeup_fd`: bytes written to it end the wait.
    #[getter]
    fn wakeup_fd(&self) -> PyResult<RawFd> {
        let waker = self.waker();
        let waker = waker.as_ref().ok_or_else(closed)?;
        Ok(waker.as_fd().as_raw_fd())
    }

    /// Watch a process.
    fn watch(&self, key: &Bound<'_, PyString>, pid: i32, sentinel: Option<RawFd>) -> PyResult<()> {
        let mut monitor = self.exclusive()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        let key_bytes = messages::encode(key)?;
        // SAFETY: the stub requires the caller to keep the sentinel open. If it is closed, another file is
        // polled, or none, which counts as an exit.
        let watched = unsafe { monitor.watch(&key_bytes, pid, sentinel) };
        watched.map_err(|error| match error {
            WatchError::Duplicate => match key.repr() {
                Ok(key) => PyValueError::new_err(format!("{key} is watched already")),
                Err(error) => error,
            },
            WatchError::NoPid => PyValueError::new_err(format!("no process has the pid {pid}")),
            WatchError::Os(error) => os_error(key.py(), &error.into()),
        })
    }

    /// Stop watching a process.
    fn unwatch(&self, key: Bound<'_, PyString>) -> PyResult<()> {
        let mut monitor = self.exclusive()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        if monitor.unwatch(&messages::encode(&key)?) {
            Ok(())
        } else {
            Err(PyKeyError::new_err(key.unbind()))
        }
    }

    /// Wait for messages, exits or a wakeup; return the events.
    #[pyo3(signature = (timeout, messages = true))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
        messages: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let deadline = timeout.map(deadline).transpose()?.flatten();
        let mut monitor = self.exclusive()?;
        let monitor = monitor.as_mut().ok_or_else(closed)?;
        loop {
            let over = py.detach(|| monitor.wait(deadline, messages));
            let over = over.map_err(|error| os_error(py, &error.into()))?;
            // If a signal handler raises, the events stay for the next wait.
            py.check_signals()?;
            if over {
                return list(py, &monitor.take_events());
            }
        }
    }

    /// Make a running wait, or the next one, return.
    fn wake(&self) -> PyResult<()> {
        let waker = self.waker();
        waker.as_ref().ok_or_else(closed)?.wake();
        Ok(())
    }

    /// Close all descriptors opened here; the channel and the sentinels stay open.
    fn close(&self) -> PyResult<()> {
        let mut monitor = self.exclusive()?;
        *self.waker() = None;
        *monitor = None;
        Ok(())
    }
}

impl Monitor {
    fn exclusive(&self) -> PyResult<MutexGuard<'_, Option<monitor::Monitor>>> {
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

/// Return the deadline of a timeout; `None` if it is too far away to represent.
fn deadline(timeout: f64) -> PyResult<Option<Instant>> {
    if timeout.is_nan() {
        return Err(PyValueError::new_err("the timeout is not a number"));
    }
    let timeout = Duration::try_from_secs_f64(timeout.max(0.0)).ok();
    Ok(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
}

fn list<'py>(py: Python<'py>, events: &Events) -> PyResult<Bound<'py, PyList>> {
    // Most messages have the sender of the message before.
    let mut last = (None, py.None().into_bound(py));
    let mut object = |sender: Option<i32>| {
        if sender != last.0 {
            last = (sender, sender.into_pyobject(py)?);
        }
        Ok::<_, PyErr>(last.1.clone())
    };
    let bytes = &events.received.bytes;
    let messages = events.received.messages.iter();
    let received = messages.map(|Message { sender, payload }| match payload {
        Ok(payload) => messages::received(py, &bytes[payload.clone()], &object(*sender)?),
        Err(fault) => messages::corrupt(py, fault, &object(*sender)?),
    });
    let exits = events.exits.iter();
    let exited = exits.map(|Exit { key, pid, code }| messages::exited(py, key, *pid, *code));
    PyList::new(py, received.chain(exited).collect::<PyResult<Vec<_>>>()?)
}
