//! Variables as data: what a crate reads, so that parsing, documentation, the JSON schema, typo
//! detection and the doctor all speak from one table.

use crate::kind::Kind;

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
    pub(crate) bounds: Option<(&'static str, &'static str)>,
    pub(crate) zero: &'static str,
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
            bounds: None,
            zero: "",
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

    /// Smallest and largest value accepted, both included, of a duration or a size, written as in
    /// the environment. The reason for a bound belongs into the variable's documentation.
    ///
    /// ```
    /// # use maestro_config::{Kind, Variable};
    /// const TTL: Variable = Variable::new("MAESTRO_CACHE_DEFAULT_TTL", Kind::Duration)
    ///     .default("5m")
    ///     .bounds("1ms", "720h");
    /// ```
    #[must_use]
    pub const fn bounds(mut self, min: &'static str, max: &'static str) -> Self {
        self.bounds = Some((min, max));
        self
    }

    /// What `0` means (`no limit`, `off`); makes zero acceptable below the smaller bound.
    #[must_use]
    pub const fn zero(mut self, meaning: &'static str) -> Self {
        self.zero = meaning;
        self
    }

    /// The canonical name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// True when its value must never be shown.
    #[must_use]
    pub const fn is_secret(&self) -> bool {
        self.secret
    }

    /// What a value must be: the kind's sentence, the bounds and what zero means.
    pub(crate) fn expectation(&self) -> String {
        let mut text = self.kind.expectation();
        if let Some((min, max)) = self.bounds {
            text = format!("{text}, from {min} to {max}");
        }
        if !self.zero.is_empty() {
            text = format!("{text}; `0` means {}", self.zero);
        }
        text
    }

    /// The example, else the default, else one of the kind.
    pub(crate) fn example_text(&self) -> &'static str {
        [self.example, self.default.unwrap_or_default()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or(self.kind.example())
    }

    /// The line to paste, followed by the variable's hint.
    pub(crate) fn fix(&self, value: Option<&str>) -> String {
        let line = format!("{}={}", self.name, value.unwrap_or(self.example_text()));
        if self.hint.is_empty() {
            line
        } else {
            format!("{line}  ({})", self.hint)
        }
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
