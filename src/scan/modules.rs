//! Finds the files of the modules of a program.
//!
//! The path of a module need not be a file: a module in an archive counts as the archive. A file that was
//! seen in a directory still exists while that directory is unchanged. Only the directory is inspected then;
//! there are about ten times fewer directories than files.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, statat};

use crate::scan::parallel;
use crate::scan::walk::{self, Identity, Time};

/// A cache of the files of modules, by directory.
#[derive(Debug)]
pub struct Modules {
    settle: Duration,
    folders: HashMap<Vec<u8>, CachedFolder>,
}

#[derive(Debug, Default)]
struct CachedFolder {
    state: Option<(Identity, Time)>,
    settled: bool,
    /// The names of regular files that are not links.
    files: HashSet<Vec<u8>>,
}

impl Modules {
    /// Create an empty cache. For `settle` after its last change, a directory may change again unnoticed.
    pub fn new(settle: Duration) -> Self {
        Self {
            settle,
            folders: HashMap::new(),
        }
    }

    /// Find the present file of each of `paths`: the path itself if it is a file, else its nearest parent
    /// that is one.
    pub fn files<'a>(&mut self, paths: &[&'a [u8]]) -> Vec<Option<&'a [u8]>> {
        let mut together: HashMap<&[u8], Vec<(usize, &[u8])>> = HashMap::new();
        for (number, path) in paths.iter().enumerate() {
            let (folder, _) = walk::split(path);
            together.entry(folder).or_default().push((number, path));
        }
        let mut unknown = 0;
        // A directory without modules is dropped from the cache.
        let mut before = std::mem::take(&mut self.folders);
        let folders = together.into_iter().map(|(folder, sought)| {
            let known = before.remove_entry(folder);
            let (folder, known) =
                known.unwrap_or_else(|| (folder.to_vec(), CachedFolder::default()));
            unknown += sought.len().saturating_sub(known.files.len());
            (folder, known, sought)
        });
        let folders: Vec<_> = folders.collect();
        let inspected = parallel::map(folders, unknown, |(folder, mut known, sought)| {
            known.check(&folder, self.settle);
            let found = known.find(&folder, &sought);
            (folder, known, found)
        });
        let mut files = vec![None; paths.len()];
        for (folder, known, found) in inspected {
            self.folders.insert(folder, known);
            for (number, file) in found {
                files[number] = file;
            }
        }
        files
    }
}

impl CachedFolder {
    fn check(&mut self, folder: &[u8], settle: Duration) {
        let now = SystemTime::now();
        let about = statat(CWD, walk::or_here(folder), AtFlags::empty()).ok();
        let state = about.map(|about| (walk::identity(&about), walk::changed(&about)));
        if state != self.state {
            self.files.clear();
        }
        self.state = state;
        self.settled = state.is_some_and(|(_, changed)| walk::is_past(changed, now, settle));
    }

    fn find<'a>(
        &mut self,
        folder: &[u8],
        sought: &[(usize, &'a [u8])],
    ) -> Vec<(usize, Option<&'a [u8]>)> {
        let mut opened = None;
        let mut is_file = |name| {
            self.files.contains(name) || {
                let fd = opened.get_or_insert_with(|| walk::open(folder));
                fd.as_ref().is_ok_and(|fd| self.has(fd.as_fd(), name))
            }
        };
        let file = |&(number, path): &(usize, &'a [u8])| {
            let (_, name) = walk::split(path);
            (
                number,
                if is_file(name) {
                    Some(path)
                } else {
                    above(path)
                },
            )
        };
        sought.iter().map(file).collect()
    }

    fn has(&mut self, folder: BorrowedFd<'_>, name: &[u8]) -> bool {
        match kind(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Some(FileType::RegularFile) => {
                if self.settled {
                    self.files.insert(name.to_vec());
                }
                true
            }
            Some(FileType::Symlink) => is_file(folder, name),
            _ => false,
        }
    }
}

/// Return the nearest parent of a path that is a file.
fn above(mut path: &[u8]) -> Option<&[u8]> {
    loop {
        let parent = parent(path);
        if parent == path {
            return None;
        }
        if is_file(CWD, parent) {
            return Some(parent);
        }
        path = parent;
    }
}

fn is_file(folder: BorrowedFd<'_>, path: &[u8]) -> bool {
    kind(folder, path, AtFlags::empty()) == Some(FileType::RegularFile)
}

fn kind(folder: BorrowedFd<'_>, path: &[u8], flags: AtFlags) -> Option<FileType> {
    let about = statat(folder, path, flags).ok()?;
    Some(FileType::from_raw_mode(about.st_mode))
}

/// Return the parent of a path as `os.path.dirname` does.
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
