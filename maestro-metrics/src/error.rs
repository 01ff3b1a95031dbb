//! What can go wrong, named after what the caller does next.

use std::fmt;

/// Why telemetry could not be started or installed, or why a call over HTTP failed.
///
/// ```
/// use maestro_metrics::{Error, ErrorKind};
///
/// fn advice(error: &Error) -> &'static str {
///     match error.kind() {
///         ErrorKind::Config => "mend the setting",
///         ErrorKind::Timeout => "may have been done all the same",
///         _ if error.is_transient() => "try again later",
///         _ => "trying again does not help",
///     }
/// }
/// # let _ = advice;
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting cannot work: mend it and start again.
    Config,
    /// Something else is installed in its place already: install once.
    Conflict,
    /// The other side does not answer: try again later.
    Unavailable,
    /// It did not answer by the deadline: what was asked may have been done all the same.
    Timeout,
    /// The other side said no: trying again does not help.
    Rejected,
    /// The machine has no room for what is needed (a thread).
    Resource,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// True when the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
