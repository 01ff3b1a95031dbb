//! Quoting for PostgreSQL: whatever a name or a password holds, it stays a name or a password.

/// An identifier in double quotes.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal. A backslash makes it an `E''` literal, so that the server's
/// `standard_conforming_strings` cannot change what it means.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// An anonymous PL/pgSQL block, dollar-quoted with a tag that the body does not hold.
pub(super) fn block(body: &str) -> String {
    let mut tag = String::from("$maestro$");
    while body.contains(&tag) {
        tag.insert(tag.len() - 1, '_');
    }
    format!("DO {tag}\nBEGIN\n{body}\nEND\n{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_cannot_end_what_it_is_in() {
        assert_eq!(identifier(r#"a"; DROP"#), r#""a""; DROP""#);
        assert_eq!(literal("a'; DROP"), "'a''; DROP'");
        assert_eq!(literal(r"a\'; DROP"), r"E'a\\''; DROP'");
        assert!(block("$maestro$").starts_with("DO $maestro_$"));
    }
}
