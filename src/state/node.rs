//! The encoding of blocks as words: a bucket holds entries, an entry holds keys, a key refers to a value.

use super::heap::Ref;

/// An entry of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Vec<u8>,
    /// 0 for the current entry of the name. For a staged entry, the identity word of the process that wrote
    /// it.
    pub staged_by: u64,
    /// Its position in the order of creation.
    pub created: u64,
    /// The block of its keys, a new one after each change.
    pub keys: Ref,
}

/// A key of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The encoded key.
    pub key: Vec<u8>,
    /// The block of its value, a new one after each change.
    pub value: Ref,
}

/// Encode the block of a bucket.
pub fn bucket(entries: &[Entry]) -> Vec<u64> {
    let mut content = vec![entries.len() as u64];
    for entry in entries {
        content.extend([entry.keys.0, entry.created, entry.staged_by]);
        put(&mut content, &entry.name);
    }
    content
}

/// Decode the block of a bucket; `None` if it is no such block.
pub fn entries(content: &[u64]) -> Option<Vec<Entry>> {
    Words(content).list(|rest| {
        Some(Entry {
            keys: Ref(rest.word()?),
            created: rest.word()?,
            staged_by: rest.word()?,
            name: rest.bytes()?,
        })
    })
}

/// Encode the block of an entry's keys.
pub fn entry(keys: &[Key]) -> Vec<u64> {
    let mut content = vec![keys.len() as u64];
    for key in keys {
        content.push(key.value.0);
        put(&mut content, &key.key);
    }
    content
}

/// Decode the block of an entry's keys; `None` if it is no such block.
pub fn keys(content: &[u64]) -> Option<Vec<Key>> {
    Words(content).list(|rest| {
        Some(Key {
            value: Ref(rest.word()?),
            key: rest.bytes()?,
        })
    })
}

/// Encode the block of a value.
pub fn value(bytes: &[u8]) -> Vec<u64> {
    let mut content = Vec::with_capacity(words(bytes.len()));
    put(&mut content, bytes);
    content
}

/// Return the number of words that encode a value of that many bytes.
pub fn words(bytes: usize) -> usize {
    1 + bytes.div_ceil(8)
}

/// Decode the block of a value; `None` if it is no such block.
pub fn bytes(content: &[u64]) -> Option<Vec<u8>> {
    Words(content).bytes()
}

/// Append the size in bytes, and the bytes.
fn put(content: &mut Vec<u64>, bytes: &[u8]) {
    content.push(bytes.len() as u64);
    content.extend(bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    }));
}

/// The words that are still to be decoded.
struct Words<'a>(&'a [u64]);

impl Words<'_> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*word)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let size = usize::try_from(self.word()?).ok()?;
        let (words, rest) = self.0.split_at_checked(size.div_ceil(8))?;
        self.0 = rest;
        let mut bytes = Vec::with_capacity(words.len() * 8);
        for word in words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(size);
        Some(bytes)
    }

    /// Decode a list: the number of items, and the items.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.word()?;
        // A damaged count must not exhaust memory. Each item takes at least one word.
        let mut items = Vec::with_capacity(usize::try_from(count).ok()?.min(self.0.len()));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}
