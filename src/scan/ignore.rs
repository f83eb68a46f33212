//! The rules for paths that are not watched. Of the rules that match a path, the last one decides.

use std::borrow::Cow;

use regex::RegexSet;

/// Rules for the paths below a directory.
#[derive(Debug, Default)]
pub struct IgnoreRules {
    patterns: RegexSet,
    excludes: Vec<bool>,
}

impl IgnoreRules {
    /// Compile the rules: each is a regular expression, and whether a path that it matches is excluded.
    pub fn new(rules: &[(String, bool)]) -> Result<Self, regex::Error> {
        Ok(Self {
            patterns: RegexSet::new(rules.iter().map(|(pattern, _)| pattern))?,
            excludes: rules.iter().map(|(_, excludes)| *excludes).collect(),
        })
    }

    /// Return whether `path` is excluded. The path of a directory ends with a slash.
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut text = String::from_utf8_lossy(path);
        if text.contains('\n') {
            // `.` matches no newline, but a newline is an ordinary byte of a name.
            text = Cow::Owned(text.replace('\n', "\u{fffd}"));
        }
        let last = self.patterns.matches(&text).into_iter().next_back();
        last.is_some_and(|rule| self.excludes[rule])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_rule_decides() {
        let rules = [
            (r"\.log$", true),
            ("^keep/", false),
            (r"^keep/x\.log$", true),
        ];
        let rules = rules.map(|(pattern, verdict)| (pattern.to_owned(), verdict));
        let rules = IgnoreRules::new(&rules).unwrap_or_default();
        for (path, excluded) in [
            ("a.py", false),
            ("a.log", true),
            ("keep/a.log", false),
            ("keep/x.log", true),
        ] {
            assert_eq!(rules.matches(path.as_bytes()), excluded, "{path}");
        }
        assert!(rules.matches(b"\xff.log"));
        assert!(IgnoreRules::new(&[("(".to_owned(), true)]).is_err());
    }
}
