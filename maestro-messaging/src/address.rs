//! Where a broker is, out of its URL.

use std::fmt;

use maestro_config::Secret;
use url::Url;

/// One node of the broker. `Display` shows user, host, port and vhost, never the password.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: Secret<String>,
}

impl Address {
    /// Parses `amqp[s]://user:password@host[:port]/vhost`. The problem found is said without
    /// repeating the URL, which holds a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            scheme => return Err(format!("expected amqp:// or amqps://, not {scheme}://")),
        };
        // The brackets of an IPv6 address are syntax of the URL, not of the address.
        let host = match url.host_str() {
            Some(host) if !host.is_empty() => host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            _ => return Err("names no host".to_owned()),
        };
        let segments = url.path().trim_start_matches('/');
        if segments.contains('/') {
            return Err(
                "has more than one path segment; the vhost `/` is written `%2F`".to_owned(),
            );
        }
        let vhost = match decode(segments)? {
            vhost if vhost.is_empty() => "/".to_owned(),
            vhost => vhost,
        };
        Ok(Self {
            tls,
            host,
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost,
            user: decode(url.username())?,
            password: Secret::new(decode(url.password().unwrap_or_default())?),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let (open, close) = if self.host.contains(':') {
            ("[", "]")
        } else {
            ("", "")
        };
        write!(
            f,
            "{scheme}://{}@{open}{}{close}:{} (vhost `{}`)",
            self.user, self.host, self.port, self.vhost
        )
    }
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else {
                    return Err("holds a `%` that is not followed by two hex digits".to_owned());
                };
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = after;
            }
            (b'%', _) => return Err("ends in the middle of a %-escape".to_owned()),
            (byte, after) => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 once unescaped".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_password_and_vhost_are_unescaped() {
        let address = Address::parse("amqp://a%40b:p%2Fw%25@broker:27672/ma%2Festro").unwrap();
        assert_eq!(address.user, "a@b");
        assert_eq!(address.password.expose(), "p/w%");
        assert_eq!(address.vhost, "ma/estro");
        assert_eq!(address.port, 27672);
        assert_eq!(
            address.to_string(),
            "amqp://a@b@broker:27672 (vhost `ma/estro`)"
        );
    }

    #[test]
    fn ports_and_the_vhost_have_the_protocols_defaults() {
        assert_eq!(Address::parse("amqp://h").unwrap().port, 5672);
        assert_eq!(Address::parse("amqps://h/v").unwrap().port, 5671);
        for url in ["amqp://h", "amqp://h/", "amqp://h/%2F", "amqp://h/%2f"] {
            assert_eq!(Address::parse(url).unwrap().vhost, "/", "{url}");
        }
    }

    #[test]
    fn an_ipv6_host_keeps_its_address_and_loses_its_brackets() {
        let address = Address::parse("amqp://u:p@[::1]:5672/v").unwrap();
        assert_eq!(address.host, "::1");
        assert_eq!(address.to_string(), "amqp://u@[::1]:5672 (vhost `v`)");
    }

    #[test]
    fn broken_urls_are_refused_without_repeating_the_password() {
        for url in [
            "amqp://u:canary@h/%zz",
            "amqp://u:canary@h/%4",
            "amqp://u:canary@h/a/b",
            "http://u:canary@h/",
            "amqp:///v",
            "amqp://u:canary@h/%ff",
        ] {
            let problem = Address::parse(url).unwrap_err();
            assert!(!problem.contains("canary"), "{url}: {problem}");
        }
    }
}
