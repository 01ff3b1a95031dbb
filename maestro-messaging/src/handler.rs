//! What a service writes: handlers, what they get, and how they fail.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maestro_metrics::Outage;
use uuid::Uuid;

use crate::envelope::Envelope;
use crate::error::{BoxError, ErrorKind};
use crate::event::Event;

/// What a handler knows about the message beside the event itself.
///
/// ```
/// # use maestro_messaging::{HandlerError, MessageContext};
/// # #[derive(serde::Deserialize)] struct OrderPlaced { order_id: String }
/// async fn bill(order: OrderPlaced, context: MessageContext) -> Result<(), HandlerError> {
///     println!("{} by message {}, attempt {}", order.order_id, context.message_id(), context.attempt());
///     if context.redelivered() {
///         println!("after a crash or a lost connection: its effects may be there already");
///     }
///     if context.is_last_attempt() {
///         println!("it will be a dead letter if this fails");
///     }
///     let envelope = context.envelope();
///     println!("from {:?} for tenant {:?}", envelope.publisher, envelope.tenant);
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct MessageContext {
    envelope: Arc<Envelope>,
    subscription: Arc<str>,
    redelivered: bool,
    last_attempt: bool,
}

impl MessageContext {
    pub(crate) fn new(
        envelope: Arc<Envelope>,
        subscription: Arc<str>,
        redelivered: bool,
        last_attempt: bool,
    ) -> Self {
        Self {
            envelope,
            subscription,
            redelivered,
            last_attempt,
        }
    }

    /// The message's identity: the same on every retry, redelivery and replay. Give it to the inbox.
    pub fn message_id(&self) -> Uuid {
        self.envelope.message_id
    }

    /// All metadata of the message.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The subscription's name; give it to the inbox.
    pub fn subscription(&self) -> &str {
        &self.subscription
    }

    /// How often handling failed before: 0 on the first delivery.
    pub fn attempt(&self) -> u32 {
        self.envelope.attempt
    }

    /// Whether a failure now sends the message to the dead-letter queue.
    pub fn is_last_attempt(&self) -> bool {
        self.last_attempt
    }

    /// Whether the broker delivered it before: true after a crash or a lost connection, and then
    /// the effects of an earlier run may be there already.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }
}

/// How a handler failed, and so what happens to the message.
///
/// `?` works on any error and means *retry*. It does not implement `std::error::Error` itself;
/// that is what lets it be made from everything that does.
///
/// ```
/// use maestro_messaging::HandlerError;
///
/// fn total(text: &str) -> Result<i64, HandlerError> {
///     let total: i64 = text.parse()?;            // retried, then dead-lettered
///     if total < 0 {
///         return Err(HandlerError::dead_letter("a total cannot be negative"));
///     }
///     Ok(total)
/// }
/// # assert!(total("-1").is_err());
/// ```
pub struct HandlerError {
    pub(crate) reaction: Reaction,
    pub(crate) source: BoxError,
    pub(crate) type_name: &'static str,
}

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Retry on the next rung, then the dead-letter queue.
    Retry,
    /// Retry on the rung that is at least this long.
    RetryAfter(Duration),
    /// The dead-letter queue at once.
    DeadLetter,
    /// Something this handler depends on is not there: retry without counting the attempt, and
    /// slow down.
    Unavailable,
}

impl HandlerError {
    /// Retries not before this delay: on the shortest rung that is at least as long, on the longest
    /// one otherwise. Counts as an attempt.
    pub fn retry_after<E: Into<BoxError>>(delay: Duration, error: E) -> Self {
        Self::new(Reaction::RetryAfter(delay), error)
    }

    /// Retrying cannot help: to the dead-letter queue at once.
    pub fn dead_letter<E: Into<BoxError>>(error: E) -> Self {
        Self::new(Reaction::DeadLetter, error)
    }

    /// Something the handler depends on is not there (a database, another service). The attempt is
    /// not counted, and several in a row slow the whole subscription down instead of draining its
    /// queue into the dead-letter queue. Errors whose chain holds an [`Outage`], a refused or broken
    /// connection, or PostgreSQL's word that it stops, starts or is full, are recognised without
    /// this: all of Maestro's clients, and any that keeps its driver's error as a source.
    pub fn unavailable<E: Into<BoxError>>(error: E) -> Self {
        Self::new(Reaction::Unavailable, error)
    }

    pub(crate) fn undecodable(error: Undecodable) -> Self {
        Self::new(Reaction::DeadLetter, error)
    }

    fn new<E: Into<BoxError>>(reaction: Reaction, error: E) -> Self {
        Self {
            reaction,
            source: error.into(),
            type_name: type_name::<E>(),
        }
    }
}

impl<E: Into<BoxError>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let error = Self::new(Reaction::Retry, error);
        if is_outage(error.source.as_ref()) {
            return Self {
                reaction: Reaction::Unavailable,
                ..error
            };
        }
        error
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("reaction", &self.reaction)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Whether something that the handler depends on was not there: then the message is not at fault.
fn is_outage(error: &(dyn std::error::Error + 'static)) -> bool {
    if Outage::is_in(error) {
        return true;
    }
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<crate::Error>().map(crate::Error::kind);
        if matches!(kind, Some(ErrorKind::Unavailable | ErrorKind::Unconfirmed))
            || is_outage_of_the_database(error)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// A server that stops, starts, is full or became a standby says so in an answer; a pool of sqlx's
/// that got no connection says it in words of its own.
#[cfg(feature = "outbox")]
fn is_outage_of_the_database(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => {
            let code = error.code().unwrap_or_default();
            // Classes of appendix A of the PostgreSQL manual: connection, resources, shutdown and
            // start (57014, a cancelled statement, is the caller's), system; a read-only server.
            ["08", "53", "57P", "58"]
                .iter()
                .any(|class| code.starts_with(class))
                || code == "25006"
        }
        // Elsewhere the end of a file may be the message's own fault; here it is the connection's.
        Some(sqlx::Error::Io(error)) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        Some(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) => {
            true
        }
        _ => false,
    }
}

#[cfg(not(feature = "outbox"))]
fn is_outage_of_the_database(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// A handler with its event type erased.
pub(crate) type ErasedHandler = Arc<dyn Fn(&Bytes, MessageContext) -> HandlerFuture + Send + Sync>;

pub(crate) fn erase<E, F, Fut>(handler: F) -> ErasedHandler
where
    E: Event,
    F: Fn(E, MessageContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Arc::new(
        move |body, context| match serde_json::from_slice::<E>(body) {
            Ok(event) => Box::pin(handler(event, context)),
            Err(error) => Box::pin(std::future::ready(Err(HandlerError::undecodable(
                Undecodable::new(error),
            )))),
        },
    )
}

/// The body is not the JSON that the event's type promises.
#[derive(Debug, thiserror::Error)]
#[error("the body is not a valid event of this type")]
pub(crate) struct Undecodable(#[source] serde_json::Error);

impl Undecodable {
    pub(crate) fn new(error: serde_json::Error) -> Self {
        Self(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_question_mark(error: impl Into<BoxError>) -> HandlerError {
        fn fail<E: Into<BoxError>>(error: E) -> Result<(), HandlerError> {
            Err(error)?
        }
        fail(error).unwrap_err()
    }

    #[test]
    fn any_error_becomes_a_retry() {
        let error = from_question_mark("x".parse::<i32>().unwrap_err());
        assert_eq!(error.reaction, Reaction::Retry);
        assert!(
            error.type_name.contains("ParseIntError"),
            "{}",
            error.type_name
        );
        assert_eq!(from_question_mark("text").reaction, Reaction::Retry);
    }

    #[test]
    fn a_broken_connection_anywhere_in_the_chain_is_an_outage() {
        #[derive(Debug, thiserror::Error)]
        #[error("loading the order")]
        struct Outer(#[source] std::io::Error);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(
            from_question_mark(Outer(refused)).reaction,
            Reaction::Unavailable
        );
        let other = std::io::Error::from(std::io::ErrorKind::InvalidData);
        assert_eq!(from_question_mark(Outer(other)).reaction, Reaction::Retry);
    }

    #[test]
    fn what_other_clients_say_of_their_servers_is_an_outage() {
        let away = from_question_mark(Outage::because("no connection within 5s"));
        assert_eq!(away.reaction, Reaction::Unavailable);
        let broker = crate::Error::new(ErrorKind::Unconfirmed, "publishing");
        assert_eq!(from_question_mark(broker).reaction, Reaction::Unavailable);
        let codec = crate::Error::new(ErrorKind::Codec, "publishing");
        assert_eq!(from_question_mark(codec).reaction, Reaction::Retry);
    }

    #[cfg(feature = "outbox")]
    #[test]
    fn a_pool_without_connections_is_an_outage_and_a_missing_row_is_not() {
        let pool = crate::Error::new(ErrorKind::Database, "reading the inbox")
            .with_source(sqlx::Error::PoolTimedOut);
        assert_eq!(from_question_mark(pool).reaction, Reaction::Unavailable);
        let lost = sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(from_question_mark(lost).reaction, Reaction::Unavailable);
        let missing = from_question_mark(sqlx::Error::RowNotFound);
        assert_eq!(missing.reaction, Reaction::Retry);
    }
}
