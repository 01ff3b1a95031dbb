//! What can go wrong when a server is brought, provisioned or broken on purpose.

use std::fmt;
use std::io;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure of the dev services. The message says what was attempted, against which server, and
/// what to look at; it never holds a password.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Source>,
}

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A `MAESTRO_TEST_*` or `MAESTRO_DEV_SERVICES` variable is wrong.
    Config,
    /// This machine has no way to bring a server; the message names the command that mends it.
    Missing,
    /// A server did not start or went away; the message quotes the end of its log.
    Unavailable,
    /// A server or a lock did not answer in time.
    Timeout,
    /// A server answered and refused.
    Refused,
    /// The operation is not possible on this server, such as killing one that others share.
    Unsupported,
    /// A file, a process or a socket of this machine.
    Io,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn with(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::new(ErrorKind::Io, context).with(source)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        // The cause is part of the sentence: test output shows the first line only.
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}
