//! URLs of servers: what every client would otherwise misread in its own way is refused here.
//!
//! A URL with an unescaped `@` or `/` in its password is valid for one parser and another server's
//! address for the next; the driver must never be the one to decide.

use url::{ParseError, Url};

use crate::parse::Wrong;

/// Checks one URL against the schemes of its variable.
pub(crate) fn url(text: &str, schemes: &[&str]) -> Result<Url, Wrong> {
    if text.contains("${") || text.contains("$(") {
        return Err(unexpanded());
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Wrong::new("holds a space or a control character")
            .fix("remove it; inside a password write a space as %20"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Wrong::new("has no `scheme://` at its beginning"));
    };
    if !schemes
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
    {
        return Err(Wrong::new("has a scheme that is not served here"));
    }
    check_authority(rest)?;
    let url = Url::parse(text).map_err(|error| match error {
        ParseError::EmptyHost => no_host(),
        ParseError::InvalidPort => Wrong::new("has a port that is not a number up to 65535").fix(
            "correct the port; a `:`, `/`, `?` or `#` of a password is written %3A, %2F, %3F, %23",
        ),
        ParseError::InvalidIpv6Address => Wrong::new("has an invalid IPv6 address"),
        ParseError::InvalidIpv4Address => Wrong::new("has an invalid IPv4 address"),
        _ => Wrong::new("has an invalid host"),
    })?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(no_host());
    }
    if url.port() == Some(0) {
        return Err(Wrong::new("has port 0, to which nothing can connect"));
    }
    check_path(&url)?;
    Ok(url)
}

/// A reference stands where its value belongs. Kubernetes leaves `$(NAME)` when `NAME` is defined below.
pub(crate) fn unexpanded() -> Wrong {
    Wrong::new("holds `${…}` or `$(…)`, which nothing has expanded").fix(
        "docker's --env-file expands nothing, and Kubernetes only `$(NAME)` of variables above: write \
         the value itself, or set the variable in an env file or in a compose file's `environment:` \
         (a `$` that is meant is written %24 in a URL)",
    )
}

fn no_host() -> Wrong {
    Wrong::new("has no host")
}

/// Everything between `://` and the path, before a parser gets to interpret it.
fn check_authority(rest: &str) -> Result<(), Wrong> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    if after.contains('@') {
        return Err(
            Wrong::new("has an `@` after the host, as when a password holds an unescaped `/`, `?` or `#`")
                .fix("write these characters of a password as %2F, %3F, %23, and an `@` anywhere else as %40"),
        );
    }
    let host = match authority.rsplit_once('@') {
        None => authority,
        Some((user, host)) => {
            if user.contains('@') {
                return Err(Wrong::new("has more than one `@` before the host")
                    .fix("write an `@` inside a user or password as %40"));
            }
            if !percent_signs_escape(user) {
                return Err(
                    Wrong::new("has a `%` in its user or password that escapes nothing")
                        .fix("write a `%` inside a user or password as %25"),
                );
            }
            host
        }
    };
    if host.contains(',') {
        return Err(Wrong::new("names several hosts in one URL")
            .fix("name one host, behind which the servers take over from each other"));
    }
    if !host.starts_with('[') && host.matches(':').count() > 1 {
        return Err(
            Wrong::new("has an IPv6 address without brackets, or a password without `@`")
                .fix("write an IPv6 host as [::1]:5432"),
        );
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(no_host());
    }
    if host.ends_with(':') {
        return Err(Wrong::new("has a `:` after the host and no port"));
    }
    Ok(())
}

/// True when every `%` is followed by two hexadecimal digits.
fn percent_signs_escape(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

/// The path is one name on the server: a database, a database number, a vhost.
fn check_path(url: &Url) -> Result<(), Wrong> {
    let path = url.path().strip_prefix('/').unwrap_or_default();
    match url.scheme() {
        "redis" | "rediss" | "valkey" | "valkeys" => {
            // `parse` alone would take `+1`.
            let digits = path.bytes().all(|b| b.is_ascii_digit());
            if !path.is_empty() && (!digits || path.parse::<u16>().is_err()) {
                return Err(Wrong::new("has a path that is not one database number")
                    .fix("end it with the number alone: redis://host:6379/1"));
            }
            if url.query_pairs().any(|(name, _)| name == "db") {
                return Err(Wrong::new("names its database number in `?db=`")
                    .fix("give the number once, as the path: redis://host:6379/1"));
            }
        }
        "postgres" | "postgresql" | "amqp" | "amqps" if path.contains('/') => {
            return Err(Wrong::new("has a path of more than one name")
                .fix("write a `/` inside the name as %2F, and nothing after it"));
        }
        _ => {}
    }
    Ok(())
}

/// True for a text in which a password may be: never shown, whatever variable it was put into.
pub(crate) fn may_hold_password(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let in_authority = text.find("://").is_some_and(|at| text[at..].contains('@'));
    in_authority
        || [
            "password",
            "passwd",
            "pwd",
            "secret",
            "token",
            "api_key",
            "apikey",
            // A key in place of its path.
            "-----begin",
        ]
        .iter()
        .any(|word| lower.contains(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &[&str] = &[
        "postgresql",
        "postgres",
        "redis",
        "rediss",
        "amqp",
        "amqps",
        "http",
    ];

    #[test]
    fn ordinary_urls_are_accepted() {
        for text in [
            "postgresql://orders:p%40ss%2F1@maestro-postgres:5432/orders?sslmode=require",
            "postgresql://orders@[::1]:5432/orders",
            "redis://:secret@127.0.0.1/3",
            "redis://maestro-redis",
            "REDIS://maestro-redis:6379/",
            "amqp://orders:pw@maestro-rabbitmq:5672/maestro",
            "amqp://orders:pw@maestro-rabbitmq:5672/%2F",
            "http://maestro-jaeger:4318/v1/traces",
        ] {
            assert_eq!(url(text, ALL).err(), None, "{text}");
        }
    }

    #[test]
    fn urls_that_two_parsers_read_differently_are_refused() {
        for (text, message) in [
            ("", "scheme"),
            ("maestro-redis:6379", "scheme"),
            ("mysql://h/db", "scheme that"),
            ("postgresql://", "no host"),
            ("postgresql:///orders", "no host"),
            ("postgresql://u:p@:5432/orders", "no host"),
            ("postgresql://u:p@/orders", "no host"),
            ("postgresql://u:p@ss@h/orders", "more than one `@`"),
            ("postgresql://u:p/w@h/orders", "after the host"),
            ("postgresql://u:12/w@h/orders", "after the host"),
            ("postgresql://u:1?w@h/orders", "after the host"),
            ("postgresql://u:1#w@h/orders", "after the host"),
            ("postgresql://u:50%@h/orders", "escapes nothing"),
            ("postgresql://u:é%é@h/orders", "escapes nothing"),
            ("postgresql://u:p@h:0/orders", "port 0"),
            ("postgresql://u:p@h:99999/orders", "port that"),
            ("postgresql://u:p@h:/orders", "no port"),
            ("postgresql://u:p@h1:5432,h2:5432/orders", "several hosts"),
            ("postgresql://u:p@::1/orders", "brackets"),
            ("postgresql://u:p@::1:5432/orders", "brackets"),
            ("postgresql://u:p@[::g]/orders", "invalid IPv6"),
            ("postgresql://u:p@h/orders/x", "more than one name"),
            ("postgresql://u:p w@h/orders", "space"),
            ("postgresql://u:p@h/orders\n", "space"),
            ("redis://h/1/2", "database number"),
            ("redis://h/orders", "database number"),
            ("redis://h/-1", "database number"),
            ("redis://h/+1", "database number"),
            ("redis://h/99999", "database number"),
            ("redis://h/1?db=2", "?db="),
            ("redis://:${REDIS_PASSWORD}@h/1", "expanded"),
            ("redis://:$(REDIS_PASSWORD)@h/1", "expanded"),
            ("amqp://u:p@h/a/b", "more than one name"),
        ] {
            let wrong = url(text, ALL).expect_err(text);
            assert!(wrong.message.contains(message), "{text}: {}", wrong.message);
        }
    }

    proptest! {
        #[test]
        fn no_text_at_all_makes_it_fall_over(text in any::<String>()) {
            let _ = url(&text, ALL);
        }

        #[test]
        fn nothing_url_like_makes_it_fall_over(
            text in "(redis|amqp|postgresql)://[a-z:@/%?#\\[\\]0-9é]{0,24}"
        ) {
            if let Err(wrong) = url(&text, ALL) {
                prop_assert!(wrong.suggestion.is_none(), "a URL is never repeated");
            }
        }

        #[test]
        fn an_accepted_url_keeps_its_password_in_one_piece(password in "[ -~]{1,20}") {
            let text = format!(
                "postgresql://orders:{}@maestro-postgres:5432/orders",
                crate::provision::percent(&password)
            );
            let parsed = url(&text, ALL).expect("an escaped password is accepted");
            prop_assert_eq!(parsed.host_str(), Some("maestro-postgres"));
            prop_assert_eq!(parsed.path(), "/orders");
        }
    }
}
