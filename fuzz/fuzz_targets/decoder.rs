//! A recognised payload is a pickle of `None` or of a text in all its bytes, and a text has one meaning.
#![no_main]

use _native::control::command::{Command, parse};
use _native::control::pickle::{Value, recognise};
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [u8; 4] = [2, 3, 4, 5];
const MEMOS: [&[u8]; 4] = [b"", b"\x94", b"q\0", b"r\0\0\0\0"];
const SCALE: &[u8] = b"__SCALE__";
const ALL: &str = "__ALL_PROCESSES__";
const LATER: &[u8] = b":STARTUP_FIRST";

fuzz_target!(|input: &[u8]| {
    a_payload(input);
    a_text(input);
});

/// Take the input for a payload.
fn a_payload(payload: &[u8]) {
    let Some(value) = recognise(payload) else {
        return;
    };
    let forms = match value {
        Value::None => forms(b"N"),
        Value::Text(text) => {
            let start = text.as_ptr().addr() - payload.as_ptr().addr();
            assert_eq!(&payload[start..start + text.len()], text);
            texts(text)
        }
    };
    // The payload is one of the known forms to the last byte, except for the number of the memo.
    let known = forms.iter().any(|form| alike(form, payload));
    assert!(known, "{payload:?} is no form of {value:?}");
    for end in 0..payload.len() {
        assert_eq!(recognise(&payload[..end]), None);
    }
    for more in [b'.', b'N', 0, 0x94] {
        assert_eq!(recognise(&[payload, &[more]].concat()), None);
    }
    if let Value::Text(text) = value {
        assert!(is_text(text));
        a_text(text);
    }
}

/// Take the input for a text: it is recognised in every form if it is one, and in none if it is not.
fn a_text(text: &[u8]) {
    means_one_thing(text);
    let wanted = is_text(text).then_some(Value::Text(text));
    for form in texts(text) {
        assert_eq!(recognise(&form), wanted, "{form:?}");
    }
}

fn means_one_thing(text: &[u8]) {
    match parse(text) {
        Command::Stop => assert!(text.is_empty()),
        Command::Terminate { early: false } => assert_eq!(text, b"__TERMINATE__"),
        Command::Terminate { early: true } => assert_eq!(text, b"__TERMINATE_EARLY__"),
        Command::Scale(wanted) => {
            let plain = format!("__SCALE__:{wanted}");
            assert_eq!(parse(plain.as_bytes()), Command::Scale(wanted));
            assert_eq!(scale(text), Some(wanted));
        }
        Command::Invalid(reason) => {
            assert!(text.starts_with(SCALE) && !reason.is_empty());
            assert_eq!(scale(text), None);
        }
        Command::Restart {
            names,
            files,
            startup_first,
        } => {
            assert!(!text.starts_with(SCALE) && !text.is_empty());
            // Invalid bytes are no white space, so all of them may become the same character here.
            let shown = |name| String::from_utf8_lossy(name).into_owned();
            let names = names.map(|names| names.iter().map(shown).collect::<Vec<_>>());
            restart(text, names, files, startup_first);
        }
    }
}

/// Return the number of a scale command, as Rust's own parser reads it.
fn scale(text: &[u8]) -> Option<i64> {
    let number = text.strip_prefix(SCALE)?.strip_prefix(b":")?;
    let is_space = |char: char| matches!(char, ' ' | '\t'..='\r');
    let number = std::str::from_utf8(number).ok()?.trim_matches(is_space);
    number.parse().ok()
}

fn restart(text: &[u8], names: Option<Vec<String>>, files: Option<&[u8]>, startup_first: bool) {
    let colon = text.iter().position(|&byte| byte == b':');
    let head = &text[..colon.unwrap_or(text.len())];
    let wanted: Vec<String> = head.split(|&byte| byte == b',').map(stripped).collect();
    assert_eq!(names.is_none(), wanted.iter().any(|name| name == ALL));
    if let Some(names) = names {
        assert_eq!(names, wanted);
    }
    let rest = colon.map(|colon| &text[colon + 1..]);
    assert_eq!(files.is_some(), rest.is_some());
    if let (Some(files), Some(rest)) = (files, rest) {
        let ordered = [files, LATER].concat() == rest || rest == &LATER[1..];
        assert_eq!(startup_first, ordered);
        assert!(files == rest || (startup_first && [files, LATER].concat() == rest));
    } else {
        assert!(!startup_first);
    }
}

/// Strip a name as Python's `str.strip` does.
fn stripped(name: &[u8]) -> String {
    let is_space = |char: char| char.is_whitespace() || matches!(char, '\x1c'..='\x1f');
    let name = String::from_utf8_lossy(name);
    name.trim_matches(is_space).to_owned()
}

/// Return every form of the pickle of a text.
fn texts(text: &[u8]) -> Vec<Vec<u8>> {
    let size = text.len();
    let mut values = vec![
        [b"X".as_slice(), &(size as u32).to_le_bytes(), text].concat(),
        [b"\x8d".as_slice(), &(size as u64).to_le_bytes(), text].concat(),
    ];
    if let Ok(size) = u8::try_from(size) {
        values.push([[0x8c, size].as_slice(), text].concat());
    }
    values.iter().flat_map(|value| forms(value)).collect()
}

/// Return a pickled value in each protocol, with each memo, in a pickle frame or without.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for memo in MEMOS {
        let body = [value, memo, b"."].concat();
        let size = (body.len() as u64).to_le_bytes();
        for protocol in PROTOCOLS {
            forms.push([[0x80, protocol].as_slice(), &body].concat());
            forms.push([[0x80, protocol, 0x95].as_slice(), &size, &body].concat());
        }
    }
    forms
}

/// Return whether `payload` has this form, ignoring the number of the memo.
fn alike(form: &[u8], payload: &[u8]) -> bool {
    let number = match form {
        [.., b'q', 0, b'.'] => 2,
        [.., b'r', 0, 0, 0, 0, b'.'] => 5,
        _ => 1,
    };
    let start = form.len() - number;
    form.len() == payload.len() && form[..start] == payload[..start] && payload.ends_with(b".")
}

/// Return whether these bytes are UTF-8 with surrogates, by another method than the crate's.
fn is_text(bytes: &[u8]) -> bool {
    let mut plain = bytes.to_vec();
    for at in 1..plain.len() {
        if plain[at - 1] == 0xed && (0xa0..=0xbf).contains(&plain[at]) {
            plain[at] = 0x9f;
        }
    }
    std::str::from_utf8(&plain).is_ok()
}
