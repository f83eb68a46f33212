//! Builds the classes of `worker.messages`.

use std::borrow::Cow;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString, PyTuple};

use crate::command::{self, Command};
use crate::frame::Fault;
use crate::pickle::{self, Value};

/// The classes, and what is the same each time.
struct Messages {
    stop: Py<PyAny>,
    terminate: Py<PyAny>,
    terminate_early: Py<PyAny>,
    scale: Py<PyAny>,
    restart: Py<PyAny>,
    shutdown_first: Py<PyAny>,
    startup_first: Py<PyAny>,
    invalid: Py<PyAny>,
    opaque: Py<PyAny>,
    received: Py<PyAny>,
    corrupt: Py<PyAny>,
    exited: Py<PyAny>,
}

fn messages(py: Python<'_>) -> PyResult<&Messages> {
    static MESSAGES: PyOnceLock<Messages> = PyOnceLock::new();
    MESSAGES.get_or_try_init(py, || {
        let module = py.import("worker.messages")?;
        let class = |name: &str| module.getattr(name);
        let order = class("RestartOrder")?;
        Ok(Messages {
            stop: class("Stop")?.call0()?.unbind(),
            terminate: class("Terminate")?.call0()?.unbind(),
            terminate_early: class("Terminate")?.call1((true,))?.unbind(),
            scale: class("Scale")?.unbind(),
            restart: class("Restart")?.unbind(),
            shutdown_first: order.getattr("SHUTDOWN_FIRST")?.unbind(),
            startup_first: order.getattr("STARTUP_FIRST")?.unbind(),
            invalid: class("Invalid")?.unbind(),
            opaque: class("Opaque")?.unbind(),
            received: class("Received")?.unbind(),
            corrupt: class("Corrupt")?.unbind(),
            exited: class("Exited")?.unbind(),
        })
    })
}

/// The UTF-8 of a string, lone surrogates included.
pub fn encode<'a>(text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(text) = text.to_str() {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let encoded = text.call_method1(
        intern!(text.py(), "encode"),
        (
            intern!(text.py(), "utf-8"),
            intern!(text.py(), "surrogatepass"),
        ),
    )?;
    Ok(Cow::Owned(encoded.cast::<PyBytes>()?.as_bytes().to_vec()))
}

/// The string of what [`encode`] gave.
pub fn string<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(PyString::new(py, text)),
        Err(_) => PyString::from_encoded_object(
            &PyBytes::new(py, bytes),
            Some(c"utf-8"),
            Some(c"surrogatepass"),
        ),
    }
}

/// A command; `text` is what it was parsed from.
pub fn command<'py>(
    py: Python<'py>,
    command: &Command<'_>,
    text: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    let messages = messages(py)?;
    match command {
        Command::Stop => Ok(messages.stop.bind(py).clone()),
        Command::Terminate { early: false } => Ok(messages.terminate.bind(py).clone()),
        Command::Terminate { early: true } => Ok(messages.terminate_early.bind(py).clone()),
        Command::Scale(wanted) => messages.scale.bind(py).call1((*wanted,)),
        Command::Restart {
            names,
            files,
            startup_first,
        } => {
            let strings = |names: &Vec<&[u8]>| {
                let names: PyResult<Vec<_>> = names.iter().map(|name| string(py, name)).collect();
                PyTuple::new(py, names?)
            };
            let names = names.as_ref().map(strings).transpose()?;
            let files = files.map(|files| string(py, files)).transpose()?;
            let order = if *startup_first {
                &messages.startup_first
            } else {
                &messages.shutdown_first
            };
            messages.restart.bind(py).call1((names, files, order))
        }
        Command::Invalid(reason) => {
            let text = string(py, text)?;
            messages.invalid.bind(py).call1((text, *reason))
        }
    }
}

/// What a payload asks for; `whole` gives it as Python's bytes.
pub fn decode<'py>(
    py: Python<'py>,
    payload: &[u8],
    whole: impl FnOnce() -> Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyAny>> {
    match pickle::recognise(payload) {
        Some(Value::None) => command(py, &Command::Stop, b""),
        Some(Value::Text(text)) => command(py, &command::parse(text), text),
        None => messages(py)?.opaque.bind(py).call1((whole(),)),
    }
}

/// A `Received`.
pub fn received<'py>(
    py: Python<'py>,
    payload: &[u8],
    sender: Option<i32>,
) -> PyResult<Bound<'py, PyAny>> {
    let command = decode(py, payload, || PyBytes::new(py, payload))?;
    messages(py)?.received.bind(py).call1((command, sender))
}

/// A `Corrupt`.
pub fn corrupt<'py>(
    py: Python<'py>,
    fault: &Fault,
    sender: Option<i32>,
) -> PyResult<Bound<'py, PyAny>> {
    let sample = PyBytes::new(py, &fault.sample);
    let corrupt = messages(py)?.corrupt.bind(py);
    corrupt.call1((fault.reason.as_str(), sample, sender))
}

/// An `Exited`.
pub fn exited<'py>(
    py: Python<'py>,
    key: &[u8],
    pid: i32,
    code: Option<i32>,
) -> PyResult<Bound<'py, PyAny>> {
    let exited = messages(py)?.exited.bind(py);
    exited.call1((string(py, key)?, pid, code))
}
