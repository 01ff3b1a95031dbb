//! One opaque error, its kinds named after what the caller does next.

use std::error::Error as StdError;
use std::fmt;

/// Boxed error of any type; what handlers and codecs bring along.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What went wrong, seen from the caller: each kind asks for a different reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Settings or names are wrong; retrying does not help.
    Config,
    /// The event cannot be encoded, or a limit of the wire format was exceeded; mend the event.
    Codec,
    /// The broker was not reached in time and the message was *not* handed to it; retry later.
    Unavailable,
    /// The message was handed to the broker, but its answer did not come; it may be stored.
    /// Retry with the same message id, so that consumers recognise the copy.
    Unconfirmed,
    /// At least one bound queue refused the message (full); others may have it. Slow down.
    Rejected,
    /// Nobody listens to the event, and the publish asked for a listener.
    Unroutable,
    /// The user may not do this on the broker; mend the permissions.
    Denied,
    /// A queue, an exchange or a message does not exist.
    NotFound,
    /// A queue exists with other arguments than the ones declared; migrate it.
    Conflict,
    /// An operation took longer than its deadline.
    Timeout,
    /// The client was closed.
    Closed,
    /// The database refused an outbox or inbox statement.
    Database,
    /// The broker itself failed over the request; look at its log, and at the queue's state.
    Internal,
}

impl ErrorKind {
    /// The word used in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Codec => "codec",
            Self::Unavailable => "unavailable",
            Self::Unconfirmed => "unconfirmed",
            Self::Rejected => "rejected",
            Self::Unroutable => "unroutable",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Database => "database",
            Self::Internal => "internal",
        }
    }
}

/// A failed operation: what was attempted, against what, and what to look at.
///
/// The message never holds a password or a message body; `source()` keeps the cause.
///
/// ```no_run
/// # use maestro_messaging::{Error, Event, Messaging};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
/// # async fn example(messaging: &Messaging, order: &OrderPlaced) -> Result<(), Error> {
/// let id = uuid::Uuid::now_v7();
/// match messaging.publish(order).message_id(id).await {
///     Ok(_) => {}
///     // Under the same id: if it is stored already, the inbox of its consumers knows it.
///     Err(error) if error.is_transient() => {
///         tracing::warn!(may_be_stored = error.may_be_stored(), %error, "published once more");
///         messaging.publish(order).message_id(id).await?;
///     }
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<BoxError>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// True if the same call can succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unavailable
                | ErrorKind::Unconfirmed
                | ErrorKind::Rejected
                | ErrorKind::Timeout
                | ErrorKind::Database
        )
    }

    /// The database's own error, where that is the cause ([`ErrorKind::Database`]); else itself.
    ///
    /// ```no_run
    /// # use maestro_messaging::{Error, Event, outbox::Outbox};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
    /// # async fn example(outbox: Outbox, connection: &mut sqlx::PgConnection, order: OrderPlaced) -> Result<(), Error> {
    /// let Err(error) = outbox.add(connection, &order).await else { return Ok(()) };
    /// match error.into_database_error() {
    ///     Ok(sqlx::Error::Database(refusal)) => println!("PostgreSQL: {refusal}, {:?}", refusal.code()),
    ///     Ok(other) => println!("the connection: {other}"),
    ///     Err(error) => return Err(error), // the event cannot be encoded
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "outbox")]
    pub fn into_database_error(mut self) -> Result<sqlx::Error, Self> {
        match self
            .source
            .take()
            .map(<dyn StdError + Send + Sync>::downcast::<sqlx::Error>)
        {
            Some(Ok(error)) => Ok(*error),
            Some(Err(source)) => Err(Self {
                source: Some(source),
                ..self
            }),
            None => Err(self),
        }
    }

    /// True if the broker may have stored the message although the call failed.
    pub fn may_be_stored(&self) -> bool {
        matches!(self.kind, ErrorKind::Unconfirmed | ErrorKind::Rejected)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("context", &self.context)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| {
            let source: &(dyn StdError + 'static) = source.as_ref();
            source
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_cause_and_says_whether_to_retry() {
        let error = Error::new(ErrorKind::Unconfirmed, "publishing to `a.events`")
            .with_source(std::io::Error::other("reset"));
        assert_eq!(error.to_string(), "publishing to `a.events`");
        assert_eq!(
            error.source().map(ToString::to_string),
            Some("reset".into())
        );
        assert!(error.is_transient() && error.may_be_stored());
        assert!(!Error::new(ErrorKind::Codec, "").is_transient());
    }
}
