//! What has changed among files: whole trees of directories, and single files.
//!
//! The directories stand side by side, each for itself: one that is known is opened and its files are
//! looked at by name; it is listed again only if its own time of change has moved. A directory that
//! appears in its parent, or is reached by a link, is the next round's. None is walked twice, by
//! whatever paths it may be reached, so a link cannot lead in circles.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CString;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::share;
use crate::walk::{self, Entry, Folder, Found, Identity, Look, Stamp};

/// Files to look at, and what they were like at the last look.
#[derive(Debug)]
pub struct Scanner {
    look: Look,
    roots: Vec<Vec<u8>>,
    folders: BTreeMap<Vec<u8>, Folder>,
    /// Directories that are not walked, but may be next time: what is there is known by another path,
    /// or was gone, or could not be listed.
    waiting: BTreeSet<Vec<u8>>,
    /// Single files, by their directory.
    files: BTreeMap<Vec<u8>, Vec<Entry>>,
    swept: bool,
}

/// A directory that was looked at.
struct Visit {
    path: Vec<u8>,
    folder: Option<Folder>,
    found: Found,
}

/// What one sweep has come to so far.
#[derive(Default)]
struct Sweep {
    changed: Vec<Vec<u8>>,
    seen: HashSet<Option<Identity>>,
    links: BTreeSet<Vec<u8>>,
}

impl Scanner {
    /// A scanner of all that is below `roots`, but for what bears one of the names in `ignored`.
    pub fn new(roots: Vec<Vec<u8>>, ignored: Vec<Vec<u8>>, settle: Duration) -> Self {
        let slashed = |mut root: Vec<u8>| {
            if !root.is_empty() && !root.ends_with(b"/") {
                root.push(b'/');
            }
            root
        };
        Self {
            look: Look { ignored, settle },
            roots: roots.into_iter().map(slashed).collect(),
            folders: BTreeMap::new(),
            waiting: BTreeSet::new(),
            files: BTreeMap::new(),
            swept: false,
        }
    }

    /// Look at these files as well from now on; what they are like at this moment is no change.
    pub fn watch<'a>(&mut self, paths: impl IntoIterator<Item = &'a [u8]>) {
        for path in paths {
            let (folder, name) = walk::split(path);
            let Ok(name) = CString::new(name) else {
                continue;
            };
            let entries = self.files.entry(folder.to_vec()).or_default();
            if let Err(at) = entries.binary_search_by(|entry| entry.name.cmp(&name)) {
                entries.insert(at, Entry::of(name, folder));
            }
        }
    }

    /// Look at everything; return the paths of what came, went or was changed since the last time,
    /// in the order of their bytes. The first time all is new, and nothing is returned.
    pub fn scan(&mut self) -> Vec<Vec<u8>> {
        let mut sweep = Sweep::default();
        let known = std::mem::take(&mut self.folders);
        self.visit(known.into_iter().collect(), &mut sweep);
        let unknown = |root: &&Vec<u8>| !self.folders.contains_key(*root);
        let roots: Vec<_> = self.roots.iter().filter(unknown).cloned().collect();
        for path in roots {
            self.try_again(path, &mut sweep);
        }
        let mut candidates = std::mem::take(&mut self.waiting);
        candidates.append(&mut sweep.links);
        while let Some(path) = candidates.pop_first() {
            self.try_again(path, &mut sweep);
            candidates.append(&mut sweep.links);
        }
        self.look_at_files(&mut sweep.changed);
        if !std::mem::replace(&mut self.swept, true) {
            sweep.changed.clear();
        }
        sweep.changed.sort_unstable();
        sweep.changed.dedup();
        sweep.changed
    }

    /// Visit directories, and those that come to light below them, and keep what is learnt.
    fn visit(&mut self, mut batch: Vec<(Vec<u8>, Folder)>, sweep: &mut Sweep) {
        while !batch.is_empty() {
            batch.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            let mut visits = self.look.at_all(std::mem::take(&mut batch), &sweep.seen);
            // The one that was here first stays, whoever has come to be the same.
            visits.sort_by_key(|visit| visit.found.before.is_some());
            for visit in visits {
                for (path, link) in self.settle(visit, sweep) {
                    if link {
                        sweep.links.insert(path);
                    } else {
                        batch.push((path, Folder::default()));
                    }
                }
            }
        }
    }

    /// Keep what a visit has taught; return the directories that came to light.
    fn settle(&mut self, mut visit: Visit, sweep: &mut Sweep) -> Vec<(Vec<u8>, bool)> {
        let Some(folder) = visit.folder else {
            sweep.changed.append(&mut visit.found.changed);
            self.waiting.insert(visit.path);
            return Vec::new();
        };
        if sweep.seen.insert(folder.identity) {
            sweep.changed.append(&mut visit.found.changed);
            self.folders.insert(visit.path, folder);
            return visit.found.below;
        }
        sweep
            .changed
            .extend(visit.found.before.into_iter().flatten());
        self.waiting.insert(visit.path);
        Vec::new()
    }

    /// Visit a directory that could not be walked before, or was reached by a link.
    fn try_again(&mut self, path: Vec<u8>, sweep: &mut Sweep) {
        if self.folders.contains_key(&path) {
            return;
        }
        self.visit(vec![(path.clone(), Folder::default())], sweep);
        if self.waiting.contains(&path) && !self.is_listed(&path) {
            self.waiting.remove(&path);
        }
    }

    /// Whether its parent has such a directory. (What is a root is tried again anyway.)
    fn is_listed(&self, path: &[u8]) -> bool {
        let (parent, name) = walk::split(path.strip_suffix(b"/").unwrap_or(path));
        let found = self
            .folders
            .get(parent)
            .and_then(|folder| folder.entry(name));
        found.is_some_and(|entry| entry.stamp == Some(Stamp::Directory))
    }

    fn look_at_files(&mut self, changed: &mut Vec<Vec<u8>>) {
        let mut found = Found::default();
        for (path, entries) in &mut self.files {
            let folder = walk::open(path);
            for entry in entries {
                match &folder {
                    Ok(fd) => entry.look(path, fd.as_fd(), &mut found),
                    Err(error) if walk::is_gone(*error) => entry.note(path, None, &mut found),
                    Err(_) => {}
                }
            }
        }
        changed.append(&mut found.changed);
    }
}

impl Look {
    /// Look at many directories, on several threads if that pays; the result has the same order.
    fn at_all(
        &self,
        batch: Vec<(Vec<u8>, Folder)>,
        seen: &HashSet<Option<Identity>>,
    ) -> Vec<Visit> {
        let entries = batch.iter().map(|(_, known)| known.weight()).sum();
        share::each(batch, entries, |(path, known)| {
            let (folder, found) = self.at(&path, known, seen);
            Visit {
                path,
                folder,
                found,
            }
        })
    }
}
