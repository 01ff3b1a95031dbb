//! The types a variable's value can have.

/// The type of a variable's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Any text.
    String,
    /// A service name.
    Name,
    /// A number with a unit: `250ms`, `30s`, `5m`, `2h`; `0` alone means zero.
    Duration,
    /// A comma-separated list of durations.
    Durations,
    /// Bytes with a unit: `512B`, `16KiB`, `64MiB`, `1GiB`; `0` alone means zero.
    Size,
    /// A whole number within bounds, both included.
    Count {
        /// Smallest value accepted.
        min: u64,
        /// Largest value accepted.
        max: u64,
    },
    /// A number from 0 to 1.
    Ratio,
    /// A URL with one of these schemes.
    Url {
        /// Schemes accepted, without `://`.
        schemes: &'static [&'static str],
    },
    /// A comma-separated list of URLs, each with one of these schemes.
    Urls {
        /// Schemes accepted, without `://`.
        schemes: &'static [&'static str],
    },
    /// A socket address, `0.0.0.0:8000`.
    Address,
    /// A path of a file.
    Path,
    /// A comma-separated list of paths.
    Paths,
    /// One of these words.
    Choice {
        /// The words accepted.
        words: &'static [&'static str],
    },
}

impl Kind {
    /// The word for it in tables.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Name => "name",
            Self::Duration => "duration",
            Self::Durations => "list of durations",
            Self::Size => "size",
            Self::Count { .. } => "count",
            Self::Ratio => "ratio",
            Self::Url { .. } => "url",
            Self::Urls { .. } => "list of urls",
            Self::Address => "address",
            Self::Path => "path",
            Self::Paths => "list of paths",
            Self::Choice { .. } => "choice",
        }
    }

    /// What a value must be, as the end of "expected …".
    pub(crate) fn expectation(self) -> String {
        match self {
            Self::String => "text".to_owned(),
            Self::Name => "a service name: lower-case kebab, 3 to 40 characters".to_owned(),
            Self::Duration => {
                "a whole number with a unit: `250ms`, `30s`, `5m`, `2h`; `0` alone is zero"
                    .to_owned()
            }
            Self::Durations => {
                "durations separated by commas, each a whole number with a unit: `1s,10s,60s`"
                    .to_owned()
            }
            Self::Size => {
                "a whole number with a unit: `512B`, `16KiB`, `64MiB`, `1GiB`; `0` alone is zero"
                    .to_owned()
            }
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Ratio => "a number from 0 to 1".to_owned(),
            Self::Url { schemes } => format!("a URL that begins with {}", alternatives(schemes)),
            Self::Urls { schemes } => format!(
                "URLs separated by commas, each beginning with {}",
                alternatives(schemes)
            ),
            Self::Address => "an IP address and a port: `0.0.0.0:8000`, `[::]:8000`".to_owned(),
            Self::Path => "the path of a file".to_owned(),
            Self::Paths => "paths separated by commas".to_owned(),
            Self::Choice { words } => format!("one of `{}`", words.join("`, `")),
        }
    }

    /// A value that is accepted, for variables that give no example of their own.
    pub(crate) const fn example(self) -> &'static str {
        match self {
            Self::String => "text",
            Self::Name => "quality-fabric",
            Self::Duration => "30s",
            Self::Durations => "1s,10s,60s",
            Self::Size => "64MiB",
            Self::Count { .. } => "10",
            Self::Ratio => "0.1",
            Self::Url { .. } | Self::Urls { .. } => "scheme://user:password@host:port/path",
            Self::Address => "0.0.0.0:8000",
            Self::Path | Self::Paths => "/run/secrets/name",
            Self::Choice { words } => match words {
                [first, ..] => first,
                [] => "",
            },
        }
    }

    /// True when a value may be shown in a report at all: a URL can hold a password anywhere.
    pub(crate) const fn may_be_shown(self) -> bool {
        !matches!(self, Self::Url { .. } | Self::Urls { .. })
    }
}

fn alternatives(schemes: &[&str]) -> String {
    let quoted: Vec<_> = schemes.iter().map(|s| format!("`{s}://`")).collect();
    quoted.join(" or ")
}
