//! What a service writes: handlers, what they get, and how they fail.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::envelope::Envelope;
use crate::error::{BoxError, ErrorKind};
use crate::event::Event;

/// What a handler knows about the message beside the event itself.
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
    /// queue into the dead-letter queue. Errors with a refused or broken connection in their chain
    /// are recognised without this.
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

/// Whether the chain of an error holds a connection that was refused, reset, or timed out: then the
/// message is not at fault.
fn is_outage(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        NetworkUnreachable, NotConnected, TimedOut,
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                BrokenPipe
                    | ConnectionAborted
                    | ConnectionRefused
                    | ConnectionReset
                    | HostUnreachable
                    | NetworkUnreachable
                    | NotConnected
                    | TimedOut
            )
        {
            return true;
        }
        if let Some(own) = error.downcast_ref::<crate::Error>()
            && own.kind() == ErrorKind::Unavailable
        {
            return true;
        }
        next = error.source();
    }
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
}
