//! Variables as data: what a crate reads, so that parsing, documentation, the JSON schema, typo
//! detection and the doctor all speak from one table.

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

/// One variable, declared as a constant beside the settings struct that reads it.
///
/// ```
/// use maestro_config::{Kind, Variable};
///
/// const LOCAL_TTL: Variable = Variable::new("MAESTRO_CACHE_LOCAL_TTL", Kind::Duration)
///     .default("60s")
///     .doc("Longest time a value lives in process memory.");
/// assert_eq!(LOCAL_TTL.name(), "MAESTRO_CACHE_LOCAL_TTL");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) default: Option<&'static str>,
    pub(crate) secret: bool,
    pub(crate) required: bool,
    pub(crate) doc: &'static str,
    pub(crate) example: &'static str,
    pub(crate) hint: &'static str,
}

impl Variable {
    /// A variable without default that may be absent.
    #[must_use]
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            aliases: &[],
            kind,
            default: None,
            secret: false,
            required: false,
            doc: "",
            example: "",
            hint: "",
        }
    }

    /// Older names that are accepted for the same setting.
    #[must_use]
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// The value used when nothing sets it, written as in the environment.
    #[must_use]
    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// The value must never be shown.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The service does not start without it.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// What the setting does, its unit, and what zero means.
    #[must_use]
    pub const fn doc(mut self, doc: &'static str) -> Self {
        self.doc = doc;
        self
    }

    /// A value to paste.
    #[must_use]
    pub const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    /// What to do when it is missing or wrong, beyond pasting the example.
    #[must_use]
    pub const fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// The canonical name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// The variables of one crate.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The crate that reads them.
    pub owner: &'static str,
    /// Name prefixes this crate is responsible for (`MAESTRO_CACHE_`): unknown names below them are
    /// reported as typos.
    pub areas: &'static [&'static str],
    /// The variables, in the order of the documentation.
    pub variables: &'static [Variable],
}
