//! What the fuzz targets call (`fuzz/` of the workspace), and property tests on every compiler.
#![expect(
    clippy::missing_panics_doc,
    reason = "to panic over a property that does not hold is what they are for"
)]

use maestro_config::Secret;

use crate::config::Endpoint;
use crate::statement::{self, Statements, Tags};
use crate::tenant::TenantId;

/// The text of a statement: its parts are whole statements, one of which is refused only with the
/// whole, and a comment with tags makes no other statement of it.
pub fn statement(sql: &str) {
    let plain = Statements::default();
    let whole = plain.look_up(sql);
    let parts = statement::split(sql);
    for part in &parts {
        assert_eq!(statement::split(part), [*part]);
        let part = plain.look_up(part);
        assert!(part.allow_on_pool().is_ok() || whole.allow_on_pool().is_err());
        let scoped = true;
        assert!(
            part.allow_in_transaction(scoped).is_ok()
                || whole.allow_in_transaction(scoped).is_err()
        );
    }
    let tagged = Statements::new(Tags::of("orders", "1.0.0")).look_up(sql);
    if let Some(text) = &tagged.tagged {
        assert_eq!(statement::split(text.as_str()).len(), parts.len());
        assert_eq!(plain.look_up(text.as_str()).effect, whole.effect);
    }
}

/// The URL of a database, and what may follow a password in one: one that is accepted names host, role and database, and neither it nor
/// what is wrong with another shows a password.
pub fn address(text: &str) {
    const CANARY: &str = "canary-17";
    for text in [
        text.to_owned(),
        format!("postgresql://user:{CANARY}@{text}"),
    ] {
        match Endpoint::parse(&Secret::new(text)) {
            Ok(endpoint) => {
                assert!(!endpoint.host.is_empty());
                assert!(!endpoint.user.is_empty());
                assert!(!endpoint.database.is_empty());
                assert!(!format!("{endpoint} {endpoint:?}").contains(CANARY));
            }
            Err(problem) => assert!(!problem.contains(CANARY), "{problem}"),
        }
    }
}

/// The id of a tenant: one that is accepted means nothing in SQL and fits into a name of its own.
pub fn tenant(text: &str) {
    let Ok(tenant) = TenantId::parse(text) else {
        return;
    };
    assert_eq!(tenant.as_str(), text);
    let schema = tenant.schema();
    assert!(schema.len() <= 63 && !schema.contains(['"', '\'', '\\', '.', ' ', ';']));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_of_a_text_are_refused_only_with_the_whole(
            words in proptest::collection::vec(
                prop_oneof![
                    "(begin|commit|set|local|role|create|function|atomic|end|select|with|insert)",
                    "(set_config|listen|prepare|transaction|declare|copy|from|a|\"b\"|\\.|\\(|\\)|;)",
                    "('|''|e'\\\\|\\$\\$|\\$a\\$|--|\n|/\\*|\\*/|\\$1|7)",
                ],
                0..14,
            ),
            glue in "( |)",
        ) {
            super::statement(&words.join(&glue));
        }

        #[test]
        fn a_url_is_whole_or_refused(
            url in "(postgres(ql)?://)?([a-z%0-9+]{0,6}@)?[a-z.\\[\\]:0-9]{0,8}(/[a-z%+0-9]{0,5})?(\\?sslmode=[a-z]{0,7})?",
        ) {
            super::address(&url);
        }

        #[test]
        fn a_tenant_means_nothing_in_sql(id in "[-a-z0-9_\"'A-Z. ]{0,50}") {
            super::tenant(&id);
        }
    }
}
