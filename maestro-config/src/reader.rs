//! Typed reading: every getter notes its problem and goes on, so that one pass finds them all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::conventions::ServiceName;
use crate::environment::Environment;
use crate::error::{ConfigError, Problem};
use crate::secret::Secret;
use crate::variable::{Table, Variable};

/// A settings struct that is read from the environment.
///
/// `read` calls a getter for every variable first and uses `?` only afterwards, so that all problems
/// are found in one pass. Tuples of settings are settings.
pub trait FromEnvironment: Sized {
    /// The variables this type reads.
    fn tables() -> Vec<&'static Table>;

    /// Reads the settings; `None` when a problem was noted on the reader.
    fn read(reader: &mut Reader<'_>) -> Option<Self>;
}

/// Reads variables and collects problems.
#[derive(Debug)]
pub struct Reader<'a> {
    environment: &'a Environment,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(environment: &'a Environment) -> Self {
        Self {
            environment,
            problems: Vec::new(),
        }
    }

    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigError> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(ConfigError {
                problems: self.problems,
            }),
        }
    }

    /// Text.
    pub fn string(&mut self, variable: &Variable) -> Option<String> {
        self.raw(variable)
    }

    /// Text that must not be shown.
    pub fn secret(&mut self, variable: &Variable) -> Option<Secret<String>> {
        self.raw(variable).map(Secret::new)
    }

    /// A service name.
    pub fn service_name(&mut self, variable: &Variable) -> Option<ServiceName> {
        self.parse(variable, "a service name", |text| text.parse().ok())
    }

    /// One of the words of [`Kind::Choice`](crate::Kind::Choice).
    pub fn choice(&mut self, variable: &Variable) -> Option<String> {
        let crate::Kind::Choice { words } = variable.kind else {
            return self.raw(variable);
        };
        self.parse(variable, &format!("one of {}", words.join(", ")), |text| {
            words.contains(&text).then(|| text.to_owned())
        })
    }

    /// A duration with unit.
    pub fn duration(&mut self, variable: &Variable) -> Option<Duration> {
        self.parse(
            variable,
            "a duration such as `250ms`, `30s` or `5m`",
            parse_duration,
        )
    }

    /// A comma-separated list of durations.
    pub fn durations(&mut self, variable: &Variable) -> Option<Vec<Duration>> {
        self.parse(
            variable,
            "a list of durations such as `1s,10s,60s`",
            |text| {
                text.split(',')
                    .map(|part| parse_duration(part.trim()))
                    .collect()
            },
        )
    }

    /// Bytes.
    pub fn size(&mut self, variable: &Variable) -> Option<u64> {
        self.parse(variable, "a size such as `64MiB`", parse_size)
    }

    /// A whole number within the bounds of [`Kind::Count`](crate::Kind::Count).
    pub fn count(&mut self, variable: &Variable) -> Option<u64> {
        let crate::Kind::Count { min, max } = variable.kind else {
            return None;
        };
        self.parse(
            variable,
            &format!("a whole number from {min} to {max}"),
            |text| text.parse().ok().filter(|n| (min..=max).contains(n)),
        )
    }

    /// A number from 0 to 1.
    pub fn ratio(&mut self, variable: &Variable) -> Option<f64> {
        self.parse(variable, "a number from 0 to 1", |text| {
            text.parse().ok().filter(|n| (0.0..=1.0).contains(n))
        })
    }

    /// A URL; wrapped, because it can hold a password.
    pub fn url(&mut self, variable: &Variable) -> Option<Secret<String>> {
        self.parse(variable, "a URL", |text| {
            Url::parse(text).ok().map(|_| Secret::new(text.to_owned()))
        })
    }

    /// A comma-separated list of URLs.
    pub fn urls(&mut self, variable: &Variable) -> Option<Vec<Secret<String>>> {
        self.parse(variable, "a list of URLs", |text| {
            text.split(',')
                .map(|part| {
                    Url::parse(part.trim())
                        .ok()
                        .map(|_| Secret::new(part.trim().to_owned()))
                })
                .collect()
        })
    }

    /// A socket address.
    pub fn address(&mut self, variable: &Variable) -> Option<SocketAddr> {
        self.parse(variable, "an address such as `0.0.0.0:8000`", |text| {
            text.parse().ok()
        })
    }

    /// A path.
    pub fn path(&mut self, variable: &Variable) -> Option<PathBuf> {
        self.raw(variable).map(PathBuf::from)
    }

    /// A variable that may be absent: `Some(None)` when nothing sets it.
    pub fn optional<T>(
        &mut self,
        variable: &Variable,
        read: impl FnOnce(&mut Self, &Variable) -> Option<T>,
    ) -> Option<Option<T>> {
        if self.lookup(variable).is_none() {
            return Some(None);
        }
        read(self, variable).map(Some)
    }

    /// Notes a problem that spans variables or that the getters cannot see.
    pub fn problem(
        &mut self,
        variable: &Variable,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let problem = Problem {
            variable: variable.name.to_owned(),
            origin: "environment".to_owned(),
            message: message.into(),
            fix: fix.into(),
        };
        // Settings that hold the identity read its variables again.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn lookup(&self, variable: &Variable) -> Option<&'a str> {
        let values = &self.environment.values;
        std::iter::once(&variable.name)
            .chain(variable.aliases)
            .find_map(|name| values.get(*name).map(String::as_str))
    }

    fn raw(&mut self, variable: &Variable) -> Option<String> {
        let value = self.lookup(variable).or(variable.default);
        if value.is_none() {
            self.problem(
                variable,
                "is not set",
                format!("{}={}", variable.name, variable.example),
            );
        }
        value.map(str::to_owned)
    }

    fn parse<T>(
        &mut self,
        variable: &Variable,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.raw(variable)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.problem(
                variable,
                format!("expected {expected}"),
                format!("{}={}", variable.name, variable.example),
            );
        }
        parsed
    }
}

macro_rules! tuples {
    ($($name:ident),+) => {
        impl<$($name: FromEnvironment),+> FromEnvironment for ($($name,)+) {
            fn tables() -> Vec<&'static Table> {
                [$($name::tables()),+].concat()
            }

            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                #[expect(non_snake_case, reason = "one binding per type parameter")]
                let ($($name,)+) = ($($name::read(reader),)+);
                Some(($($name?,)+))
            }
        }
    };
}
tuples!(A);
tuples!(A, B);
tuples!(A, B, C);
tuples!(A, B, C, D);
tuples!(A, B, C, D, E);
tuples!(A, B, C, D, E, F);

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

fn parse_size(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}
