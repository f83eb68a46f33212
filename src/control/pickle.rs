//! Recognises the most frequent pickles, `None` and `str`, and those that run no code, in protocols 2 to 5.
//!
//! Nothing is executed here. A payload that differs from such a pickle in any byte is left to Python's
//! `pickle`.

const FRAME: u8 = 0x95;
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const BININT: u8 = b'J';
const LONG1: u8 = 0x8a;
const LONG4: u8 = 0x8b;
const BINFLOAT: u8 = b'G';
const SHORT_BINBYTES: u8 = b'C';
const BINBYTES: u8 = b'B';
const BINBYTES8: u8 = 0x8e;
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';
const BINUNICODE8: u8 = 0x8d;
const MEMOIZE: u8 = 0x94;
const BINPUT: u8 = b'q';
const LONG_BINPUT: u8 = b'r';
const STOP: u8 = b'.';

/// The value of a recognised pickle.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// A `str`: its UTF-8, lone surrogates included.
    Text(&'a [u8]),
}

/// Return the value pickled in `payload` if it is `None` or a `str`.
pub fn recognise(payload: &[u8]) -> Option<Value<'_>> {
    let [0x80, 2..=5, body @ ..] = payload else {
        return None;
    };
    match unframed(body)? {
        [NONE, rest @ ..] => is_end(rest).then_some(Value::None),
        [SHORT_BINUNICODE, rest @ ..] => text::<1>(rest),
        [BINUNICODE, rest @ ..] => text::<4>(rest),
        [BINUNICODE8, rest @ ..] => text::<8>(rest),
        _ => None,
    }
}

/// Return whether `payload` pickles exactly one `None`, `bool`, `int`, `float`, `str` or `bytes`. To unpickle
/// it runs no code of a user.
pub fn is_plain(payload: &[u8]) -> bool {
    let [0x80, 2..=5, body @ ..] = payload else {
        return false;
    };
    let Some([code, rest @ ..]) = unframed(body) else {
        return false;
    };
    let rest = match *code {
        NONE | NEWTRUE | NEWFALSE => Some(rest),
        BININT1 => rest.get(1..),
        BININT2 => rest.get(2..),
        BININT => rest.get(4..),
        BINFLOAT => rest.get(8..),
        LONG1 | SHORT_BINBYTES | SHORT_BINUNICODE => after_sized::<1>(rest),
        LONG4 | BINBYTES | BINUNICODE => after_sized::<4>(rest),
        BINBYTES8 | BINUNICODE8 => after_sized::<8>(rest),
        _ => None,
    };
    rest.is_some_and(is_end)
}

/// Return the bytes after a body whose size is the number in the first `N` bytes.
fn after_sized<const N: usize>(bytes: &[u8]) -> Option<&[u8]> {
    let (size, rest) = sized::<N>(bytes)?;
    rest.get(size..)
}

fn unframed(body: &[u8]) -> Option<&[u8]> {
    let [FRAME, rest @ ..] = body else {
        return Some(body);
    };
    let (size, rest) = sized::<8>(rest)?;
    (size == rest.len()).then_some(rest)
}

/// Return the little-endian number in the first `N` bytes, and the bytes after them.
fn sized<const N: usize>(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    let mut size = [0; 8];
    size[..N].copy_from_slice(head);
    Some((usize::try_from(u64::from_le_bytes(size)).ok()?, rest))
}

fn text<const N: usize>(bytes: &[u8]) -> Option<Value<'_>> {
    let (size, rest) = sized::<N>(bytes)?;
    let (text, rest) = rest.split_at_checked(size)?;
    (is_end(rest) && is_text(text)).then_some(Value::Text(text))
}

/// Return whether only the stop remains, or a memo that nothing refers to and the stop.
fn is_end(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [STOP] | [MEMOIZE, STOP] | [BINPUT, _, STOP] | [LONG_BINPUT, _, _, _, _, STOP]
    )
}

/// Return whether `bytes` are UTF-8, lone surrogates allowed.
fn is_text(mut bytes: &[u8]) -> bool {
    while let Err(error) = std::str::from_utf8(bytes) {
        let [0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..] = &bytes[error.valid_up_to()..] else {
            return false;
        };
        bytes = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_form(text: &[u8]) -> Vec<Vec<u8>> {
        let mut bodies = vec![
            [
                [BINUNICODE].as_slice(),
                &u32::try_from(text.len()).unwrap().to_le_bytes(),
                text,
            ]
            .concat(),
            [
                [BINUNICODE8].as_slice(),
                &(text.len() as u64).to_le_bytes(),
                text,
            ]
            .concat(),
        ];
        if let Ok(size) = u8::try_from(text.len()) {
            bodies.push([[SHORT_BINUNICODE, size].as_slice(), text].concat());
        }
        let memos = [
            b"".as_slice(),
            &[MEMOIZE],
            &[BINPUT, 7],
            &[LONG_BINPUT, 1, 2, 3, 4],
        ];
        let mut forms = Vec::new();
        for body in &bodies {
            for memo in memos {
                let whole = [body.as_slice(), memo, &[STOP]].concat();
                let size = (whole.len() as u64).to_le_bytes();
                forms.push([b"\x80\x02", whole.as_slice()].concat());
                forms.push([b"\x80\x05\x95".as_slice(), &size, &whole].concat());
            }
        }
        forms
    }

    #[test]
    fn none_is_recognised() {
        for payload in [
            b"\x80\x02N.".as_slice(),
            b"\x80\x04N.",
            b"\x80\x05\x95\x02\0\0\0\0\0\0\0N.",
        ] {
            assert_eq!(recognise(payload), Some(Value::None));
        }
    }

    #[test]
    fn a_text_is_recognised_in_every_form_and_whole_only() {
        for text in [
            b"".as_slice(),
            b"Sanic-Server-0-0:",
            "\u{20ac}\u{1f600}".as_bytes(),
            b"\xed\xa0\x80 \xed\xbf\xbf",
            &[b'x'; 300],
        ] {
            for form in every_form(text) {
                assert_eq!(recognise(&form), Some(Value::Text(text)));
                for cut in 0..form.len() {
                    assert_eq!(recognise(&form[..cut]), None, "cut at {cut}: {form:?}");
                }
                assert_eq!(recognise(&[form.as_slice(), b"."].concat()), None);
            }
        }
    }

    #[test]
    fn a_plain_value_is_recognised_whole_only() {
        let values = [
            b"N".as_slice(),
            b"\x88",
            b"\x89",
            b"K\xff",
            b"M\x00\x01",
            b"J\xff\xff\xff\xff",
            b"\x8a\x05\0\0\0\0\x01",
            b"\x8b\x05\0\0\0\0\0\0\0\x01",
            b"G?\xf8\0\0\0\0\0\0",
            b"C\x01x",
            b"B\x01\0\0\0x",
            b"\x8e\x01\0\0\0\0\0\0\0x",
            b"\x8c\x01x",
            b"X\x01\0\0\0x",
            b"\x8d\x01\0\0\0\0\0\0\0x",
        ];
        for value in values {
            for memo in [b"".as_slice(), &[MEMOIZE]] {
                let whole = [b"\x80\x05", value, memo, &[STOP]].concat();
                assert!(is_plain(&whole), "{whole:?}");
                for cut in 0..whole.len() {
                    assert!(!is_plain(&whole[..cut]), "cut at {cut}: {whole:?}");
                }
                assert!(!is_plain(&[whole.as_slice(), b"."].concat()));
            }
        }
        // A list, a class, a call, an extension, and a value that is popped for a list.
        for body in [
            b"].".as_slice(),
            b"cos\ngetpid\n.",
            b"\x8c\x02os\x8c\x06getpid\x93.",
            b"\x8c\x02os\x94\x8c\x06getpid\x94\x93)R.",
            b"\x82\x01.",
            b"N0].",
        ] {
            assert!(!is_plain(&[b"\x80\x05", body].concat()), "{body:?}");
        }
    }

    #[test]
    fn invalid_texts_and_other_pickles_are_not_recognised() {
        for text in [
            b"\xff".as_slice(),
            b"\xc0\x80",
            b"\xed\xa0",
            b"\xed\xa0\xc0",
            b"\xf4\x90\x80\x80",
        ] {
            for form in every_form(text) {
                assert_eq!(recognise(&form), None);
            }
        }
        for payload in [
            b"\x80\x01N.".as_slice(),
            b"\x80\x06N.",
            b"\x80\x04\x88.",
            b"\x80\x04)R.",
            b"\x80\x04\x95\x03\0\0\0\0\0\0\0N.",
        ] {
            assert_eq!(recognise(payload), None);
        }
    }
}
