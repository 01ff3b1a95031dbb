//! One address of a database: read from its URL once, and again when its secret file changes.

use std::fmt;

use maestro_config::{Secret, ServerUrl};
use url::Url;

use super::variables::SCHEMES;

/// Where to connect, as whom.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<Secret<String>>,
    pub(crate) database: String,
    pub(crate) ssl_mode: Option<SslMode>,
    /// Where all of this stands now, if it may change while the service runs.
    pub(crate) source: Option<ServerUrl>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user,
            host,
            port,
            database,
            ..
        } = self;
        write!(f, "postgresql://{user}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Endpoint {
    /// The end of a sentence that begins with the name of the URL, on error.
    pub(crate) fn parse(url: &Secret<String>) -> Result<Self, String> {
        match Url::parse(url.expose()) {
            Ok(url) => Self::from_url(&url),
            Err(_) => Err("is not a URL".to_owned()),
        }
    }

    /// The message on error never holds a part of the URL that could be a password.
    fn from_url(url: &Url) -> Result<Self, String> {
        if !SCHEMES.contains(&url.scheme()) {
            return Err("expected a URL that begins with `postgresql://`".to_owned());
        }
        let decode = |text: &str| {
            percent_decode(text)
                .ok_or("holds a broken percent escape (`%` itself is written `%25`)".to_owned())
        };
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or("names no host")?;
        let user = decode(url.username())?;
        if user.is_empty() {
            return Err("names no role".to_owned());
        }
        let database = decode(url.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err("names no database".to_owned());
        }
        let password = url.password().map(decode).transpose()?.map(Secret::new);
        let mut ssl_mode = None;
        for (key, value) in url.query_pairs() {
            if key != "sslmode" {
                return Err(format!(
                    "has the parameter `{key}`, which is not read: settings of a connection are MAESTRO_POSTGRES_* variables, and only `sslmode` belongs into the URL"
                ));
            }
            ssl_mode = Some(SslMode::parse(&value)?);
        }
        Ok(Self {
            // `url` keeps the brackets of an IPv6 address, a socket address does not have them.
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: url.port().unwrap_or(5432),
            user,
            password,
            database,
            ssl_mode,
            source: None,
        })
    }
}

impl SslMode {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(
                    "has an `sslmode` that is none of disable, prefer, require, verify-ca, verify-full"
                        .to_owned(),
                );
            }
        })
    }
}

/// `%41` → `A`; `None` when the bytes are not UTF-8 or an escape is cut short.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let &[high, low, ref tail @ ..] = rest else {
                return None;
            };
            let digit = |byte| char::from(byte).to_digit(16);
            bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
