//! One opaque error; its kind says what the caller can do.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use maestro_metrics::Outage;

/// What went wrong, named after what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Built or configured wrongly: mend the code or the environment.
    Config,
    /// An id, a tag or a value is larger than its limit: send less.
    TooLarge,
    /// A value could not be encoded for the server: mend its type.
    Codec,
    /// The caller's own loader failed; [`Error::load_error`] is its error.
    Load,
    /// No answer within the deadline: try again later.
    Timeout,
    /// Redis cannot be reached, or the breaker is open: try again later.
    Unavailable,
    /// Too many loads are running already: try again later.
    Overloaded,
    /// A lock is held, or a lease was lost.
    Conflict,
    /// The server refuses what the service's user asks for (`NOPERM`): provision the user anew.
    Denied,
    /// The server refuses user or password (`WRONGPASS`, `NOAUTH`): check the secret.
    Credentials,
    /// The server is out of memory (`OOM`): raise `maxmemory` or set an eviction policy.
    OutOfMemory,
    /// The server is reading its data from disk (`LOADING`): it will be back.
    Loading,
    /// The server is a replica (`READONLY`): a failover is running, or the URL names a replica.
    ReadOnly,
    /// Something else holds this key (`WRONGTYPE`).
    WrongType,
    /// Any other refusal of the server.
    Server,
}

impl ErrorKind {
    /// The kind as a word for labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::TooLarge => "too_large",
            Self::Codec => "codec",
            Self::Load => "load",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::Credentials => "credentials",
            Self::OutOfMemory => "out_of_memory",
            Self::Loading => "loading",
            Self::ReadOnly => "read_only",
            Self::WrongType => "wrong_type",
            Self::Server => "server",
        }
    }

    /// True when the server did not do its part, and may do it later.
    pub(crate) const fn is_outage(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::Unavailable | Self::Loading | Self::ReadOnly
        )
    }
}

/// An operation of the cache failed.
///
/// Cheap to clone: callers that waited for the same load get the same error.
///
/// ```
/// use maestro_cache::{Error, ErrorKind};
///
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::Conflict => 409, // somebody else holds the lock
///         _ if error.is_transient() => 503,
///         _ => 500,
///     }
/// }
/// # let _ = status;
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    // Shown whole by `source` when Redis was away.
    source: Outage,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            context: context.into(),
            source: Outage::new(),
        }))
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            context: context.into(),
            source: Outage::because(source),
        }))
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True when the same call may succeed later without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        self.0.kind.is_outage() || matches!(self.0.kind, ErrorKind::Overloaded)
    }

    /// The error of the caller's own loader, if that is what failed.
    ///
    /// ```
    /// # fn show(error: &maestro_cache::Error) {
    /// if let Some(error) = error.load_error::<std::io::Error>() {
    ///     eprintln!("the origin said {error}");
    /// }
    /// # }
    /// ```
    pub fn load_error<E: StdError + 'static>(&self) -> Option<&E> {
        if self.0.kind != ErrorKind::Load {
            return None;
        }
        self.cause()
    }

    /// What it was caused by, if that is of this type.
    pub(crate) fn cause<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.source.cause()?.downcast_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source.cause())
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if self.0.kind.is_outage() {
            return Some(&self.0.source);
        }
        self.0.source.source()
    }
}
