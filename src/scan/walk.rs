//! One directory, looked at: what is in it, and what each of its files is like now.
//!
//! A path is the bytes that Python's file system encoding gives; a directory's ends with a slash (or is
//! empty: the current one), so that a name put behind it is the path of an entry.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, stat, statat};
use rustix::io::Errno;

use crate::scan::ignore::Ignored;
use crate::scan::name::Name;

/// What a directory holds, directly, that is none of its owner's work: a virtual environment, a cache.
const MARKS: [&[u8]; 2] = [b"pyvenv.cfg", b"CACHEDIR.TAG"];
/// What a look at a directory costs that is not known yet, taken for so many entries.
const UNLISTED: usize = 16;

/// The devices of the file systems in which the kernel shows itself: no work of anybody's, and as large as
/// the machine. Where there are none, these are directories as any other.
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

/// What tells one state of a file from another.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Stamp {
    /// A directory; what is in it is looked at on its own.
    Directory,
    /// A pipe, a socket, a device, what the kernel shows of itself: its coming and going counts.
    Other,
    /// A regular file.
    File {
        /// When it was modified: seconds.
        mtime: i64,
        /// And nanoseconds.
        mtime_nsec: u32,
        /// Bytes.
        size: i64,
        /// The inode.
        inode: u64,
    },
}

/// What a name in a directory is, by itself.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link; what it leads to is what counts.
    Link,
    /// Anything else.
    File,
}

/// A name in a directory.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: Name,
    kind: Kind,
    /// `None` if it is out of reach, as a link to nowhere is.
    pub stamp: Option<Stamp>,
}

/// Which directory it is, whatever its path.
pub type Identity = (u64, u64);

/// What is known of a directory.
#[derive(Debug, Default)]
pub struct Folder {
    /// Which one it is; `None` as long as it has not been listed.
    pub identity: Option<Identity>,
    /// When it last changed: entries came or went, for one. Nobody can set this time.
    changed: Time,
    /// Whether it will have another such time when it changes again.
    settled: bool,
    /// Whether it bears a mark.
    marked: bool,
    /// By name.
    pub entries: Vec<Entry>,
}

/// What a look at a directory brought to light.
#[derive(Debug, Default)]
pub struct Found {
    /// Paths that came, went, or are not what they were.
    pub changed: Vec<Vec<u8>>,
    /// Directories that are not known yet, and whether a link leads there.
    pub below: Vec<(Vec<u8>, bool)>,
    /// The paths that were known of another directory, if it was another one that was there before.
    pub before: Option<Vec<Vec<u8>>>,
    /// Paths of files that have changed since [`Look::since`].
    pub recent: Vec<Vec<u8>>,
    /// Whether the directory bears a mark, and all that is below it is passed over.
    pub marked: bool,
    /// Whether nobody asks what has changed, as all is new.
    pub all_new: bool,
}

/// How to look at directories.
#[derive(Debug)]
pub struct Look {
    /// Directories to walk, whatever the rules say.
    pub roots: Vec<Vec<u8>>,
    /// What is passed over, by its path below its root.
    pub ignored: Ignored,
    /// From when on a change is recent.
    pub since: Option<Time>,
    /// Whether all is new, and no change.
    pub first: bool,
    /// How long after its last change a directory is listed again all the same: two changes may bear
    /// one time, and the clock of a file system may be as coarse as two seconds.
    pub settle: Duration,
}

impl Look {
    /// Look at the directory at `path`, of which `known` is known; return what is known now, or `None`
    /// if there is no such directory, or no more. One that cannot be looked at is as it was.
    /// A new one that is among those `seen` already is not listed.
    pub fn at(
        &self,
        path: &[u8],
        mut known: Folder,
        seen: &HashSet<Option<Identity>>,
    ) -> (Option<Folder>, Found) {
        let mut found = Found {
            all_new: self.first,
            ..Found::default()
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
                found.before = Some(known.paths(path).collect());
            }
            known.merge(path, names, &mut found);
            known.identity = Some(identity);
            known.marked = found.marked;
            known.changed = changed;
            known.settled = is_past(changed, now, self.settle);
        }
        for entry in &mut known.entries {
            if entry.kind != Kind::Directory {
                entry.look(path, fd.as_fd(), self.since, &mut found);
            }
        }
        (Some(known), found)
    }

    /// The entries of a directory, by name, not looked at yet; none if it bears a mark.
    fn list(
        &self,
        path: &[u8],
        fd: BorrowedFd<'_>,
        found: &mut Found,
    ) -> Result<Vec<Entry>, Errno> {
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
            if path != root && MARKS.contains(&name.to_bytes()) {
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
            if self.ignored.has(&below) {
                continue;
            }
            entries.push(Entry {
                name: name.into(),
                kind,
                stamp: None,
            });
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        entries.shrink_to_fit();
        Ok(entries)
    }

    /// The innermost root that a path is below.
    fn root_of<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        let roots = self.roots.iter().filter(|root| path.starts_with(root));
        &path[..roots.map(Vec::len).max().unwrap_or(0)]
    }
}

impl Folder {
    fn if_listed(self) -> Option<Self> {
        self.identity.is_some().then_some(self)
    }

    /// About how much work a look at it is, in entries.
    pub fn weight(&self) -> usize {
        self.entries.len().max(UNLISTED)
    }

    /// The entry of this name.
    pub fn entry(&self, name: &[u8]) -> Option<&Entry> {
        let found = self
            .entries
            .binary_search_by(|entry| entry.name.to_bytes().cmp(name));
        found.ok().map(|at| &self.entries[at])
    }

    /// Take over a new list of entries, with the stamps of those that are known.
    fn merge(&mut self, path: &[u8], mut entries: Vec<Entry>, found: &mut Found) {
        let mut known = std::mem::take(&mut self.entries).into_iter().peekable();
        for entry in &mut entries {
            while let Some(mut gone) = known.next_if(|known| *known.name < *entry.name) {
                gone.note(path, None, found);
            }
            let before = known.next_if(|known| *known.name == *entry.name);
            entry.stamp = before.and_then(|known| known.stamp);
            if entry.kind == Kind::Directory {
                entry.note(path, Some(Stamp::Directory), found);
            }
        }
        known.for_each(|mut gone| gone.note(path, None, found));
        self.entries = entries;
    }

    /// The paths of what is there.
    pub fn paths<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
        let there = self.entries.iter().filter(|entry| entry.stamp.is_some());
        there.map(move |entry| [path, entry.name.to_bytes()].concat())
    }
}

impl Entry {
    /// What bears this name in the directory at `path`, as it is now.
    pub fn of(name: Name, path: &[u8], since: Option<Time>, found: &mut Found) -> Self {
        let mut entry = Self {
            name,
            kind: Kind::File,
            stamp: None,
        };
        if let Ok(fd) = open(path) {
            entry.look(path, fd.as_fd(), since, found);
        }
        entry
    }

    /// Whether it is a link, wherever it leads.
    pub fn is_link(&self) -> bool {
        self.kind == Kind::Link
    }

    /// Look what it is like now. Where that cannot be told, it is as it was.
    pub fn look(
        &mut self,
        path: &[u8],
        fd: BorrowedFd<'_>,
        since: Option<Time>,
        found: &mut Found,
    ) {
        match statat(fd, &*self.name, AtFlags::empty()) {
            Ok(about) => {
                let stamp = stamp(&about);
                let counts = matches!(stamp, Stamp::File { .. });
                if counts && since.is_some_and(|since| changed(&about) >= since) {
                    found.recent.push([path, self.name.to_bytes()].concat());
                }
                self.note(path, Some(stamp), found);
            }
            Err(error) if is_gone(error) => self.note(path, None, found),
            Err(_) => {}
        }
    }

    /// Keep its stamp, and tell if that is a change.
    pub fn note(&mut self, path: &[u8], stamp: Option<Stamp>, found: &mut Found) {
        if self.stamp == stamp {
            return;
        }
        self.stamp = stamp;
        if stamp == Some(Stamp::Directory) {
            let below = [path, self.name.to_bytes(), b"/"].concat();
            found.below.push((below, self.kind == Kind::Link));
        }
        if !found.all_new {
            found.changed.push([path, self.name.to_bytes()].concat());
        }
    }
}

/// Open a directory to look at what is in it by name.
pub fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = or_here(path);
    let flags = PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
}

/// A directory's path as the system takes it: the empty one is the current directory's.
pub fn or_here(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"./" } else { path }
}

/// Whether an error says that there is nothing, rather than that it cannot be told.
pub fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// A path's directory, with its slash, and the name behind it.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|&byte| byte == b'/');
    path.split_at(slash.map_or(0, |slash| slash + 1))
}

/// When a directory, or what it says of itself, last changed.
pub fn changed(about: &Stat) -> Time {
    (about.st_ctime, nanoseconds(about.st_ctime_nsec))
}

/// Which directory it is.
pub fn identity(about: &Stat) -> Identity {
    (about.st_dev, about.st_ino)
}

/// Whether `time` was at least `settle` ago.
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
