//! What stands in the blocks: buckets of entries, entries of keys, and values.

use super::heap::Ref;

/// One of the entries of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is called.
    pub name: Vec<u8>,
    /// 0 for what everybody sees under the name; else who has written it, apart from that (see `Identity::word`).
    pub pid: u64,
    /// When it was made, counted in entries.
    pub born: u64,
    /// Where its keys are; another one after each change.
    pub keys: Ref,
}

/// One of the keys of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What it is.
    pub key: Vec<u8>,
    /// Where its value is; another one after each change.
    pub value: Ref,
}

/// The content of a bucket's block.
pub fn bucket(entries: &[Entry]) -> Vec<u64> {
    let mut content = vec![entries.len() as u64];
    for entry in entries {
        content.extend([entry.keys.0, entry.born, entry.pid]);
        put(&mut content, &entry.name);
    }
    content
}

/// The entries in a bucket's block, if it holds some.
pub fn entries(content: &[u64]) -> Option<Vec<Entry>> {
    Words(content).list(|rest| {
        Some(Entry {
            keys: Ref(rest.word()?),
            born: rest.word()?,
            pid: rest.word()?,
            name: rest.bytes()?,
        })
    })
}

/// The content of an entry's block.
pub fn entry(keys: &[Key]) -> Vec<u64> {
    let mut content = vec![keys.len() as u64];
    for key in keys {
        content.push(key.value.0);
        put(&mut content, &key.key);
    }
    content
}

/// The keys in an entry's block, if it holds some.
pub fn keys(content: &[u64]) -> Option<Vec<Key>> {
    Words(content).list(|rest| {
        Some(Key {
            value: Ref(rest.word()?),
            key: rest.bytes()?,
        })
    })
}

/// The content of a value's block.
pub fn value(bytes: &[u8]) -> Vec<u64> {
    let mut content = Vec::with_capacity(1 + bytes.len().div_ceil(8));
    put(&mut content, bytes);
    content
}

/// The value in a value's block, if it holds one.
pub fn bytes(content: &[u64]) -> Option<Vec<u8>> {
    Words(content).bytes()
}

/// The size in bytes, and the bytes.
fn put(content: &mut Vec<u64>, bytes: &[u8]) {
    content.push(bytes.len() as u64);
    content.extend(bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    }));
}

/// What is still to be read.
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
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(size);
        Some(bytes)
    }

    /// As many items as the next word says.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.word()?;
        // No more than there are words: each item takes some.
        let mut items = Vec::with_capacity(usize::try_from(count).ok()?.min(self.0.len()));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Some(items)
    }
}
