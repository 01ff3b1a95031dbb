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
        // The cause is part of the sentence: test output shows the first line only.
        match std::error::Error::source(self) {
            None => f.write_str(&self.context),
            Some(source) => write!(f, "{}: {}", self.context, sentence(source)),
        }
    }
}

/// An error with what lies beneath it: drivers keep the reason (`connection refused`) one or two causes
/// down. What a message quotes already is not said twice.
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut beneath = error.source();
    while let Some(cause) = beneath {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        beneath = cause.source();
    }
    said
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_was_beneath_the_first_cause_and_says_nothing_twice() {
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
        let connecting = Error::io("connecting to a server", refused);
        // A driver's error, which keeps its reason to itself.
        let driver = Opaque(connecting);
        let error = Error::new(ErrorKind::Unavailable, "the server is not usable").with(driver);
        assert_eq!(
            error.to_string(),
            "the server is not usable: client error: connecting to a server: connection refused"
        );
    }

    #[derive(Debug)]
    struct Opaque(Error);

    impl fmt::Display for Opaque {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("client error")
        }
    }

    impl std::error::Error for Opaque {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
}
