//! Why a service did not start, or did not stop clean.

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;

use maestro_config::ConfigError;

use crate::drain::DrainReport;

/// What the operator has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The environment is wrong; the message lists every problem with its fix.
    Config,
    /// The listener could not be opened.
    Listen,
    /// A client or the telemetry could not be set up.
    Start,
    /// The database's migrations cannot be applied, now or later.
    Migration,
    /// The service stopped, but left something behind; the message says what.
    Drain,
}

/// The service could not start or did not stop clean.
///
/// `Debug` prints the message and its causes rather than fields, because that is what
/// `fn main() -> Result<(), maestro::Error>` shows.
///
/// ```
/// use maestro::{ErrorKind, Service};
/// use maestro::config::Environment;
///
/// # #[tokio::main]
/// # async fn main() {
/// let wrong = Environment::from_pairs([("MAESTRO_ENVIRONMENT", "prod")]);
/// let error = Service::builder().environment(wrong).start().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// // Every problem at once, each with how to mend it.
/// assert!(error.to_string().contains("MAESTRO_SERVICE_NAME"));
/// # }
/// ```
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// What to look at.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(crate) fn listening(address: SocketAddr, error: std::io::Error) -> Self {
        let message = format!(
            "cannot listen on {address}: is the port taken, or the address not of this machine?"
        );
        Self::new(ErrorKind::Listen, message).caused_by(error)
    }

    pub(crate) fn unclean(report: &DrainReport) -> Self {
        Self::new(
            ErrorKind::Drain,
            format!("the service stopped, but not clean: {report}"),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, "\n  caused by: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(feature = "db")]
impl From<maestro_db::Error> for Error {
    fn from(error: maestro_db::Error) -> Self {
        Self::new(
            ErrorKind::Start,
            "the service's use of PostgreSQL cannot be set up",
        )
        .caused_by(error)
    }
}

#[cfg(feature = "cache")]
impl From<maestro_cache::Error> for Error {
    fn from(error: maestro_cache::Error) -> Self {
        Self::new(
            ErrorKind::Start,
            "the service's use of Redis cannot be set up",
        )
        .caused_by(error)
    }
}

#[cfg(feature = "messaging")]
impl From<maestro_messaging::Error> for Error {
    fn from(error: maestro_messaging::Error) -> Self {
        Self::new(
            ErrorKind::Start,
            "the service's use of RabbitMQ cannot be set up",
        )
        .caused_by(error)
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        // The report is the message: as a cause it would be printed twice or not at all.
        Self::new(ErrorKind::Config, error.to_string())
    }
}
