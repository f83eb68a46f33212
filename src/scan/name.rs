//! The name of a directory entry. A short name needs no allocation of its own.

use std::ffi::CStr;
use std::ops::Deref;

/// The size of a short name with its terminating zero. With this size a short name is no larger than a long
/// one.
const SHORT: usize = 23;

/// A name in the form of a system call.
#[derive(Debug)]
pub enum Name {
    /// A name padded with zeros.
    Short([u8; SHORT]),
    /// A name in an allocation of its own.
    Long(Box<CStr>),
}

impl From<&CStr> for Name {
    fn from(name: &CStr) -> Self {
        let bytes = name.to_bytes();
        if bytes.len() >= SHORT {
            return Self::Long(name.into());
        }
        let mut short = [0; SHORT];
        short[..bytes.len()].copy_from_slice(bytes);
        Self::Short(short)
    }
}

impl Deref for Name {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        match self {
            Self::Short(bytes) => CStr::from_bytes_until_nul(bytes).unwrap_or_default(),
            Self::Long(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_preserved_at_every_length() {
        for length in 0..2 * SHORT {
            let bytes = [vec![b'x'; length], vec![0]].concat();
            let name = CStr::from_bytes_with_nul(&bytes).unwrap_or_default();
            assert_eq!(&*Name::from(name), name);
        }
        assert_eq!(size_of::<Name>(), SHORT + 1);
    }
}
