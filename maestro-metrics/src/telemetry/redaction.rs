//! What must not be written: values of fields whose names say so, and passwords inside URLs.

use std::borrow::Cow;

/// Names of fields whose values are replaced by `[redacted]` in logs and spans.
#[derive(Clone, Debug)]
pub(crate) struct Redaction {
    names: Vec<Cow<'static, str>>,
}

/// A field is redacted when its name, without case and with `_` for `-` and `.`, is one of these or
/// ends in `_` and one of these.
const NAMES: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "api_key",
    "apikey",
    "access_key",
    "private_key",
    "credential",
    "credentials",
    "dsn",
];

pub(crate) const REDACTED: &str = "[redacted]";

impl Redaction {
    pub(crate) fn new(more: impl IntoIterator<Item = String>) -> Self {
        let more = more
            .into_iter()
            .map(|name| Cow::Owned(name.to_ascii_lowercase().replace(['-', '.'], "_")));
        Self {
            names: NAMES
                .iter()
                .map(|name| Cow::Borrowed(*name))
                .chain(more)
                .collect(),
        }
    }

    pub(crate) fn covers(&self, field: &str) -> bool {
        self.names.iter().any(|name| is_or_ends_in(field, name))
    }
}

fn is_or_ends_in(field: &str, name: &str) -> bool {
    let (field, name) = (field.as_bytes(), name.as_bytes());
    let Some(start) = field.len().checked_sub(name.len()) else {
        return false;
    };
    let same = field[start..].iter().zip(name).all(|(a, b)| {
        let a = match a {
            b'-' | b'.' => b'_',
            a => a.to_ascii_lowercase(),
        };
        a == *b
    });
    same && (start == 0 || matches!(field[start - 1], b'_' | b'-' | b'.'))
}

/// `scheme://user:password@host` without what is between `//` and `@`: drivers put URLs into their
/// errors.
pub(crate) fn scrub(text: &str) -> Cow<'_, str> {
    let mut clean: Option<String> = None;
    let (mut copied, mut from) = (0, 0);
    while let Some(found) = text[from..].find("://") {
        let start = from + found + 3;
        let end = text[start..]
            .find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c))
            .map_or(text.len(), |end| start + end);
        if let Some(at) = text[start..end].rfind('@') {
            let clean = clean.get_or_insert_default();
            clean.push_str(&text[copied..start]);
            clean.push_str(REDACTED);
            copied = start + at;
        }
        from = start;
    }
    match clean {
        None => Cow::Borrowed(text),
        Some(mut clean) => {
            clean.push_str(&text[copied..]);
            Cow::Owned(clean)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_whole_and_as_last_word() {
        let redaction = Redaction::new(["IBAN".to_owned()]);
        for name in [
            "password",
            "db.password",
            "User-Password",
            "refresh_token",
            "iban",
            "x_api_key",
        ] {
            assert!(redaction.covers(name), "{name}");
        }
        for name in [
            "token_count",
            "passwords_checked",
            "notsecret",
            "message",
            "ibanx",
            "",
        ] {
            assert!(!redaction.covers(name), "{name}");
        }
    }

    #[test]
    fn passwords_in_urls_are_cut_out() {
        for (text, clean) in [
            ("nothing here", "nothing here"),
            ("see http://a/b and http://c", "see http://a/b and http://c"),
            (
                "redis://:hunter2@host:1/0 failed",
                "redis://[redacted]@host:1/0 failed",
            ),
            (
                "x http://a postgresql://u:p@ss@h/d, amqp://u:p@h",
                "x http://a postgresql://[redacted]@h/d, amqp://[redacted]@h",
            ),
            ("mail a@b.c http://x", "mail a@b.c http://x"),
            ("http://x mail a@b.c", "http://x mail a@b.c"),
        ] {
            assert_eq!(scrub(text), clean);
        }
    }
}
