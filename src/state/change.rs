//! What can be done with what is kept under a name.
//!
//! Everybody sees one entry. It belongs to the process whose pid it holds; what another one of the same name
//! writes, in the time of a restart, is kept apart, until main hands the name over to it or drops it.

use super::heap::Ref;
use super::liveness::Whereabouts;
use super::memory::{Memory, Part};
use super::node::Key;
use super::records::Identity;
use super::writer::{Refused, Writer};

/// From so many parts of one name on it is looked for those of the dead.
const MANY: usize = 8;

/// Why a change was not made. The table is as it was.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no room, or no table.
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

/// A process that writes in the name that it bears.
#[derive(Debug, Clone, Copy)]
pub struct Bearer<'a> {
    /// Who it is.
    pub pid: u32,
    /// The key that says whose an entry is.
    pub key: &'a [u8],
    /// What that key holds if the entry is its own.
    pub value: &'a [u8],
}

impl Bearer<'_> {
    /// In which part it writes.
    fn part(self, parts: &[Part], census: Census<'_>) -> u64 {
        let visible = parts.iter().find(|part| part.entry.pid == 0);
        let owner = visible.and_then(|part| part.keys.iter().find(|(key, _)| key.key == self.key));
        let is_anothers = owner.is_some_and(|(_, value)| value.as_deref() != Some(self.value));
        if !is_anothers {
            return 0;
        }
        let mut its = parts.iter().map(|part| part.entry.pid);
        let who = identity(self.pid, census);
        its.find(|part| is_of(*part, who)).unwrap_or(who.word())
    }
}

/// What is known of a pid.
pub type Census<'a> = &'a dyn Fn(u32) -> Whereabouts;

/// The process that has a pid, as far as it is known.
fn identity(pid: u32, census: Census<'_>) -> Identity {
    match census(pid) {
        Whereabouts::Lives(who) => who,
        Whereabouts::Dead | Whereabouts::Unknown => Identity::undated(pid),
    }
}

/// Whether a part is that of a process, and not of another one that had its pid before.
fn is_of(part: u64, who: Identity) -> bool {
    Identity::of(part).is_some_and(|its| its.may_be(who))
}

/// Whether a part is that of a process which has ended.
fn is_of_the_dead(part: u64, census: Census<'_>) -> bool {
    Identity::of(part).is_some_and(|its| match census(its.pid) {
        Whereabouts::Lives(now) => !its.may_be(now),
        Whereabouts::Dead => true,
        Whereabouts::Unknown => false,
    })
}

/// Keys with the bytes of their values.
pub type Pairs<'a> = &'a [(Vec<u8>, Vec<u8>)];
type Parts = Vec<(u64, Vec<Key>)>;

/// One process's way to change the table.
pub struct Change<'a, 'b> {
    /// By whom.
    pub writer: &'a mut Writer,
    /// Where.
    pub memory: Memory<'b>,
    /// What it is about.
    pub name: &'a [u8],
    /// Who lives.
    pub census: Census<'a>,
}

impl Change<'_, '_> {
    /// Let the entry have these keys and no others; make it if there is none, or none that can be read.
    pub fn put(&mut self, pairs: Pairs<'_>) -> Result<bool, Failure> {
        let new = self.values(pairs)?;
        self.writer.anew = true;
        let result = self.act(|mut parts| {
            match parts.iter_mut().find(|(pid, _)| *pid == 0) {
                Some((_, keys)) => keys.clone_from(&new),
                None => parts.push((0, new.clone())),
            }
            Ok(parts)
        });
        self.writer.anew = false;
        result
    }

    /// Set some keys; of the part of the bearer, if there is one.
    pub fn merge(&mut self, pairs: Pairs<'_>, by: Option<Bearer<'_>>) -> Result<bool, Failure> {
        let (new, census) = (self.values(pairs)?, self.census);
        self.act_as(by, |mut parts, at| {
            if !parts.iter().any(|(part, _)| *part == at) {
                // One that had the same pid before is gone.
                parts.retain(|(part, _)| *part == 0 || !has_pid(*part, at));
                if parts.len() > MANY {
                    parts.retain(|(part, _)| !is_of_the_dead(*part, census));
                }
            }
            merge(&mut parts, at, &new)?;
            Ok(parts)
        })
    }

    /// Remove a key; of the part of the bearer, if there is one.
    pub fn discard(&mut self, key: &[u8], by: Option<Bearer<'_>>) -> Result<bool, Failure> {
        self.act_as(by, |mut parts, at| {
            has_entry(&parts)?;
            let part = parts.iter_mut().find(|(pid, _)| *pid == at);
            let (_, keys) = part.ok_or(Failure::NoKey)?;
            let found = keys.iter().position(|one| one.key == key);
            keys.remove(found.ok_or(Failure::NoKey)?);
            Ok(parts)
        })
    }

    /// Remove the entry, and all that is kept apart from it.
    pub fn remove(&mut self) -> Result<bool, Failure> {
        self.act(|parts| {
            has_entry(&parts)?;
            Ok(Vec::new())
        })
    }

    /// From now on the entry belongs to this process: it has these keys, and what that has written already.
    pub fn hand_over(&mut self, to: u32, pairs: Pairs<'_>) -> Result<bool, Failure> {
        let new = self.values(pairs)?;
        let who = identity(to, self.census);
        self.act(|mut parts| {
            let at = parts.iter().position(|(part, _)| is_of(*part, who));
            let apart = at.map(|at| parts.remove(at).1).unwrap_or_default();
            merge(&mut parts, 0, &new)?;
            merge(&mut parts, 0, &apart)?;
            Ok(parts)
        })
    }

    /// Forget what this process has written apart, if it has.
    pub fn drop_part(&mut self, of: u32) -> Result<bool, Failure> {
        self.act(|mut parts| {
            parts.retain(|(part, _)| *part == 0 || !has_pid(*part, of.into()));
            Ok(parts)
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

    fn act(
        &mut self,
        mut act: impl FnMut(Parts) -> Result<Parts, Failure>,
    ) -> Result<bool, Failure> {
        self.act_as(None, |parts, _| act(parts))
    }

    fn act_as(
        &mut self,
        by: Option<Bearer<'_>>,
        mut act: impl FnMut(Parts, u64) -> Result<Parts, Failure>,
    ) -> Result<bool, Failure> {
        let (wanted, census) = (
            |key: &Key| by.is_some_and(|by| by.key == key.key),
            self.census,
        );
        self.writer.change(self.memory, self.name, wanted, |parts| {
            let at = by.map_or(0, |by| by.part(&parts, census));
            let keys = |part: Part| part.keys.into_iter().map(|(key, _)| key).collect();
            let parts = parts.into_iter();
            act(parts.map(|part| (part.entry.pid, keys(part))).collect(), at)
        })
    }
}

/// Whether a part is that of a process with the pid of another part.
fn has_pid(part: u64, other: u64) -> bool {
    let pid = |part| Identity::of(part).map(|who| who.pid);
    pid(part) == pid(other)
}

fn has_entry(parts: &Parts) -> Result<(), Failure> {
    let there = parts.iter().any(|(pid, _)| *pid == 0);
    there.then_some(()).ok_or(Failure::NoEntry)
}

fn merge(parts: &mut Parts, at: u64, new: &[Key]) -> Result<(), Failure> {
    has_entry(parts)?;
    if !parts.iter().any(|(pid, _)| *pid == at) {
        parts.push((at, Vec::new()));
    }
    for (_, keys) in parts.iter_mut().filter(|(pid, _)| *pid == at) {
        for new in new {
            match keys.iter_mut().find(|key| key.key == new.key) {
                Some(key) => key.value = new.value,
                None => keys.push(new.clone()),
            }
        }
    }
    Ok(())
}
