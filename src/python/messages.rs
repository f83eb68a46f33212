//! Creates instances of the classes in `worker._core.messages`.

use std::borrow::Cow;
use std::ffi::c_void;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString, PyTuple, PyType};
use pyo3::{ffi, intern};

use crate::control::command::{self, Command, Names};
use crate::control::frame::Fault;
use crate::control::pickle::{self, Value};

/// A frozen class with slots. Its `__init__` takes longer than all steps before it. An instance is therefore
/// created as `copy` does: allocated, and each slot set by its descriptor.
struct Class<const N: usize> {
    class: Py<PyType>,
    slots: [Slot; N],
}

struct Slot {
    descriptor: Py<PyAny>,
    set: ffi::descrsetfunc,
}

impl<const N: usize> Class<N> {
    fn new(module: &Bound<'_, PyModule>, name: &str, fields: [&str; N]) -> PyResult<Self> {
        let class: Bound<'_, PyType> = module.getattr(name)?.cast_into()?;
        let slots: Vec<String> = class.getattr("__slots__")?.extract()?;
        if slots != fields {
            let text = format!("{name} has the slots {slots:?}, not {fields:?}");
            return Err(PyTypeError::new_err(text));
        }
        // SAFETY: the pointer is that of a type.
        let flags = unsafe { ffi::PyType_GetFlags(class.as_type_ptr()) };
        if flags & ffi::Py_TPFLAGS_HAVE_GC == 0 {
            return Err(PyTypeError::new_err(format!("{name} is not collected")));
        }
        let slots: PyResult<Vec<_>> = fields.iter().map(|name| Slot::of(&class, name)).collect();
        let slots = slots?.try_into();
        Ok(Self {
            class: class.unbind(),
            slots: slots.map_err(|_| PyTypeError::new_err("a slot is missing"))?,
        })
    }

    fn make<'py>(
        &self,
        py: Python<'py>,
        values: [&Bound<'py, PyAny>; N],
    ) -> PyResult<Bound<'py, PyAny>> {
        let class = self.class.as_ptr().cast();
        // SAFETY: the pointer is that of a type, created by a class statement, whose instances have no
        // variable part.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_GenericAlloc(class, 0))? };
        for (slot, value) in self.slots.iter().zip(values) {
            // SAFETY: the descriptor is one of this class, and the function is that of its type. All three
            // objects are alive.
            let failed =
                unsafe { (slot.set)(slot.descriptor.as_ptr(), made.as_ptr(), value.as_ptr()) };
            if failed != 0 {
                return Err(PyErr::fetch(py));
            }
        }
        untrack(&made);
        Ok(made)
    }
}

/// Exempt an object from garbage collection. The objects created here hold texts and numbers, and are never
/// part of a cycle. Thousands of new objects that survive their first collection would trigger a full
/// collection, which takes 30 ms and more in the middle of a flood of messages.
fn untrack(made: &Bound<'_, PyAny>) {
    // SAFETY: the object is a tuple, or of a class that was checked to be collected. No other code has a
    // reference to it yet.
    unsafe { ffi::PyObject_GC_UnTrack(made.as_ptr().cast()) }
}

impl Slot {
    fn of(class: &Bound<'_, PyType>, name: &str) -> PyResult<Self> {
        let descriptor = class.getattr(name)?;
        // SAFETY: since Python 3.10 any type is allowed. The result is null, or a function of the type of
        // that slot.
        let set = unsafe {
            let set =
                ffi::PyType_GetSlot(descriptor.get_type().as_type_ptr(), ffi::Py_tp_descr_set);
            std::mem::transmute::<*mut c_void, Option<ffi::descrsetfunc>>(set)
        };
        Ok(Self {
            set: set.ok_or_else(|| PyTypeError::new_err(format!("{name} is no slot")))?,
            descriptor: descriptor.unbind(),
        })
    }
}

/// The classes, and the instances that never differ.
struct Messages {
    stop: Py<PyAny>,
    terminate: Py<PyAny>,
    terminate_early: Py<PyAny>,
    shutdown_first: Py<PyAny>,
    startup_first: Py<PyAny>,
    scale: Class<1>,
    restart: Class<3>,
    invalid: Class<2>,
    opaque: Class<1>,
    received: Class<2>,
    corrupt: Class<3>,
    exited: Class<3>,
}

fn messages(py: Python<'_>) -> PyResult<&Messages> {
    static MESSAGES: PyOnceLock<Messages> = PyOnceLock::new();
    MESSAGES.get_or_try_init(py, || {
        let module = &py.import("worker._core.messages")?;
        let class = |name: &str| module.getattr(name);
        let order = class("RestartOrder")?;
        Ok(Messages {
            stop: class("Stop")?.call0()?.unbind(),
            terminate: class("Terminate")?.call0()?.unbind(),
            terminate_early: class("Terminate")?.call1((true,))?.unbind(),
            shutdown_first: order.getattr("SHUTDOWN_FIRST")?.unbind(),
            startup_first: order.getattr("STARTUP_FIRST")?.unbind(),
            scale: Class::new(module, "Scale", ["num_workers"])?,
            restart: Class::new(module, "Restart", ["names", "files", "order"])?,
            invalid: Class::new(module, "Invalid", ["message", "reason"])?,
            opaque: Class::new(module, "Opaque", ["payload"])?,
            received: Class::new(module, "Received", ["command", "sender"])?,
            corrupt: Class::new(module, "Corrupt", ["reason", "sample", "sender"])?,
            exited: Class::new(module, "Exited", ["key", "pid", "exitcode"])?,
        })
    })
}

/// Return the UTF-8 of a string, lone surrogates included.
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

/// Return the string that [`encode`] encoded.
pub fn string<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    let size = ffi::Py_ssize_t::try_from(bytes.len())?;
    // SAFETY: the bytes and the name of the error handler outlive the call, which copies them. It returns a
    // new str, or null and sets an exception.
    let text = unsafe {
        let text =
            ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), size, c"surrogatepass".as_ptr());
        Bound::from_owned_ptr_or_err(py, text)?
    };
    Ok(text.cast_into()?)
}

fn tuple<'py>(py: Python<'py>, names: Names<'_>) -> PyResult<Bound<'py, PyTuple>> {
    let mut names = names.iter().map(|name| string(py, name));
    let tuple = match (names.next(), names.next()) {
        (Some(only), None) => PyTuple::new(py, [only?])?,
        (first, second) => {
            let all: PyResult<Vec<_>> = first.into_iter().chain(second).chain(names).collect();
            PyTuple::new(py, all?)?
        }
    };
    untrack(&tuple);
    Ok(tuple)
}

/// Create a command, which was parsed from `text`.
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
        Command::Scale(wanted) => {
            let wanted = wanted.into_pyobject(py)?;
            messages.scale.make(py, [&wanted])
        }
        Command::Restart {
            names,
            files,
            startup_first,
        } => {
            let order = if *startup_first {
                &messages.startup_first
            } else {
                &messages.shutdown_first
            };
            let names = match names {
                Some(names) => tuple(py, *names)?.into_any(),
                None => py.None().into_bound(py),
            };
            let files = match files {
                Some(files) => string(py, files)?.into_any(),
                None => py.None().into_bound(py),
            };
            messages.restart.make(py, [&names, &files, order.bind(py)])
        }
        Command::Invalid(reason) => {
            let text = string(py, text)?;
            messages
                .invalid
                .make(py, [&text, &PyString::new(py, reason)])
        }
    }
}

/// Decode the command in a payload; `whole` returns the payload as a Python object.
pub fn decode<'py>(
    py: Python<'py>,
    payload: &[u8],
    whole: impl FnOnce() -> Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyAny>> {
    match pickle::recognise(payload) {
        Some(Value::None) => command(py, &Command::Stop, b""),
        Some(Value::Text(text)) => command(py, &command::parse(text), text),
        None => messages(py)?.opaque.make(py, [&whole()]),
    }
}

/// Create a `Received`.
pub fn received<'py>(
    py: Python<'py>,
    payload: &[u8],
    sender: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let command = decode(py, payload, || PyBytes::new(py, payload))?;
    messages(py)?.received.make(py, [&command, sender])
}

/// Create a `Corrupt`.
pub fn corrupt<'py>(
    py: Python<'py>,
    fault: &Fault,
    sender: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let reason = PyString::new(py, &fault.reason);
    let sample = PyBytes::new(py, &fault.sample);
    messages(py)?.corrupt.make(py, [&reason, &sample, sender])
}

/// Create an `Exited`.
pub fn exited<'py>(
    py: Python<'py>,
    key: &[u8],
    pid: i32,
    code: Option<i32>,
) -> PyResult<Bound<'py, PyAny>> {
    let (key, pid) = (string(py, key)?, pid.into_pyobject(py)?);
    let code = code.into_pyobject(py)?;
    messages(py)?.exited.make(py, [&key, &pid, &code])
}
