//! Which files the modules of a program come from.
//!
//! What a module says of itself need not be a file: a module in an archive counts as the archive. A
//! file that was seen in a directory is there, and a file, for as long as that directory has not
//! changed: only the directory is looked at then, and there are ten times fewer of them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, statat};

use crate::walk::{self, Identity};

/// What is known of the files that modules come from.
#[derive(Debug)]
pub struct Modules {
    settle: Duration,
    round: u64,
    folders: HashMap<Vec<u8>, Known>,
}

#[derive(Debug, Default)]
struct Known {
    round: u64,
    state: Option<(Identity, (i64, i64))>,
    settled: bool,
    /// Names of regular files that are no links.
    files: HashSet<Vec<u8>>,
}

impl Modules {
    /// `settle` is how long after its last change a directory may yet change unnoticed.
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            round: 0,
            folders: HashMap::new(),
        }
    }

    /// Find the files of all `paths` as they are now: each path itself if it is one, else the
    /// nearest of its parents that is.
    pub fn files<'a>(&mut self, paths: impl Iterator<Item = &'a [u8]>) -> Vec<Option<&'a [u8]>> {
        self.round += 1;
        paths.map(|path| self.file(path)).collect()
    }

    fn file<'a>(&mut self, mut path: &'a [u8]) -> Option<&'a [u8]> {
        while !self.is_file(path) {
            let parent = parent(path);
            if parent == path {
                return None;
            }
            path = parent;
        }
        Some(path)
    }

    fn is_file(&mut self, path: &[u8]) -> bool {
        let (folder, name) = walk::split(path);
        if !self.folders.contains_key(folder) {
            self.folders.insert(folder.to_vec(), Known::default());
        }
        let Some(known) = self.folders.get_mut(folder) else {
            return false;
        };
        if known.round != self.round {
            known.round = self.round;
            known.check(folder, self.settle);
        }
        if known.files.contains(name) {
            return true;
        }
        let kind = |flags| {
            let about = statat(CWD, path, flags).ok()?;
            Some(FileType::from_raw_mode(about.st_mode))
        };
        match kind(AtFlags::SYMLINK_NOFOLLOW) {
            Some(FileType::RegularFile) => {
                if known.settled {
                    known.files.insert(name.to_vec());
                }
                true
            }
            Some(FileType::Symlink) => kind(AtFlags::empty()) == Some(FileType::RegularFile),
            _ => false,
        }
    }
}

impl Known {
    fn check(&mut self, folder: &[u8], settle: Duration) {
        let now = SystemTime::now();
        let folder = if folder.is_empty() { b"./" } else { folder };
        let about = statat(CWD, folder, AtFlags::empty()).ok();
        let state = about.map(|about| (walk::identity(&about), walk::changed(&about)));
        if state != self.state {
            self.files.clear();
        }
        self.state = state;
        self.settled = state.is_some_and(|(_, changed)| walk::is_past(changed, now, settle));
    }
}

/// As `os.path.dirname` has it.
fn parent(path: &[u8]) -> &[u8] {
    let (head, _) = walk::split(path);
    let end = head.iter().rposition(|&byte| byte != b'/');
    end.map_or(head, |end| &head[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_those_of_python() {
        for (path, wanted) in [
            ("/a/b", "/a"),
            ("/a//b", "/a"),
            ("/a/", "/a"),
            ("/a", "/"),
            ("//", "//"),
            ("//a", "//"),
            ("a", ""),
            ("", ""),
        ] {
            assert_eq!(parent(path.as_bytes()), wanted.as_bytes(), "{path}");
        }
    }
}
