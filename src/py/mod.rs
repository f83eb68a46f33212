//! What Python sees of the core.

#[pyo3::pymodule]
mod _native {}
