//! The grammar of the control channel: from a text to a command.
//!
//! A text is the UTF-8 of a Python string, lone surrogates included, and therefore a slice of bytes. The
//! parser looks only for ASCII and for white space in the sense of `str.strip`.

const SCALE: &[u8] = b"__SCALE__";
const ALL_PROCESSES: &[u8] = b"__ALL_PROCESSES__";
const STARTUP_FIRST: &[u8] = b"STARTUP_FIRST";
const THEN_STARTUP_FIRST: &[u8] = b":STARTUP_FIRST";

const SCALE_SHAPE: &str = "__SCALE__ wants a colon and a whole number, as in '__SCALE__:4'";
const SCALE_RANGE: &str = "__SCALE__ wants a number that fits in 64 bits";

// Far more than the processes of one server, and far fewer than a message can hold.
const MAX_NAMES: usize = 10_000;
const TOO_MANY: &str = "a restart names at most 10,000 processes";

/// A command; its slices point into the text that was parsed.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The empty text: end the main loop.
    Stop,
    /// `__TERMINATE__`, or `__TERMINATE_EARLY__`.
    Terminate {
        /// Whether the sender itself failed to start.
        early: bool,
    },
    /// `__SCALE__:<n>`.
    Scale(i64),
    /// Any other text.
    Restart {
        /// The processes to restart; `None` for all.
        names: Option<Names<'a>>,
        /// The text between the first colon and the restart order; `None` without a colon.
        files: Option<&'a [u8]>,
        /// Whether the new process starts before the previous one stops.
        startup_first: bool,
    },
    /// A malformed command, with the reason.
    Invalid(&'static str),
}

/// Names in a text, separated by commas.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Names<'a>(&'a [u8]);

impl<'a> Names<'a> {
    /// Iterate over the names, without surrounding white space.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|&byte| byte == b',').map(strip)
    }
}

/// Parse a text.
pub fn parse(text: &[u8]) -> Command<'_> {
    match text {
        b"" => Command::Stop,
        // Verbs begin with an underscore; names of processes rarely do.
        [b'_', ..] => verb(text),
        _ => restart(text),
    }
}

fn verb(text: &[u8]) -> Command<'_> {
    match text {
        b"__TERMINATE__" => Command::Terminate { early: false },
        b"__TERMINATE_EARLY__" => Command::Terminate { early: true },
        _ => text
            .strip_prefix(SCALE)
            .map_or_else(|| restart(text), scale),
    }
}

fn scale<'a>(rest: &[u8]) -> Command<'a> {
    let Some((negative, digits)) = rest.strip_prefix(b":").and_then(number) else {
        return Command::Invalid(SCALE_SHAPE);
    };
    // Accumulate downwards: `i64` has one more value below zero than above it.
    let negated = digits.iter().try_fold(0_i64, |value, digit| {
        value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))
    });
    let value = if negative {
        negated
    } else {
        negated.and_then(i64::checked_neg)
    };
    value.map_or(Command::Invalid(SCALE_RANGE), Command::Scale)
}

/// Return whether a number is negative, and its digits.
fn number(text: &[u8]) -> Option<(bool, &[u8])> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text.iter().position(|byte| !is_space(byte))?;
    let end = text.iter().rposition(|byte| !is_space(byte))?;
    let (negative, digits) = match &text[start..=end] {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let whole = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    whole.then_some((negative, digits))
}

fn restart(text: &[u8]) -> Command<'_> {
    let (head, rest) = match text.iter().position(|&byte| byte == b':') {
        Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
        None => (text, None),
    };
    let names = Names(head);
    let (mut count, mut all) = (0, false);
    for name in names.iter().take(MAX_NAMES + 1) {
        count += 1;
        all |= name == ALL_PROCESSES;
    }
    if count > MAX_NAMES {
        return Command::Invalid(TOO_MANY);
    }
    let files = rest.map(|rest| rest.strip_suffix(THEN_STARTUP_FIRST).unwrap_or(rest));
    Command::Restart {
        names: (!all).then_some(names),
        files,
        startup_first: files != rest || rest == Some(STARTUP_FIRST),
    }
}

/// Strip both ends of white space: that of Unicode, and the four separators of ASCII.
fn strip(mut text: &[u8]) -> &[u8] {
    loop {
        text = match text {
            [b'\t'..=b'\r' | 0x1c..=b' ', rest @ ..]
            | [0xc2, 0x85 | 0xa0, rest @ ..]
            | [0xe1, 0x9a, 0x80, rest @ ..]
            | [0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf, rest @ ..]
            | [0xe2, 0x81, 0x9f, rest @ ..]
            | [0xe3, 0x80, 0x80, rest @ ..] => rest,
            _ => break,
        }
    }
    loop {
        text = match text {
            [rest @ .., b'\t'..=b'\r' | 0x1c..=b' ']
            | [rest @ .., 0xc2, 0x85 | 0xa0]
            | [rest @ .., 0xe1, 0x9a, 0x80]
            | [rest @ .., 0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf]
            | [rest @ .., 0xe2, 0x81, 0x9f]
            | [rest @ .., 0xe3, 0x80, 0x80] => rest,
            _ => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &[u8]) -> Option<Vec<&[u8]>> {
        match parse(text) {
            Command::Restart { names, .. } => names.map(|names| names.iter().collect()),
            other => panic!("{other:?} is no restart"),
        }
    }

    fn files(text: &[u8]) -> (Option<&[u8]>, bool) {
        match parse(text) {
            Command::Restart {
                files,
                startup_first,
                ..
            } => (files, startup_first),
            other => panic!("{other:?} is no restart"),
        }
    }

    #[test]
    fn verbs_are_whole_texts() {
        assert_eq!(parse(b""), Command::Stop);
        assert_eq!(parse(b"__TERMINATE__"), Command::Terminate { early: false });
        assert_eq!(
            parse(b"__TERMINATE_EARLY__"),
            Command::Terminate { early: true }
        );
        assert_eq!(
            names(b"__TERMINATE__ "),
            Some(vec![b"__TERMINATE__".as_slice()])
        );
    }

    #[test]
    fn scale_takes_any_whole_number_of_64_bits() {
        for (text, wanted) in [
            ("4", 4),
            (" +0004\x0b", 4),
            ("0", 0),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(
                parse(format!("__SCALE__:{text}").as_bytes()),
                Command::Scale(wanted)
            );
        }
        for text in ["9223372036854775808", "-9223372036854775809"] {
            assert_eq!(
                parse(format!("__SCALE__:{text}").as_bytes()),
                Command::Invalid(SCALE_RANGE)
            );
        }
        for text in [
            "",
            ":",
            ": ",
            ":+",
            ":4x",
            ":4 4",
            ":+-4",
            "4",
            ": \x1c4",
            ":4:STARTUP_FIRST",
        ] {
            assert_eq!(
                parse(format!("__SCALE__{text}").as_bytes()),
                Command::Invalid(SCALE_SHAPE)
            );
        }
    }

    #[test]
    fn names_are_stripped_as_python_does() {
        assert_eq!(
            names("\u{2003}a\x1c,\u{a0}b c\u{3000},".as_bytes()),
            Some(vec![b"a".as_slice(), b"b c", b""])
        );
        for code in (0..0x11_0000).filter_map(char::from_u32) {
            let space = code.is_whitespace() || ('\x1c'..='\x1f').contains(&code);
            let text = format!("{code}a{code}");
            let wanted = if space {
                b"a".as_slice()
            } else {
                text.as_bytes()
            };
            assert_eq!(strip(text.as_bytes()), wanted, "{code:?}");
        }
    }

    #[test]
    fn all_processes_may_stand_anywhere() {
        assert_eq!(names(b"__ALL_PROCESSES__:"), None);
        assert_eq!(names(b"a, __ALL_PROCESSES__ "), None);
    }

    #[test]
    fn files_keep_their_colons() {
        assert_eq!(files(b"a"), (None, false));
        assert_eq!(files(b"a:"), (Some(b"".as_slice()), false));
        assert_eq!(
            files(b"a:C:\\x.py,b"),
            (Some(b"C:\\x.py,b".as_slice()), false)
        );
        assert_eq!(
            files(b"a:C:\\x.py:STARTUP_FIRST"),
            (Some(b"C:\\x.py".as_slice()), true)
        );
        assert_eq!(files(b"a::STARTUP_FIRST"), (Some(b"".as_slice()), true));
        assert_eq!(
            files(b"a:STARTUP_FIRST"),
            (Some(b"STARTUP_FIRST".as_slice()), true)
        );
    }
}
