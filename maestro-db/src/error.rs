//! One error type; its kind says what the caller does next.

use std::borrow::Cow;
use std::fmt;
use std::io;

use maestro_metrics::Outage;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::pool::PoolReport;

type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// How the message of `maestro.tenant()` begins, when a statement ran without a tenant.
pub(crate) const TENANT_REFUSAL: &str = "no tenant is set";

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings or the server's set-up are wrong: mend them, trying again does not help.
    Config,
    /// The server cannot be reached, is starting, shutting down, out of connections or read-only:
    /// try again later.
    Unavailable,
    /// Every connection of the pool was in use for the whole acquire timeout: shed load, find the
    /// holder that the message names, or raise the pool's maximum.
    Exhausted,
    /// A statement, a lock or the server's answer took longer than its limit.
    Timeout,
    /// The transaction collided with another one (40001, 40P01) or met a plan that a migration made
    /// stale: run the whole transaction again, as [`Db::retry`](crate::Db::retry) does.
    Serialization,
    /// A unique, exclusion or foreign key constraint holds against it (HTTP 409).
    Conflict,
    /// A query that must return a row returned none (HTTP 404).
    NotFound,
    /// The server refused the statement, or this crate refused to send it: a bug in the caller.
    Rejected,
    /// A value could not be turned into SQL or back.
    Codec,
    /// A statement would have crossed a tenant's boundary.
    Isolation,
    /// The transaction was rolled back, because a statement in it had failed or was cancelled.
    Aborted,
    /// The connection was lost while a commit was under way: the server may have committed or not.
    Unknown,
    /// Migrations are wrong, have drifted or failed.
    Migration,
}

impl ErrorKind {
    /// True when the same call can succeed later without a change to code or settings.
    ///
    /// [`ErrorKind::Unknown`] is not among them: what a repetition does depends on the statements.
    ///
    /// ```
    /// use maestro_db::ErrorKind;
    ///
    /// assert!(ErrorKind::Timeout.is_transient());
    /// assert!(!ErrorKind::Unknown.is_transient());
    /// ```
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Unavailable | Self::Exhausted | Self::Timeout | Self::Serialization
        )
    }

    /// The word used in metrics and spans as `error_type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unavailable => "unavailable",
            Self::Exhausted => "exhausted",
            Self::Timeout => "timeout",
            Self::Serialization => "serialization",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Rejected => "rejected",
            Self::Codec => "codec",
            Self::Isolation => "isolation",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
            Self::Migration => "migration",
        }
    }
}

/// What went wrong, against what, after how long, and what to look at; never with a secret.
///
/// Queries return [`sqlx::Error`], because sqlx's `Executor` says so; `Error::from` classifies it,
/// and `?` does that by itself in a function that returns `maestro_db::Error`.
///
/// ```
/// use maestro_db::{Error, ErrorKind};
///
/// fn status(error: &Error) -> u16 {
///     match error.kind() {
///         ErrorKind::NotFound => 404,
///         ErrorKind::Conflict => 409, // `error.constraint()` says which one
///         _ if error.is_transient() => 503,
///         _ => 500,
///     }
/// }
///
/// /// For the log: `Display` has all of this in one line already.
/// fn advice(error: &Error) -> Option<String> {
///     if let Some(pool) = error.pool() {
///         return Some(format!("{} of {} connections are in use", pool.active(), pool.max()));
///     }
///     Some(format!("SQLSTATE {}: {}", error.sqlstate()?, error.hint()?))
/// }
///
/// let error = Error::from(sqlx::Error::RowNotFound);
/// assert_eq!((status(&error), advice(&error)), (404, None));
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: Cow<'static, str>,
    // What `source` shows of it depends on the kind, which may be changed later.
    source: Outage,
    pool: Option<PoolReport>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            context: context.into(),
            source: Outage::new(),
            pool: None,
        }))
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Outage::because(source);
        self
    }

    pub(crate) fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    pub(crate) fn with_pool(mut self, report: PoolReport) -> Self {
        self.0.pool = Some(report);
        self
    }

    /// An error of the driver with the sentence that says what was attempted.
    pub(crate) fn during(context: impl Into<Cow<'static, str>>, source: sqlx::Error) -> Self {
        match own(source) {
            Ok(own) => own,
            Err(source) => Self::new(classify(&source), context).with_source(source),
        }
    }

    /// What the caller does next.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True when the same call can succeed later; see [`ErrorKind::is_transient`].
    pub fn is_transient(&self) -> bool {
        self.0.kind.is_transient()
    }

    /// The five characters of SQLSTATE, when the server sent them.
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        match self.0.source.cause()?.downcast_ref::<sqlx::Error>()? {
            sqlx::Error::Database(error) => error.code(),
            _ => None,
        }
    }

    /// What the server advises, as `Check free disk space.` when its disk is full.
    pub fn hint(&self) -> Option<&str> {
        match self.0.source.cause()?.downcast_ref::<sqlx::Error>()? {
            sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>()?.hint(),
            _ => None,
        }
    }

    /// The constraint that was violated, when the kind is [`ErrorKind::Conflict`].
    pub fn constraint(&self) -> Option<&str> {
        match self.0.source.cause()?.downcast_ref::<sqlx::Error>()? {
            sqlx::Error::Database(error) => error.constraint(),
            _ => None,
        }
    }

    /// The state of the pool, when acquiring a connection failed.
    pub fn pool(&self) -> Option<&PoolReport> {
        self.0.pool.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        if let Some(report) = &self.0.pool {
            write!(f, " ({report})")?;
        }
        if let Some(source) = self.0.source.cause() {
            write!(f, ": {source}")?;
            if let Some(code) = self.sqlstate() {
                write!(f, " (SQLSTATE {code})")?;
            }
            if let Some(hint) = self.hint() {
                write!(f, "; hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source.cause())
            .field("pool", &self.0.pool)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.0.kind {
            // Full or away, the statement is not at fault: see `Outage`.
            ErrorKind::Unavailable | ErrorKind::Exhausted => Some(&self.0.source),
            _ => std::error::Error::source(&self.0.source),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::during("the database operation failed", error)
    }
}

/// How an error of ours travels through sqlx's `Executor`: inside `sqlx::Error::Io`, from where
/// `Error::from` takes it out again unchanged.
impl From<Error> for sqlx::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Timeout | ErrorKind::Exhausted => io::ErrorKind::TimedOut,
            ErrorKind::Unavailable => io::ErrorKind::NotConnected,
            ErrorKind::Rejected | ErrorKind::Isolation | ErrorKind::Config => {
                io::ErrorKind::InvalidInput
            }
            _ => io::ErrorKind::Other,
        };
        Self::Io(io::Error::new(kind, error))
    }
}

/// Takes an error of ours back out of the driver's, or gives the driver's back.
fn own(error: sqlx::Error) -> Result<Error, sqlx::Error> {
    match error {
        sqlx::Error::Io(io)
            if io
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) =>
        {
            let kind = io.kind();
            match io
                .into_inner()
                .map(<dyn std::error::Error + Send + Sync>::downcast::<Error>)
            {
                Some(Ok(own)) => Ok(*own),
                Some(Err(other)) => Err(sqlx::Error::Io(io::Error::new(kind, other))),
                None => Err(sqlx::Error::Io(kind.into())),
            }
        }
        other => Err(other),
    }
}

/// The kind of a driver's error.
pub(crate) fn classify(error: &sqlx::Error) -> ErrorKind {
    match error {
        sqlx::Error::Database(error) => classify_database(error.as_ref()),
        sqlx::Error::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(own) => own.kind(),
            None if io.kind() == io::ErrorKind::TimedOut => ErrorKind::Timeout,
            None => ErrorKind::Unavailable,
        },
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => ErrorKind::Config,
        sqlx::Error::RowNotFound => ErrorKind::NotFound,
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. } => ErrorKind::Codec,
        sqlx::Error::Migrate(_) => ErrorKind::Migration,
        // What is left says that the conversation with the server went off the rails.
        sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => ErrorKind::Unavailable,
        _ => ErrorKind::Rejected,
    }
}

fn classify_database(error: &dyn DatabaseError) -> ErrorKind {
    let code = error.code().unwrap_or_default();
    if code == "42501" && error.message().starts_with(TENANT_REFUSAL) {
        return ErrorKind::Isolation;
    }
    if is_stale_plan(error) {
        return ErrorKind::Serialization;
    }
    classify_sqlstate(&code)
}

/// The kind of a SQLSTATE, by class and with the exceptions that matter to a caller.
///
/// Source: appendix A of the PostgreSQL manual.
fn classify_sqlstate(code: &str) -> ErrorKind {
    match code {
        "40001" | "40P01" => ErrorKind::Serialization,
        // unique, foreign key and exclusion violations: something else is in the way
        "23505" | "23503" | "23P01" => ErrorKind::Conflict,
        // statement timeout or cancel request, lock timeout, idle-in-transaction timeout
        "57014" | "55P03" | "25P03" => ErrorKind::Timeout,
        // a primary that became a standby refuses writes until clients follow the new one
        "25006" => ErrorKind::Unavailable,
        "25P02" => ErrorKind::Aborted,
        // raised by `maestro.enter()`
        "MT404" => ErrorKind::NotFound,
        "MT403" => ErrorKind::Isolation,
        _ => match code.get(..2) {
            // connection, resources (53300 connections, 53100 disk), operator intervention, system
            Some("08" | "53" | "57" | "58" | "XX") => ErrorKind::Unavailable,
            // authentication, missing database
            Some("28" | "3D") => ErrorKind::Config,
            _ => ErrorKind::Rejected,
        },
    }
}

/// A statement prepared before a migration changed its result: PostgreSQL refuses it on that
/// connection for good, until the statement is prepared again.
pub(crate) fn is_stale_plan(error: &dyn DatabaseError) -> bool {
    error.code().as_deref() == Some("0A000")
        && error
            .message()
            .contains("cached plan must not change result type")
}

/// True when the server said at the end of this error that the session is over.
pub(crate) fn ends_session(error: &dyn DatabaseError) -> bool {
    use sqlx::postgres::PgSeverity;
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_none_or(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Looks for a collision between transactions anywhere in an error's chain.
pub(crate) fn is_serialization_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = if let Some(own) = error.downcast_ref::<Error>() {
            Some(own.kind())
        } else if let Some(driver) = error.downcast_ref::<sqlx::Error>() {
            Some(classify(driver))
        } else if let Some(database) = error.downcast_ref::<Box<dyn DatabaseError>>() {
            Some(classify_database(database.as_ref()))
        } else {
            error
                .downcast_ref::<PgDatabaseError>()
                .map(|database| classify_database(database))
        };
        if let Some(kind) = kind {
            return kind == ErrorKind::Serialization;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_ours_survives_the_way_through_sqlx_unchanged() {
        let error = Error::new(ErrorKind::Exhausted, "no connection within 5s");
        let driver = sqlx::Error::from(error);
        assert_eq!(classify(&driver), ErrorKind::Exhausted);
        let back = Error::from(driver);
        assert_eq!(back.kind(), ErrorKind::Exhausted);
        assert_eq!(back.to_string(), "no connection within 5s");
    }

    #[test]
    fn a_missing_row_is_not_found_and_a_broken_socket_is_unavailable() {
        assert_eq!(
            Error::from(sqlx::Error::RowNotFound).kind(),
            ErrorKind::NotFound
        );
        let io = sqlx::Error::Io(io::ErrorKind::ConnectionReset.into());
        assert_eq!(Error::from(io).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn sqlstates_map_to_what_the_caller_does() {
        for (code, kind) in [
            ("40001", ErrorKind::Serialization),
            ("40P01", ErrorKind::Serialization),
            ("23505", ErrorKind::Conflict),
            ("23502", ErrorKind::Rejected),
            ("57014", ErrorKind::Timeout),
            ("57P01", ErrorKind::Unavailable),
            ("53300", ErrorKind::Unavailable),
            ("25006", ErrorKind::Unavailable),
            ("28P01", ErrorKind::Config),
            ("42P01", ErrorKind::Rejected),
            ("", ErrorKind::Rejected),
        ] {
            assert_eq!(classify_sqlstate(code), kind, "{code}");
        }
    }

    #[test]
    fn a_collision_is_found_under_the_errors_of_a_service() {
        #[derive(Debug, thiserror::Error)]
        #[error("placing the order failed")]
        struct Outer(#[source] Error);

        let collision = Outer(Error::new(ErrorKind::Serialization, "commit"));
        assert!(is_serialization_failure(&collision));
        let other = Outer(Error::new(ErrorKind::Conflict, "insert"));
        assert!(!is_serialization_failure(&other));
    }

    #[test]
    fn a_server_that_is_away_shows_in_the_chain_and_a_conflict_does_not() {
        for (kind, outage) in [
            (ErrorKind::Unavailable, true),
            (ErrorKind::Exhausted, true),
            (ErrorKind::Conflict, false),
            (ErrorKind::Rejected, false),
        ] {
            let error = Error::new(kind, "insert");
            assert_eq!(Outage::is_in(&error), outage, "{kind:?}");
            let driver = sqlx::Error::from(Error::new(kind, "insert"));
            assert_eq!(Outage::is_in(&driver), outage, "{kind:?} through sqlx");
        }
    }
}
