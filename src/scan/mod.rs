//! Changes of files, for the reloader.
//!
//! [`modules`] finds the files of the loaded modules. [`walk`] inspects one directory and the [`name`]s in
//! it, except for paths that [`ignore`] excludes. [`scanner`] runs [`walk`] over every watched directory and
//! yields the paths that changed; [`parallel`] spreads that work over threads.
//!
//! Paths go in, changed paths come out. Nothing here knows of the other folders.

pub mod ignore;
pub mod modules;
pub mod name;
mod parallel;
pub mod scanner;
pub mod walk;
