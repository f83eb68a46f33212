//! Inspects one directory: its entries, and the present state of each file in it.
//!
//! A path is bytes in Python's file system encoding. The path of a directory ends with a slash, or is empty
//! for the current directory, so that path and name together are the path of an entry.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, stat, statat};
use rustix::io::Errno;

use super::ignore::IgnoreRules;
use super::name::Name;

/// Files that mark a directory as generated: a virtual environment, a cache.
const MARKERS: [&[u8]; 2] = [b"pyvenv.cfg", b"CACHEDIR.TAG"];
/// The cost of a directory that was not listed yet, in entries.
const UNLISTED: usize = 16;

/// The devices of the kernel's own file systems. They hold no source code and are as large as the machine.
/// Where `/proc` or `/sys` is not mounted, it is a directory like any other.
static KERNEL: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let device = |path| stat(path).map(|about| about.st_dev);
    let devices = ["/proc", "/sys"].into_iter().flat_map(device);
    devices.filter(|&found| device("/") != Ok(found)).collect()
});

#[cfg(target_os = "linux")]
const PATH: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const PATH: OFlags = OFlags::RDONLY;

/// A time: seconds and nanoseconds.
pub type Time = (i64, u32);

/// The state of a directory entry, to be compared with a later one.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Stamp {
    /// A directory; its entries are inspected by a visit of its own.
    Directory,
    /// A pipe, a socket, a device or a file of the kernel: only its creation and removal count.
    Other,
    /// A regular file.
    File {
        /// Seconds of the modification time.
        mtime: i64,
        /// Nanoseconds of the modification time.
        mtime_nsec: u32,
        /// The size in bytes.
        size: i64,
        /// The inode.
        inode: u64,
    },
}

/// The kind of a directory entry, links not followed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link; its state is that of its target.
    Link,
    /// Any other entry.
    File,
}

/// One name in a directory.
#[derive(Debug)]
pub struct DirEntry {
    /// The name.
    pub name: Name,
    kind: Kind,
    /// `None` if there is no such file, as for a dangling link.
    pub stamp: Option<Stamp>,
}

/// The device and inode of a directory: the same for each of its paths.
pub type Identity = (u64, u64);

/// A directory as it was last seen.
#[derive(Debug, Default)]
pub struct Folder {
    /// `None` until it is listed.
    pub identity: Option<Identity>,
    /// The time of its last change, such as a created or removed entry. No program can set this time.
    changed: Time,
    /// Whether a further change will have a later time.
    settled: bool,
    /// Whether it holds a marker file.
    marked: bool,
    /// Its entries, sorted by name.
    pub entries: Vec<DirEntry>,
}

/// The result of a visit to a directory.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths that were created, removed or changed.
    pub changed: Vec<Vec<u8>>,
    /// Directories that are new, and whether a link leads there.
    pub directories: Vec<(Vec<u8>, bool)>,
    /// If another directory had this path before: the paths in that directory.
    pub replaced: Option<Vec<Vec<u8>>>,
    /// Paths of files that changed at or after [`Walker::since`].
    pub recent: Vec<Vec<u8>>,
    /// Whether the directory holds a marker file, so that everything below it is excluded.
    pub marked: bool,
    /// Whether this belongs to the first scan, in which a new path is no change.
    pub first: bool,
}

/// The parameters of visits to directories.
#[derive(Debug)]
pub struct Walker {
    /// Directories to walk even if a rule excludes them.
    pub roots: Vec<Vec<u8>>,
    /// The rules for paths below a root.
    pub rules: IgnoreRules,
    /// The time from which on a change is recent.
    pub since: Option<Time>,
    /// Whether this is the first scan, in which a new path is no change.
    pub first: bool,
    /// The time after its last change in which a directory is listed again at every visit. Two changes may
    /// have the same time, because the clock of a file system may be as coarse as two seconds.
    pub settle: Duration,
}

impl Walker {
    /// Inspect the directory at `path`, which was `known` before. Return its present state, or `None` if it
    /// does not exist. A directory that cannot be inspected is returned as it was. A new one that was `seen`
    /// under another path is not listed.
    pub fn visit(
        &self,
        path: &[u8],
        mut known: Folder,
        seen: &HashSet<Option<Identity>>,
    ) -> (Option<Folder>, Findings) {
        let mut found = Findings {
            first: self.first,
            ..Findings::default()
        };
        let now = SystemTime::now();
        let state = open(path).and_then(|fd| Ok((fstat(&fd)?, fd)));
        let (about, fd) = match state {
            Ok(state) => state,
            Err(error) if is_gone(error) => {
                found.changed = known.paths(path).collect();
                found.marked = known.marked;
                return (None, found);
            }
            Err(_) => return (known.if_listed(), found),
        };
        if KERNEL.contains(&about.st_dev) {
            found.changed = known.paths(path).collect();
            return (None, found);
        }
        let (identity, changed) = (identity(&about), changed(&about));
        if known.identity.is_none() && seen.contains(&Some(identity)) {
            return (None, found);
        }
        let same = known.identity == Some(identity) && known.changed == changed;
        if !(same && known.settled) {
            let Ok(names) = self.list(path, fd.as_fd(), &mut found) else {
                return (known.if_listed(), found);
            };
            if found.marked {
                known.entries.clear();
            }
            if known.identity.is_some_and(|known| known != identity) {
                found.replaced = Some(known.paths(path).collect());
            }
            known.merge(path, names, &mut found);
            known.identity = Some(identity);
            known.marked = found.marked;
            known.changed = changed;
            known.settled = is_past(changed, now, self.settle);
        }
        for entry in &mut known.entries {
            if entry.kind != Kind::Directory {
                entry.inspect(path, fd.as_fd(), self.since, &mut found);
            }
        }
        (Some(known), found)
    }

    /// List the entries of a directory, sorted by name, without their stamps. A marked directory has none.
    fn list(
        &self,
        path: &[u8],
        fd: BorrowedFd<'_>,
        found: &mut Findings,
    ) -> Result<Vec<DirEntry>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = self.root_of(path);
        let mut below = path[root.len()..].to_vec();
        let mut entries = Vec::new();
        for entry in Dir::new(openat(fd, c".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if path != root && MARKERS.contains(&name.to_bytes()) {
                found.marked = true;
                return Ok(Vec::new());
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(about) => FileType::from_raw_mode(about.st_mode),
                    Err(_) => continue,
                },
                kind => kind,
            };
            let kind = match kind {
                FileType::Directory => Kind::Directory,
                FileType::Symlink => Kind::Link,
                _ => Kind::File,
            };
            below.truncate(path.len() - root.len());
            below.extend_from_slice(name.to_bytes());
            if kind == Kind::Directory {
                below.push(b'/');
            }
            if self.rules.matches(&below) {
                continue;
            }
            entries.push(DirEntry {
                name: name.into(),
                kind,
                stamp: None,
            });
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        entries.shrink_to_fit();
        Ok(entries)
    }

    /// Return the innermost root of a path.
    fn root_of<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        let roots = self.roots.iter().filter(|root| path.starts_with(root));
        &path[..roots.map(Vec::len).max().unwrap_or(0)]
    }
}

impl Folder {
    fn if_listed(self) -> Option<Self> {
        self.identity.is_some().then_some(self)
    }

    /// Return the approximate cost of a visit, in entries.
    pub fn weight(&self) -> usize {
        self.entries.len().max(UNLISTED)
    }

    /// Return the entry of this name.
    pub fn entry(&self, name: &[u8]) -> Option<&DirEntry> {
        let found = self
            .entries
            .binary_search_by(|entry| entry.name.to_bytes().cmp(name));
        found.ok().map(|at| &self.entries[at])
    }

    /// Replace the entries with a new list; keep the stamps of the known ones.
    fn merge(&mut self, path: &[u8], mut entries: Vec<DirEntry>, found: &mut Findings) {
        let mut known = std::mem::take(&mut self.entries).into_iter().peekable();
        for entry in &mut entries {
            while let Some(mut gone) = known.next_if(|known| *known.name < *entry.name) {
                gone.update(path, None, found);
            }
            let before = known.next_if(|known| *known.name == *entry.name);
            entry.stamp = before.and_then(|known| known.stamp);
            if entry.kind == Kind::Directory {
                entry.update(path, Some(Stamp::Directory), found);
            }
        }
        known.for_each(|mut gone| gone.update(path, None, found));
        self.entries = entries;
    }

    /// Return the paths of the existing entries.
    pub fn paths<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
        let there = self.entries.iter().filter(|entry| entry.stamp.is_some());
        there.map(move |entry| [path, entry.name.to_bytes()].concat())
    }
}

impl DirEntry {
    /// Inspect the entry of this name in the directory at `path`.
    pub fn of(name: Name, path: &[u8], since: Option<Time>, found: &mut Findings) -> Self {
        let mut entry = Self {
            name,
            kind: Kind::File,
            stamp: None,
        };
        if let Ok(fd) = open(path) {
            entry.inspect(path, fd.as_fd(), since, found);
        }
        entry
    }

    /// Return whether this is a link.
    pub fn is_link(&self) -> bool {
        self.kind == Kind::Link
    }

    /// Update the stamp from the file. If the file cannot be inspected, the stamp stays.
    pub fn inspect(
        &mut self,
        path: &[u8],
        fd: BorrowedFd<'_>,
        since: Option<Time>,
        found: &mut Findings,
    ) {
        match statat(fd, &*self.name, AtFlags::empty()) {
            Ok(about) => {
                let stamp = stamp(&about);
                let is_file = matches!(stamp, Stamp::File { .. });
                if is_file && since.is_some_and(|since| changed(&about) >= since) {
                    found.recent.push([path, self.name.to_bytes()].concat());
                }
                self.update(path, Some(stamp), found);
            }
            Err(error) if is_gone(error) => self.update(path, None, found),
            Err(_) => {}
        }
    }

    /// Set the stamp; add the path to the findings if that is a change.
    pub fn update(&mut self, path: &[u8], stamp: Option<Stamp>, found: &mut Findings) {
        if self.stamp == stamp {
            return;
        }
        self.stamp = stamp;
        if stamp == Some(Stamp::Directory) {
            let below = [path, self.name.to_bytes(), b"/"].concat();
            found.directories.push((below, self.kind == Kind::Link));
        }
        if !found.first {
            found.changed.push([path, self.name.to_bytes()].concat());
        }
    }
}

/// Open a directory, to inspect its entries by name.
pub fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = or_here(path);
    let flags = PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
}

/// Return the path of a directory for a system call: the empty path is the current directory.
pub fn or_here(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"./" } else { path }
}

/// Return whether an error means that the file does not exist, rather than that it cannot be inspected.
pub fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// Split a path into its directory, with the slash, and the name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    path.split_at(slash.map_or(0, |slash| slash + 1))
}

/// Return the time of the last change (`st_ctime`).
pub fn changed(about: &Stat) -> Time {
    (about.st_ctime, nanoseconds(about.st_ctime_nsec))
}

/// Return the device and inode.
pub fn identity(about: &Stat) -> Identity {
    (about.st_dev, about.st_ino)
}

/// Return whether `time` was at least `settle` before `now`.
pub fn is_past(time: Time, now: SystemTime, settle: Duration) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let last = now.saturating_sub(settle);
    let seconds = i64::try_from(last.as_secs()).unwrap_or(i64::MAX);
    time <= (seconds, last.subsec_nanos())
}

fn stamp(about: &Stat) -> Stamp {
    match FileType::from_raw_mode(about.st_mode) {
        FileType::Directory => return Stamp::Directory,
        FileType::RegularFile if !KERNEL.contains(&about.st_dev) => {}
        _ => return Stamp::Other,
    }
    Stamp::File {
        mtime: about.st_mtime,
        mtime_nsec: nanoseconds(about.st_mtime_nsec),
        size: about.st_size,
        inode: about.st_ino,
    }
}

fn nanoseconds(value: impl TryInto<u32>) -> u32 {
    value.try_into().unwrap_or_default()
}
