//! Typed reading: every getter notes its problem and goes on, so that one pass finds them all.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::conventions::ServiceName;
use crate::environment::Environment;
use crate::error::Problem;
use crate::identity::Deployment;
use crate::kind::Kind;
use crate::merge::{self, Entry, Merged};
use crate::origin::Origin;
use crate::parse::{self, Wrong};
use crate::raw::Raw;
use crate::rules;
use crate::secret::Secret;
use crate::typos;
use crate::url_syntax;
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
///
/// A getter returns `None` after it has noted a problem. White space around a value is no part of it,
/// except in a [`secret`](Self::secret). An empty value is no value: the default holds, or the
/// variable is not set. That is what `NAME: ${OTHER:-}` in a compose file means.
pub struct Reader<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) tables: Vec<&'static Table>,
    pub(crate) merged: Merged,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    /// Names that some problem tells to rename; not reported a second time as unknown.
    pub(crate) explained: BTreeSet<String>,
}

impl Reader<'_> {
    /// Text.
    pub fn string(&mut self, variable: &Variable) -> Option<String> {
        Some(self.raw(variable)?.trimmed().to_owned())
    }

    /// Text that must not be shown.
    pub fn secret(&mut self, variable: &Variable) -> Option<Secret<String>> {
        let raw = self.raw(variable)?;
        self.check_secret(variable, &raw)?;
        Some(Secret::new(String::clone(&raw.text)))
    }

    /// A service name.
    pub fn service_name(&mut self, variable: &Variable) -> Option<ServiceName> {
        self.parse(variable, |text| {
            text.parse::<ServiceName>().map_err(|error| {
                let wrong = Wrong::new(format!("is not {}", error.expected()));
                let kebab = text.to_ascii_lowercase().replace(['_', ' ', '.'], "-");
                match kebab.parse::<ServiceName>() {
                    Ok(name) => wrong.meant(name.as_str()),
                    Err(_) => wrong,
                }
            })
        })
    }

    /// One of the words of [`Kind::Choice`].
    pub fn choice(&mut self, variable: &Variable) -> Option<String> {
        let Kind::Choice { words } = variable.kind else {
            return self.string(variable);
        };
        self.parse(variable, |text| {
            if words.contains(&text) {
                return Ok(text.to_owned());
            }
            let wrong = Wrong::new("is none of the words accepted");
            let lower = text.to_ascii_lowercase();
            // As long as a word may be: a megabyte is not compared with every one of them.
            let is_near = |word: &str| lower.len() < 40 && strsim::osa_distance(&lower, word) <= 2;
            let near = words
                .iter()
                .find(|word| **word == lower || (lower.len() >= 3 && word.starts_with(&lower)))
                .or_else(|| words.iter().find(|word| word.len() > 4 && is_near(word)));
            Err(near.map_or(wrong.clone(), |word| wrong.meant(*word)))
        })
    }

    /// A duration with unit.
    pub fn duration(&mut self, variable: &Variable) -> Option<Duration> {
        self.parse(variable, |text| {
            within(variable, parse::duration(text)?, parse::duration)
        })
    }

    /// A comma-separated list of durations.
    pub fn durations(&mut self, variable: &Variable) -> Option<Vec<Duration>> {
        self.parse(variable, |text| {
            parse::durations(text)?
                .into_iter()
                .map(|duration| within(variable, duration, parse::duration))
                .collect()
        })
    }

    /// Bytes.
    pub fn size(&mut self, variable: &Variable) -> Option<u64> {
        self.parse(variable, |text| {
            within(variable, parse::size(text)?, parse::size)
        })
    }

    /// A whole number within the bounds of [`Kind::Count`].
    pub fn count(&mut self, variable: &Variable) -> Option<u64> {
        let (min, max) = match variable.kind {
            Kind::Count { min, max } => (min, max),
            _ => (0, u64::MAX),
        };
        self.parse(variable, |text| parse::count(text, min, max))
    }

    /// A number from 0 to 1.
    pub fn ratio(&mut self, variable: &Variable) -> Option<f64> {
        self.parse(variable, parse::ratio)
    }

    /// A socket address.
    pub fn address(&mut self, variable: &Variable) -> Option<SocketAddr> {
        self.parse(variable, parse::address)
    }

    /// A path.
    pub fn path(&mut self, variable: &Variable) -> Option<PathBuf> {
        self.string(variable).map(PathBuf::from)
    }

    /// A comma-separated list of paths.
    pub fn paths(&mut self, variable: &Variable) -> Option<Vec<PathBuf>> {
        self.parse(variable, |text| {
            Ok(parse::elements(text)?
                .into_iter()
                .map(PathBuf::from)
                .collect())
        })
    }

    /// A variable that may be absent: `Some(None)` when nothing sets it, or sets it to nothing.
    pub fn optional<T>(
        &mut self,
        variable: &Variable,
        read: impl FnOnce(&mut Self, &Variable) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.entry(variable) {
            None => Some(None),
            Some(entry) if entry.is_empty() => {
                if variable.secret && self.deployment().is_some_and(Deployment::is_strict) {
                    let fix = format!("remove {}, or give it a value", entry.name);
                    self.problems
                        .push(Problem::of(variable, &entry.origin, "is empty", fix));
                    return None;
                }
                Some(None)
            }
            Some(_) => read(self, variable).map(Some),
        }
    }

    /// True when something sets the variable to more than nothing.
    pub fn is_set(&self, variable: &Variable) -> bool {
        self.entry(variable).is_some_and(|entry| !entry.is_empty())
    }

    /// The kind of environment, for defaults that depend on it; `None` when it is not set or wrong,
    /// which [`Identity`](crate::Identity) reports.
    pub fn deployment(&self) -> Option<Deployment> {
        self.environment.deployment()
    }

    /// The name of the service, for names derived from it; `None` when it is not set or wrong, which
    /// [`Identity`](crate::Identity) reports.
    pub fn service(&self) -> Option<ServiceName> {
        self.environment.service()
    }

    /// The name of this host, as far as the environment knows one.
    pub(crate) fn host_name(&self) -> &str {
        &self.environment.host_name
    }

    /// Notes a problem that spans variables or that the getters cannot see. `message` continues the
    /// variable's name; `fix` is what to paste or to do. Neither may hold a secret.
    pub fn problem(
        &mut self,
        variable: &Variable,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let problem = Problem::of(variable, &self.origin(variable), message, fix);
        self.problems.push(problem);
    }

    /// Notes what still works and should be changed, such as an older value that is mapped to a new
    /// one. Warnings reach the log, and [`Environment::read_with_warnings`] hands them out.
    pub fn warning(
        &mut self,
        variable: &Variable,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let warning = Problem::of(variable, &self.origin(variable), message, fix);
        self.warnings.push(warning);
    }

    /// What sets the variable.
    pub(crate) fn entry(&self, variable: &Variable) -> Option<Entry> {
        let in_tables = self
            .tables
            .iter()
            .any(|table| table.variables.iter().any(|v| v.name == variable.name));
        if in_tables {
            return self.merged.entries.get(variable.name).cloned();
        }
        // A variable that its crate forgot in the table still works, undocumented.
        let merged = merge::merge(&self.environment.layers, [variable]);
        merged.entries.into_values().next()
    }

    fn origin(&self, variable: &Variable) -> Origin {
        match self.entry(variable) {
            Some(entry) if !entry.is_empty() => entry.origin,
            _ if variable.default.is_some() => Origin::Default,
            Some(entry) => entry.origin,
            None => Origin::Unset,
        }
    }

    /// The text of a variable, or a problem.
    pub(crate) fn raw(&mut self, variable: &Variable) -> Option<Raw> {
        let entry = self.entry(variable);
        if let Some(entry) = &entry
            && !entry.is_empty()
        {
            return match &entry.value {
                Ok(value) => Some(Raw::new(variable, value)),
                Err(fault) => {
                    let fix = fault.fix(entry.name);
                    let problem = Problem::of(variable, &entry.origin, fault.message(), fix);
                    self.problems.push(problem);
                    None
                }
            };
        }
        if let Some(default) = variable.default {
            return Some(Raw::of_default(default));
        }
        let problem = self.missing(variable, entry.as_ref());
        self.problems.push(problem);
        None
    }

    fn missing(&mut self, variable: &Variable, empty: Option<&Entry>) -> Problem {
        if let Some(entry) = empty {
            return Problem::of(variable, &entry.origin, "is empty", variable.fix(None));
        }
        let names = self.environment.layers.names().map(|(name, _)| name);
        let near = typos::misspelling(variable, names, &self.tables).map(str::to_owned);
        let Some(near) = near else {
            return Problem::of(variable, &Origin::Unset, "is not set", variable.fix(None));
        };
        let message = format!("is not set, but {near} is");
        let fix = format!("rename {near} to {}", variable.name);
        self.explained.insert(near);
        Problem::of(variable, &Origin::Unset, message, fix)
    }

    /// Parses the trimmed text of a variable, or notes a problem.
    pub(crate) fn parse<T>(
        &mut self,
        variable: &Variable,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let raw = self.raw(variable)?;
        match parse(raw.trimmed()) {
            Ok(value) => Some(value),
            Err(wrong) => {
                let unquoted = unquoted(raw.trimmed()).filter(|text| parse(text).is_ok());
                let wrong = unquoted.map_or(wrong, in_quotes);
                self.wrong(variable, &raw, &wrong);
                None
            }
        }
    }

    pub(crate) fn wrong(&mut self, variable: &Variable, raw: &Raw, wrong: &Wrong) {
        self.problems.push(raw.problem(variable, wrong));
    }

    /// What is wrong with a secret beyond its being there.
    pub(crate) fn check_secret(&mut self, variable: &Variable, raw: &Raw) -> Option<()> {
        if raw.text.starts_with(['\n', '\r']) || raw.text.ends_with(['\n', '\r']) {
            let wrong = Wrong::new("begins or ends with a line break")
                .fix("store it without one: printf %s, not echo");
            self.wrong(variable, raw, &wrong);
            return None;
        }
        let enclosed =
            |begin: &str, end: &str| raw.text.starts_with(begin) && raw.text.ends_with(end);
        if enclosed("${", "}") || enclosed("$(", ")") {
            self.wrong(variable, raw, &url_syntax::unexpanded());
            return None;
        }
        if self.deployment().is_some_and(Deployment::is_strict)
            && let Some(wrong) = rules::password(&raw.text)
        {
            self.wrong(variable, raw, &wrong);
            return None;
        }
        Some(())
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("problems", &self.problems)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

/// A text without the quotes around it, when there are any.
pub(crate) fn unquoted(text: &str) -> Option<&str> {
    ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
}

/// What is wrong with a value that would be right without its quotes.
pub(crate) fn in_quotes(unquoted: &str) -> Wrong {
    Wrong::new("is in quotes, which docker's --env-file and Kubernetes take for a part of it")
        .meant(unquoted)
}

/// Checks the bounds of a duration or a size.
fn within<T: PartialOrd + Default>(
    variable: &Variable,
    value: T,
    parse: fn(&str) -> Result<T, Wrong>,
) -> Result<T, Wrong> {
    let Some((min, max)) = variable.bounds else {
        return Ok(value);
    };
    if value == T::default() && !variable.zero.is_empty() {
        return Ok(value);
    }
    if parse(min).is_ok_and(|bound| value < bound) {
        return Err(Wrong::new(format!("is below {min}")));
    }
    if parse(max).is_ok_and(|bound| value > bound) {
        return Err(Wrong::new(format!("is above {max}")));
    }
    Ok(value)
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
tuples!(A, B, C, D, E, F, G);
tuples!(A, B, C, D, E, F, G, H);

#[cfg(test)]
mod tests;
