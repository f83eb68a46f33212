//! The name of an entry in a directory, without an allocation of its own if it is short.

use std::ffi::CStr;
use std::ops::Deref;

/// How long a short name may be, with the zero that ends it: what makes it no larger than a long one.
const SHORT: usize = 23;

/// A name, as the system takes it.
#[derive(Debug)]
pub enum Name {
    /// With zeros behind it.
    Short([u8; SHORT]),
    /// By itself.
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
    fn a_name_stays_what_it_is() {
        for length in 0..2 * SHORT {
            let bytes = [vec![b'x'; length], vec![0]].concat();
            let name = CStr::from_bytes_with_nul(&bytes).unwrap_or_default();
            assert_eq!(&*Name::from(name), name);
        }
        assert_eq!(size_of::<Name>(), SHORT + 1);
    }
}
