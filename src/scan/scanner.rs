//! Finds changes in directory trees and in single files.
//!
//! Each directory is visited on its own. A known directory is opened and its files are inspected by name; it
//! is listed again only if its time of change has moved. A directory that is new in its parent, or that a
//! link leads to, is visited in the next round. No directory is walked twice, under any of its paths, so
//! links cannot form an endless loop. A scan of given paths is the same over fewer directories.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CString;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::time::Duration;

use super::ignore::IgnoreRules;
use super::parallel;
use super::walk::{self, DirEntry, Findings, Folder, Identity, Stamp, Time, Walker};

/// The watched files, as they were at the last scan.
#[derive(Debug)]
pub struct Scanner {
    walker: Walker,
    folders: BTreeMap<Vec<u8>, Folder>,
    /// Directories that are tried again at the next scan: each was known by another path, did not exist or
    /// could not be listed.
    retries: BTreeSet<Vec<u8>>,
    /// Single files, by their directory.
    files: BTreeMap<Vec<u8>, Vec<DirEntry>>,
    /// Single files that were recent when they were added.
    recent: Vec<Vec<u8>>,
}

/// A directory that was visited.
struct Visit {
    path: Vec<u8>,
    folder: Option<Folder>,
    found: Findings,
}

/// The results of one scan so far.
#[derive(Default)]
struct Scan {
    changed: Vec<Vec<u8>>,
    recent: Vec<Vec<u8>>,
    seen: HashSet<Option<Identity>>,
    links: BTreeSet<Vec<u8>>,
    marked: Vec<Vec<u8>>,
}

impl Scanner {
    /// Create a scanner of everything below `roots`, except for the paths that `rules` exclude. The first
    /// scan returns the files that changed at or after `since`.
    pub fn new(
        roots: Vec<Vec<u8>>,
        rules: IgnoreRules,
        settle: Duration,
        since: Option<Time>,
    ) -> Self {
        let slashed = |mut root: Vec<u8>| {
            if !root.is_empty() && !root.ends_with(b"/") {
                root.push(b'/');
            }
            root
        };
        Self {
            walker: Walker {
                roots: roots.into_iter().map(slashed).collect(),
                rules,
                since,
                first: true,
                settle,
            },
            folders: BTreeMap::new(),
            retries: BTreeSet::new(),
            files: BTreeMap::new(),
            recent: Vec::new(),
        }
    }

    /// Watch these files, too. Their present state is no change; before the first scan, a recent file is one.
    pub fn watch<'a>(&mut self, paths: impl IntoIterator<Item = &'a [u8]>) {
        let mut found = Findings::default();
        for path in paths {
            let (folder, name) = walk::split(path);
            let Ok(name) = CString::new(name) else {
                continue;
            };
            let entries = self.files.entry(folder.to_vec()).or_default();
            if let Err(at) = entries.binary_search_by(|entry| entry.name.cmp(&name)) {
                let entry = DirEntry::of(
                    name.as_c_str().into(),
                    folder,
                    self.walker.since,
                    &mut found,
                );
                entries.insert(at, entry);
            }
        }
        self.recent.append(&mut found.recent);
    }

    /// Scan the directories of these `paths`, or everything. Return the paths that were created, removed or
    /// changed since the last scan, in the order of their bytes. The first scan inspects everything and
    /// returns the recent files.
    pub fn scan(&mut self, paths: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
        let mut scan = Scan::default();
        let paths = paths.filter(|_| !self.walker.first);
        let known = match paths {
            None => std::mem::take(&mut self.folders),
            Some(paths) => {
                let affected = affected(&self.folders, paths);
                let taken = affected.iter().map(|path| self.folders.remove_entry(path));
                taken.flatten().collect()
            }
        };
        scan.seen = self.folders.values().map(|known| known.identity).collect();
        self.visit(known.into_iter().collect(), &mut scan);
        let unknown = |root: &&Vec<u8>| !self.folders.contains_key(*root);
        let roots: Vec<_> = self.walker.roots.iter().filter(unknown).cloned().collect();
        for path in roots {
            self.retry(path, &mut scan);
        }
        let mut candidates = std::mem::take(&mut self.retries);
        candidates.append(&mut scan.links);
        while let Some(path) = candidates.pop_first() {
            self.retry(path, &mut scan);
            candidates.append(&mut scan.links);
        }
        let mut files = self.inspect_files(paths);
        if std::mem::take(&mut self.walker.first) {
            scan.changed = scan.recent;
            files = std::mem::take(&mut self.recent);
            self.walker.since = None;
        }
        for marked in scan.marked {
            self.exclude(&marked, &mut scan.changed);
        }
        scan.changed.append(&mut files);
        scan.changed.sort_unstable();
        scan.changed.dedup();
        scan.changed
    }

    /// Return the directories that are walked.
    pub fn folders(&self) -> impl Iterator<Item = &[u8]> {
        let bare = |path: &'_ Vec<u8>| match path.len() {
            0 | 1 => path.len(),
            slashed => slashed - 1,
        };
        self.folders.keys().map(move |path| &path[..bare(path)])
    }

    /// Return the links in the directories that are walked.
    pub fn links(&self) -> impl Iterator<Item = Vec<u8>> {
        self.folders.iter().flat_map(|(path, folder)| {
            let links = folder.entries.iter().filter(|entry| entry.is_link());
            links.map(|entry| [path, entry.name.to_bytes()].concat())
        })
    }

    /// Forget everything below a marked directory, except for roots. The creation or removal of that
    /// directory is no change.
    fn exclude(&mut self, marked: &[u8], changed: &mut Vec<Vec<u8>>) {
        let roots = self.walker.roots.iter();
        let inner: Vec<_> = roots
            .filter(|root| root.starts_with(marked))
            .cloned()
            .collect();
        let stays = |path: &[u8]| {
            !path.starts_with(marked) || inner.iter().any(|root| path.starts_with(root))
        };
        self.folders.retain(|path, _| path == marked || stays(path));
        self.retries.retain(|path| stays(path));
        changed
            .retain(|path| stays(path) && marked.strip_suffix(b"/").is_none_or(|own| own != path));
    }

    /// Visit directories and the new directories below them; keep the results.
    fn visit(&mut self, mut batch: Vec<(Vec<u8>, Folder)>, scan: &mut Scan) {
        while !batch.is_empty() {
            batch.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            let mut visits = self
                .walker
                .visit_all(std::mem::take(&mut batch), &scan.seen);
            // Of two paths to one directory, the path that had it before keeps it.
            visits.sort_by_key(|visit| visit.found.replaced.is_some());
            for visit in visits {
                for (path, link) in self.keep(visit, scan) {
                    if link {
                        scan.links.insert(path);
                    } else {
                        batch.push((path, Folder::default()));
                    }
                }
            }
        }
    }

    /// Keep the result of a visit; return the new directories.
    fn keep(&mut self, mut visit: Visit, scan: &mut Scan) -> Vec<(Vec<u8>, bool)> {
        scan.recent.append(&mut visit.found.recent);
        if visit.found.marked {
            scan.marked.push(visit.path.clone());
        }
        let Some(folder) = visit.folder else {
            scan.changed.append(&mut visit.found.changed);
            self.retries.insert(visit.path);
            return Vec::new();
        };
        if scan.seen.insert(folder.identity) {
            scan.changed.append(&mut visit.found.changed);
            self.folders.insert(visit.path, folder);
            return visit.found.directories;
        }
        scan.changed
            .extend(visit.found.replaced.into_iter().flatten());
        self.retries.insert(visit.path);
        Vec::new()
    }

    /// Visit a directory that could not be walked before, or that a link leads to.
    fn retry(&mut self, path: Vec<u8>, scan: &mut Scan) {
        if self.folders.contains_key(&path) {
            return;
        }
        self.visit(vec![(path.clone(), Folder::default())], scan);
        if self.retries.contains(&path) && !self.is_listed(&path) {
            self.retries.remove(&path);
        }
    }

    /// Return whether the parent has such a directory. (A root is tried at each scan anyway.)
    fn is_listed(&self, path: &[u8]) -> bool {
        let (parent, name) = walk::split(path.strip_suffix(b"/").unwrap_or(path));
        let found = self
            .folders
            .get(parent)
            .and_then(|folder| folder.entry(name));
        found.is_some_and(|entry| entry.stamp == Some(Stamp::Directory))
    }

    /// Inspect the single files; return the changed ones.
    fn inspect_files(&mut self, paths: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
        let mut found = Findings::default();
        let affected = paths.map(|paths| affected(&self.files, paths));
        for (path, entries) in &mut self.files {
            if affected
                .as_ref()
                .is_some_and(|affected| !affected.contains(path))
            {
                continue;
            }
            let folder = walk::open(path);
            for entry in entries {
                match &folder {
                    Ok(fd) => entry.inspect(path, fd.as_fd(), None, &mut found),
                    Err(error) if walk::is_gone(*error) => entry.update(path, None, &mut found),
                    Err(_) => {}
                }
            }
        }
        found.changed
    }
}

/// Return the known directories that changes at these paths affect: the parent of each path, and the
/// directories at or below it.
fn affected<V>(known: &BTreeMap<Vec<u8>, V>, paths: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    for path in paths {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let (folder, _) = walk::split(path);
        let own = known.get_key_value(folder).map(|(path, _)| path);
        let below = [path, b"/"].concat();
        let from = (Bound::Included(below.as_slice()), Bound::Unbounded);
        let all = known.range::<[u8], _>(from).map(|(path, _)| path);
        let all = all.take_while(|path| path.starts_with(&below));
        found.extend(own.into_iter().chain(all).cloned());
    }
    found
}

impl Walker {
    /// Visit many directories, on several threads if that is faster. The result has the same order.
    fn visit_all(
        &self,
        batch: Vec<(Vec<u8>, Folder)>,
        seen: &HashSet<Option<Identity>>,
    ) -> Vec<Visit> {
        let entries = batch.iter().map(|(_, known)| known.weight()).sum();
        parallel::map(batch, entries, |(path, known)| {
            let (folder, found) = self.visit(&path, known, seen);
            Visit {
                path,
                folder,
                found,
            }
        })
    }
}
