//! What the driver's errors mean for the caller.

use std::fmt::Write;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::error::{Error, ErrorKind};

/// Our error for the driver's, saying what was attempted and what to look at.
pub(crate) fn of(error: &lapin::Error, attempted: &str) -> Error {
    let lapin::ErrorKind::ProtocolError(amqp) = error.kind() else {
        let hint = match error.kind() {
            lapin::ErrorKind::IOError(_) => ": is the broker up and reachable?",
            lapin::ErrorKind::ChannelsLimitReached => ": the connection has no channel left",
            _ => "",
        };
        return Error::new(ErrorKind::Unavailable, format!("{attempted}{hint}"))
            .with_source(error.clone());
    };
    let text = amqp.get_message();
    let (kind, hint) = match amqp.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => (
            ErrorKind::Denied,
            "check user, password and the user's permissions in this vhost",
        ),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (
            ErrorKind::Denied,
            "check that the vhost exists and that the user may enter it",
        ),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
            (ErrorKind::NotFound, "it does not exist (yet)")
        }
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
            (ErrorKind::Conflict, "it exists with other arguments")
        }
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => (
            ErrorKind::Conflict,
            "another connection holds it exclusively",
        ),
        _ => (ErrorKind::Unavailable, "the broker refused"),
    };
    Error::new(kind, format!("{attempted}: {hint} ({text})")).with_source(error.clone())
}

/// Our error of a consumer that could not be opened. A quorum queue can be there without a process: one
/// that was deleted while the broker was killed, for one. RabbitMQ fails over its consumer and closes
/// the whole connection.
pub(crate) fn of_opening(error: Error, queue: &str) -> Error {
    if !is_internal(&error) {
        return error;
    }
    Error::new(
        ErrorKind::Internal,
        format!(
            "consuming from `{queue}`: the broker failed over it and closed the connection; look at \
             the state of this queue and at the broker's log. A queue that is down for good has to be \
             deleted, and is then declared again"
        ),
    )
    .with_source(error)
}

/// Whether the broker closed the connection because it failed itself.
fn is_internal(error: &Error) -> bool {
    let Some(source) = std::error::Error::source(error) else {
        return false;
    };
    let Some(driver) = source.downcast_ref::<lapin::Error>() else {
        return false;
    };
    let lapin::ErrorKind::ProtocolError(amqp) = driver.kind() else {
        return false;
    };
    matches!(
        amqp.kind(),
        AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR)
    )
}

/// The causes of an error in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        let _ = write!(text, "{cause}");
        next = cause.source();
    }
    text
}
