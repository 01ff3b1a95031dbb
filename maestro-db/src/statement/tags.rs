//! The service's name and version as a comment on its statements, in the manner of sqlcommenter.
//!
//! Never anything of one request or one process: the text is the key of a prepared statement, in this
//! process and in PgBouncer, so a comment that changes would have each statement prepared anew.

use std::fmt::Write as _;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

/// The comment that statements carry, if any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tags(Option<Arc<str>>);

impl Tags {
    pub(crate) fn of(service: &str, version: &str) -> Self {
        let comment = format!(
            "/*service='{}',version='{}'*/",
            encoded(service),
            encoded(version)
        );
        Self(Some(comment.into()))
    }

    /// The text with the comment; `None` when it stays as it is. One that has a comment of its own
    /// does, as sqlcommenter has it: that may be tags already.
    pub(super) fn on(&self, sql: &str) -> Option<SqlStr> {
        let comment = self.0.as_deref().filter(|_| !sql.contains("/*"))?;
        // A comment of one line would swallow it.
        let gap = if sql.contains("--") { '\n' } else { ' ' };
        let tagged: Arc<str> = format!("{sql}{gap}{comment}").into();
        Some(AssertSqlSafe(tagged).into_sql_str())
    }
}

/// URL encoding, after which nothing is left that could end the value or the comment.
fn encoded(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(sql: &str) -> Option<String> {
        let tags = Tags::of("orders", "1.2.0+build */ '");
        tags.on(sql).map(|tagged| tagged.as_str().to_owned())
    }

    #[test]
    fn nothing_in_a_tag_ends_the_comment() {
        assert_eq!(
            on("select 1").unwrap(),
            "select 1 /*service='orders',version='1.2.0%2Bbuild%20%2A%2F%20%27'*/"
        );
    }

    #[test]
    fn a_comment_of_one_line_does_not_swallow_the_tags() {
        assert!(
            on("select 1 -- one")
                .unwrap()
                .starts_with("select 1 -- one\n/*service=")
        );
    }

    #[test]
    fn a_text_with_a_comment_of_its_own_stays_as_it_is_and_so_does_every_text_without_tags() {
        assert_eq!(on("/* hint */ select 1"), None);
        assert!(Tags::default().on("select 1").is_none());
    }
}
