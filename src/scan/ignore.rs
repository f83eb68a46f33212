//! Which paths are passed over: rules, of which the last that fits a path decides.

use std::borrow::Cow;

use regex::RegexSet;

/// Rules for the paths below some directory.
#[derive(Debug, Default)]
pub struct Ignored {
    patterns: RegexSet,
    verdicts: Vec<bool>,
}

impl Ignored {
    /// Regular expressions, each with whether the paths that it fits are passed over.
    pub fn new(rules: &[(String, bool)]) -> Result<Self, regex::Error> {
        Ok(Self {
            patterns: RegexSet::new(rules.iter().map(|(pattern, _)| pattern))?,
            verdicts: rules.iter().map(|(_, verdict)| *verdict).collect(),
        })
    }

    /// Whether `path` is passed over; a directory's ends with a slash.
    pub fn has(&self, path: &[u8]) -> bool {
        let mut text = String::from_utf8_lossy(path);
        if text.contains('\n') {
            // No part of a name ends it.
            text = Cow::Owned(text.replace('\n', "\u{fffd}"));
        }
        let last = self.patterns.matches(&text).into_iter().next_back();
        last.is_some_and(|rule| self.verdicts[rule])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_fits_decides() {
        let rules = [
            (r"\.log$", true),
            ("^keep/", false),
            (r"^keep/x\.log$", true),
        ];
        let rules = rules.map(|(pattern, verdict)| (pattern.to_owned(), verdict));
        let ignored = Ignored::new(&rules).unwrap_or_default();
        for (path, passed_over) in [
            ("a.py", false),
            ("a.log", true),
            ("keep/a.log", false),
            ("keep/x.log", true),
        ] {
            assert_eq!(ignored.has(path.as_bytes()), passed_over, "{path}");
        }
        assert!(ignored.has(b"\xff.log"));
        assert!(Ignored::new(&[("(".to_owned(), true)]).is_err());
    }
}
