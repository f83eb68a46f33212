//! What has changed among files: whole trees of directories, and single files.
//!
//! The directories stand side by side, each for itself: one that is known is opened and its files are
//! looked at by name; it is listed again only if its own time of change has moved. A directory that
//! appears in its parent, or is reached by a link, is the next round's. None is walked twice, by
//! whatever paths it may be reached, so a link cannot lead in circles. With hints where to look, it is
//! the same sweep over fewer directories.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CString;
use std::ops::Bound;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::scan::ignore::Ignored;
use crate::scan::parallel;
use crate::scan::walk::{self, Entry, Folder, Found, Identity, Look, Stamp, Time};

/// Files to look at, and what they were like at the last look.
#[derive(Debug)]
pub struct Scanner {
    look: Look,
    folders: BTreeMap<Vec<u8>, Folder>,
    /// Directories that are not walked, but may be next time: what is there is known by another path,
    /// or was gone, or could not be listed.
    waiting: BTreeSet<Vec<u8>>,
    /// Single files, by their directory.
    files: BTreeMap<Vec<u8>, Vec<Entry>>,
    /// Files that were recent when they were added.
    recent: Vec<Vec<u8>>,
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
    recent: Vec<Vec<u8>>,
    seen: HashSet<Option<Identity>>,
    links: BTreeSet<Vec<u8>>,
    marked: Vec<Vec<u8>>,
}

impl Scanner {
    /// A scanner of all that is below `roots`, but for what is `ignored`. Of the first sweep it returns
    /// what has changed since `since`.
    pub fn new(
        roots: Vec<Vec<u8>>,
        ignored: Ignored,
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
            look: Look {
                roots: roots.into_iter().map(slashed).collect(),
                ignored,
                since,
                first: true,
                settle,
            },
            folders: BTreeMap::new(),
            waiting: BTreeSet::new(),
            files: BTreeMap::new(),
            recent: Vec::new(),
        }
    }

    /// Look at these files as well from now on; what they are like at this moment is no change, unless
    /// they are recent and nothing has been swept yet.
    pub fn watch<'a>(&mut self, paths: impl IntoIterator<Item = &'a [u8]>) {
        let mut found = Found::default();
        for path in paths {
            let (folder, name) = walk::split(path);
            let Ok(name) = CString::new(name) else {
                continue;
            };
            let entries = self.files.entry(folder.to_vec()).or_default();
            if let Err(at) = entries.binary_search_by(|entry| entry.name.cmp(&name)) {
                let entry = Entry::of(name.as_c_str().into(), folder, self.look.since, &mut found);
                entries.insert(at, entry);
            }
        }
        self.recent.append(&mut found.recent);
    }

    /// Look at what the hints point at, or at everything; return the paths of what came, went or was
    /// changed since the last time, in the order of their bytes. The first time, all is looked at, and
    /// what is recent is returned.
    pub fn scan(&mut self, hints: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
        let mut sweep = Sweep::default();
        let hints = hints.filter(|_| !self.look.first);
        let known = match hints {
            None => std::mem::take(&mut self.folders),
            Some(hints) => {
                let hinted = hinted(&self.folders, hints);
                let taken = hinted.iter().map(|path| self.folders.remove_entry(path));
                taken.flatten().collect()
            }
        };
        sweep.seen = self.folders.values().map(|known| known.identity).collect();
        self.visit(known.into_iter().collect(), &mut sweep);
        let unknown = |root: &&Vec<u8>| !self.folders.contains_key(*root);
        let roots: Vec<_> = self.look.roots.iter().filter(unknown).cloned().collect();
        for path in roots {
            self.try_again(path, &mut sweep);
        }
        let mut candidates = std::mem::take(&mut self.waiting);
        candidates.append(&mut sweep.links);
        while let Some(path) = candidates.pop_first() {
            self.try_again(path, &mut sweep);
            candidates.append(&mut sweep.links);
        }
        let mut files = self.look_at_files(hints);
        if std::mem::take(&mut self.look.first) {
            sweep.changed = sweep.recent;
            files = std::mem::take(&mut self.recent);
            self.look.since = None;
        }
        for marked in sweep.marked {
            self.pass_over(&marked, &mut sweep.changed);
        }
        sweep.changed.append(&mut files);
        sweep.changed.sort_unstable();
        sweep.changed.dedup();
        sweep.changed
    }

    /// The directories that are walked.
    pub fn folders(&self) -> impl Iterator<Item = &[u8]> {
        let bare = |path: &'_ Vec<u8>| match path.len() {
            0 | 1 => path.len(),
            slashed => slashed - 1,
        };
        self.folders.keys().map(move |path| &path[..bare(path)])
    }

    /// The links in them, wherever they lead.
    pub fn links(&self) -> impl Iterator<Item = Vec<u8>> {
        self.folders.iter().flat_map(|(path, folder)| {
            let links = folder.entries.iter().filter(|entry| entry.is_link());
            links.map(|entry| [path, entry.name.to_bytes()].concat())
        })
    }

    /// Forget what is below a directory that bears a mark, but for what is asked for by itself; that it
    /// comes or goes is no change.
    fn pass_over(&mut self, marked: &[u8], changed: &mut Vec<Vec<u8>>) {
        let roots = self.look.roots.iter();
        let inner: Vec<_> = roots
            .filter(|root| root.starts_with(marked))
            .cloned()
            .collect();
        let stays = |path: &[u8]| {
            !path.starts_with(marked) || inner.iter().any(|root| path.starts_with(root))
        };
        self.folders.retain(|path, _| path == marked || stays(path));
        self.waiting.retain(|path| stays(path));
        changed
            .retain(|path| stays(path) && marked.strip_suffix(b"/").is_none_or(|own| own != path));
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
        sweep.recent.append(&mut visit.found.recent);
        if visit.found.marked {
            sweep.marked.push(visit.path.clone());
        }
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

    /// Look at the single files; return those that have changed.
    fn look_at_files(&mut self, hints: Option<&[Vec<u8>]>) -> Vec<Vec<u8>> {
        let mut found = Found::default();
        let hinted = hints.map(|hints| hinted(&self.files, hints));
        for (path, entries) in &mut self.files {
            if hinted.as_ref().is_some_and(|hinted| !hinted.contains(path)) {
                continue;
            }
            let folder = walk::open(path);
            for entry in entries {
                match &folder {
                    Ok(fd) => entry.look(path, fd.as_fd(), None, &mut found),
                    Err(error) if walk::is_gone(*error) => entry.note(path, None, &mut found),
                    Err(_) => {}
                }
            }
        }
        found.changed
    }
}

/// Which directories hints point at: the one that a path is in, and all that are at or below the path.
fn hinted<V>(known: &BTreeMap<Vec<u8>, V>, hints: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    for hint in hints {
        let hint = hint.strip_suffix(b"/").unwrap_or(hint);
        let (folder, _) = walk::split(hint);
        let own = known.get_key_value(folder).map(|(path, _)| path);
        let below = [hint, b"/"].concat();
        let from = (Bound::Included(below.as_slice()), Bound::Unbounded);
        let all = known.range::<[u8], _>(from).map(|(path, _)| path);
        let all = all.take_while(|path| path.starts_with(&below));
        found.extend(own.into_iter().chain(all).cloned());
    }
    found
}

impl Look {
    /// Look at many directories, on several threads if that pays; the result has the same order.
    fn at_all(
        &self,
        batch: Vec<(Vec<u8>, Folder)>,
        seen: &HashSet<Option<Identity>>,
    ) -> Vec<Visit> {
        let entries = batch.iter().map(|(_, known)| known.weight()).sum();
        parallel::each(batch, entries, |(path, known)| {
            let (folder, found) = self.at(&path, known, seen);
            Visit {
                path,
                folder,
                found,
            }
        })
    }
}
