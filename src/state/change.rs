//! The changes of an entry.
//!
//! Every process sees one current entry under a name. It belongs to the process whose pid it holds. During a
//! restart, the next process of that name writes to a staged entry, until the main process hands the name
//! over to it or drops the staged entry.

use super::heap::Ref;
use super::liveness::Liveness;
use super::memory::Memory;
use super::node::Key;
use super::read::Version;
use super::records::Identity;
use super::writer::{Refused, Writer};

/// The number of versions above which staged entries of exited processes are dropped.
const MANY_VERSIONS: usize = 8;

/// The reason why a change was not made. The table is unchanged then.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no space, or the memory is damaged.
    Refused(Refused),
    /// There is no such entry.
    NoEntry,
    /// There is no such key.
    NoKey,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// The process that writes, under its own name.
#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// Its pid.
    pub pid: u32,
    /// The key that holds the pid of an entry's owner.
    pub owner_key: &'a [u8],
    /// The value of that key if this process is the owner.
    pub owner_value: &'a [u8],
}

impl Author<'_> {
    /// Return the `staged_by` of the version that it writes to.
    fn target(self, versions: &[Version], liveness: LivenessOf<'_>) -> u64 {
        let current = versions.iter().find(|version| version.entry.staged_by == 0);
        let owner = current.and_then(|version| {
            version
                .keys
                .iter()
                .find(|(key, _)| key.key == self.owner_key)
        });
        let is_anothers =
            owner.is_some_and(|(_, value)| value.as_deref() != Some(self.owner_value));
        if !is_anothers {
            return 0;
        }
        let mut words = versions.iter().map(|version| version.entry.staged_by);
        let author = identity(self.pid, liveness);
        words
            .find(|word| is_of(*word, author))
            .unwrap_or(author.word())
    }
}

/// A function that returns the liveness of a pid.
pub type LivenessOf<'a> = &'a dyn Fn(u32) -> Liveness;

/// Return the process that has a pid, undated if the kernel does not tell.
fn identity(pid: u32, liveness: LivenessOf<'_>) -> Identity {
    match liveness(pid) {
        Liveness::Running(identity) => identity,
        Liveness::Exited | Liveness::Unknown => Identity::undated(pid),
    }
}

/// Return whether an entry was staged by this process, and not by an earlier one with its pid.
fn is_of(staged_by: u64, process: Identity) -> bool {
    Identity::from_word(staged_by).is_some_and(|stager| stager.may_be(process))
}

/// Return whether an entry was staged by a process that has exited.
fn is_of_exited(staged_by: u64, liveness: LivenessOf<'_>) -> bool {
    Identity::from_word(staged_by).is_some_and(|stager| match liveness(stager.pid) {
        Liveness::Running(now) => !stager.may_be(now),
        Liveness::Exited => true,
        Liveness::Unknown => false,
    })
}

/// Encoded keys, each with the bytes of its value.
pub type Pairs<'a> = &'a [(Vec<u8>, Vec<u8>)];
/// The versions of an entry: the `staged_by` and the keys of each.
type Versions = Vec<(u64, Vec<Key>)>;

/// A change of the entry of one name, by one process.
pub struct Change<'a, 'b> {
    /// The blocks of the process.
    pub writer: &'a mut Writer,
    /// The memory of the table.
    pub memory: Memory<'b>,
    /// The name of the entry.
    pub name: &'a [u8],
    /// The liveness of processes.
    pub liveness: LivenessOf<'a>,
}

impl Change<'_, '_> {
    /// Replace all keys of the entry. Create the entry if there is none, or if it is damaged.
    pub fn put(&mut self, pairs: Pairs<'_>) -> Result<bool, Failure> {
        let new = self.values(pairs)?;
        self.writer.replaces_damaged = true;
        let result = self.edit(|mut versions| {
            match versions.iter_mut().find(|(staged_by, _)| *staged_by == 0) {
                Some((_, keys)) => keys.clone_from(&new),
                None => versions.push((0, new.clone())),
            }
            Ok(versions)
        });
        self.writer.replaces_damaged = false;
        result
    }

    /// Set some keys. An author that is not the owner writes to its staged entry.
    pub fn merge(&mut self, pairs: Pairs<'_>, by: Option<Author<'_>>) -> Result<bool, Failure> {
        let (new, liveness) = (self.values(pairs)?, self.liveness);
        self.edit_as(by, |mut versions, author| {
            if !versions.iter().any(|(staged_by, _)| *staged_by == author) {
                // An earlier process with the same pid has exited.
                versions.retain(|(staged_by, _)| *staged_by == 0 || !has_pid(*staged_by, author));
                if versions.len() > MANY_VERSIONS {
                    versions.retain(|(staged_by, _)| !is_of_exited(*staged_by, liveness));
                }
            }
            merge(&mut versions, author, &new)?;
            Ok(versions)
        })
    }

    /// Remove a key. An author that is not the owner removes it from its staged entry.
    pub fn discard(&mut self, key: &[u8], by: Option<Author<'_>>) -> Result<bool, Failure> {
        self.edit_as(by, |mut versions, author| {
            has_entry(&versions)?;
            let version = versions
                .iter_mut()
                .find(|(staged_by, _)| *staged_by == author);
            let (_, keys) = version.ok_or(Failure::NoKey)?;
            let found = keys.iter().position(|one| one.key == key);
            keys.remove(found.ok_or(Failure::NoKey)?);
            Ok(versions)
        })
    }

    /// Remove the entry, and those staged for its name.
    pub fn remove(&mut self) -> Result<bool, Failure> {
        self.edit(|versions| {
            has_entry(&versions)?;
            Ok(Vec::new())
        })
    }

    /// Hand the entry over to a process: set these keys, then those that the process has staged.
    pub fn hand_over(&mut self, to: u32, pairs: Pairs<'_>) -> Result<bool, Failure> {
        let new = self.values(pairs)?;
        let process = identity(to, self.liveness);
        self.edit(|mut versions| {
            let index = versions
                .iter()
                .position(|(staged_by, _)| is_of(*staged_by, process));
            let staged = index
                .map(|index| versions.remove(index).1)
                .unwrap_or_default();
            merge(&mut versions, 0, &new)?;
            merge(&mut versions, 0, &staged)?;
            Ok(versions)
        })
    }

    /// Drop the entry staged by this process, if there is one.
    pub fn drop_staged(&mut self, of: u32) -> Result<bool, Failure> {
        // The pid alone is an identity word, too: that of any process that has had this pid.
        self.edit(|mut versions| {
            versions.retain(|(staged_by, _)| *staged_by == 0 || !has_pid(*staged_by, of.into()));
            Ok(versions)
        })
    }

    fn values(&mut self, pairs: Pairs<'_>) -> Result<Vec<Key>, Failure> {
        let value = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let value: Ref = self.writer.value(self.memory, value)?;
            Ok(Key {
                key: key.clone(),
                value,
            })
        };
        let values: Result<_, Failure> = pairs.iter().map(value).collect();
        if values.is_err() {
            self.writer.discard(self.memory);
        }
        values
    }

    fn edit(
        &mut self,
        mut edited: impl FnMut(Versions) -> Result<Versions, Failure>,
    ) -> Result<bool, Failure> {
        self.edit_as(None, |versions, _| edited(versions))
    }

    fn edit_as(
        &mut self,
        by: Option<Author<'_>>,
        mut edited: impl FnMut(Versions, u64) -> Result<Versions, Failure>,
    ) -> Result<bool, Failure> {
        let (wanted, liveness) = (
            |key: &Key| by.is_some_and(|by| by.owner_key == key.key),
            self.liveness,
        );
        self.writer
            .change(self.memory, self.name, wanted, |versions| {
                let author = by.map_or(0, |by| by.target(&versions, liveness));
                let keys =
                    |version: Version| version.keys.into_iter().map(|(key, _)| key).collect();
                let versions = versions.into_iter();
                edited(
                    versions
                        .map(|version| (version.entry.staged_by, keys(version)))
                        .collect(),
                    author,
                )
            })
    }
}

/// Return whether two identity words have the same pid.
fn has_pid(one: u64, other: u64) -> bool {
    let pid = |word| Identity::from_word(word).map(|identity| identity.pid);
    pid(one) == pid(other)
}

fn has_entry(versions: &Versions) -> Result<(), Failure> {
    let there = versions.iter().any(|(staged_by, _)| *staged_by == 0);
    there.then_some(()).ok_or(Failure::NoEntry)
}

fn merge(versions: &mut Versions, author: u64, new: &[Key]) -> Result<(), Failure> {
    has_entry(versions)?;
    if !versions.iter().any(|(staged_by, _)| *staged_by == author) {
        versions.push((author, Vec::new()));
    }
    for (_, keys) in versions
        .iter_mut()
        .filter(|(staged_by, _)| *staged_by == author)
    {
        for new in new {
            match keys.iter_mut().find(|key| key.key == new.key) {
                Some(key) => key.value = new.value,
                None => keys.push(new.clone()),
            }
        }
    }
    Ok(())
}
