//! What becomes of a message after its handler: pure decisions, no broker, no clock.

use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use maestro_config::{Identity, ServiceName};

use crate::error::BoxError;
use crate::handler::{HandlerError, Reaction};
use crate::headers;

/// A failure, as the dead-letter queue tells it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reaction: Reaction,
    pub(crate) reason: Option<DeadReason>,
    pub(crate) error_type: String,
    pub(crate) message: String,
    pub(crate) chain: String,
}

/// Why a message is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// Every retry failed.
    Exhausted,
    /// The handler said that retrying cannot help, or the body is not the event.
    Poison,
    /// The properties cannot be read.
    Malformed,
    /// The subscription has no handler for this type.
    UnknownType,
    /// The broker gave it up: delivered too often without an answer (it kills its consumer), expired,
    /// or pushed out.
    Broker,
}

impl DeadReason {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Poison => "poison",
            Self::Malformed => "malformed",
            Self::UnknownType => "unknown-type",
            Self::Broker => "broker",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [
            Self::Exhausted,
            Self::Poison,
            Self::Malformed,
            Self::UnknownType,
            Self::Broker,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == text)
    }
}

impl Failure {
    pub(crate) fn of_handler(error: &HandlerError) -> Self {
        Self {
            reaction: error.reaction,
            reason: None,
            error_type: error.type_name.to_owned(),
            message: headers::truncated(&error.source.to_string(), headers::MAX_MESSAGE_BYTES)
                .to_owned(),
            chain: chain(&error.source),
        }
    }

    pub(crate) fn poison(reason: DeadReason, error_type: &str, message: &str) -> Self {
        Self {
            reaction: Reaction::DeadLetter,
            reason: Some(reason),
            error_type: error_type.to_owned(),
            message: message.to_owned(),
            chain: String::new(),
        }
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        Self {
            reaction: Reaction::Retry,
            reason: None,
            error_type: "timeout".to_owned(),
            message: format!(
                "the handler took longer than {limit:?} (MAESTRO_MESSAGING_HANDLER_TIMEOUT)"
            ),
            chain: String::new(),
        }
    }

    pub(crate) fn panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("the handler panicked");
        Self {
            reaction: Reaction::Retry,
            reason: None,
            error_type: "panic".to_owned(),
            message: headers::truncated(text, headers::MAX_MESSAGE_BYTES).to_owned(),
            chain: String::new(),
        }
    }
}

/// Where a failed message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the rung with this delay, as this attempt.
    Rung { delay: Duration, attempt: u32 },
    /// To the dead-letter queue.
    Dead(DeadReason),
    /// Back to the queue as it is: nothing counts, and there is no rung to wait on.
    Back,
}

/// Decides, from the failure, the attempts so far and the rungs there are.
pub(crate) fn route(failure: &Failure, attempt: u32, rungs: &[Duration]) -> Route {
    let index = usize::try_from(attempt).unwrap_or(usize::MAX);
    let next = attempt.saturating_add(1);
    match failure.reaction {
        Reaction::DeadLetter => Route::Dead(failure.reason.unwrap_or(DeadReason::Poison)),
        Reaction::Retry => match rungs.get(index) {
            Some(delay) => Route::Rung {
                delay: *delay,
                attempt: next,
            },
            None => Route::Dead(DeadReason::Exhausted),
        },
        Reaction::RetryAfter(wanted) => {
            if index >= rungs.len() {
                return Route::Dead(DeadReason::Exhausted);
            }
            let enough = rungs.iter().filter(|delay| **delay >= wanted).min();
            match enough.or_else(|| rungs.iter().max()) {
                Some(delay) => Route::Rung {
                    delay: *delay,
                    attempt: next,
                },
                None => Route::Dead(DeadReason::Exhausted),
            }
        }
        Reaction::Unavailable => match rungs.get(index).or(rungs.last()) {
            Some(delay) => Route::Rung {
                delay: *delay,
                attempt,
            },
            None => Route::Back,
        },
    }
}

/// Where a message was first published.
pub(crate) fn origin(
    properties: &BasicProperties,
    exchange: &ShortString,
    routing_key: &ShortString,
) -> (String, String) {
    let noted = properties.headers().as_ref().and_then(|table| {
        Some((
            headers::text(table, headers::EXCHANGE)?,
            headers::text(table, headers::ROUTING_KEY)?,
        ))
    });
    noted.unwrap_or_else(|| (exchange.to_string(), routing_key.to_string()))
}

/// The properties of the copy that waits on a rung.
pub(crate) fn retried(
    properties: &BasicProperties,
    origin: &(String, String),
    attempt: u32,
    now: SystemTime,
) -> BasicProperties {
    let mut map = headers::carried(properties.headers().as_ref(), &[]);
    let first = map.remove(headers::FIRST_FAILED_AT);
    let mut table = headers::fitted(map);
    headers::set_count(&mut table, headers::ATTEMPT, attempt);
    headers::set_text(&mut table, headers::EXCHANGE, &origin.0);
    headers::set_text(&mut table, headers::ROUTING_KEY, &origin.1);
    match first {
        Some(first @ AMQPValue::LongLongInt(_)) => {
            table.insert(headers::FIRST_FAILED_AT.into(), first);
        }
        _ => headers::set_millis(&mut table, headers::FIRST_FAILED_AT, now),
    }
    persistent(properties).with_headers(table)
}

/// The properties of a dead letter: everything one needs to understand it later.
pub(crate) fn dead(
    properties: &BasicProperties,
    origin: &(String, String),
    attempts: u32,
    reason: DeadReason,
    failure: &Failure,
    identity: &Identity,
    now: SystemTime,
) -> BasicProperties {
    let retried = retried(properties, origin, attempts, now);
    let mut table = retried.headers().clone().unwrap_or_default();
    let chain = headers::truncated(&failure.chain, headers::MAX_CHAIN_BYTES);
    for (name, value) in [
        (headers::DEAD_REASON, reason.as_str()),
        (
            headers::ERROR_TYPE,
            headers::truncated(&failure.error_type, headers::MAX_TYPE_BYTES),
        ),
        (
            headers::ERROR_MESSAGE,
            headers::truncated(&failure.message, headers::MAX_MESSAGE_BYTES),
        ),
        (headers::ERROR_CHAIN, chain),
        (headers::FAILED_SERVICE, identity.service().as_str()),
        (headers::FAILED_VERSION, identity.version()),
        (headers::FAILED_INSTANCE, identity.instance()),
    ] {
        headers::set_text(&mut table, name, value);
    }
    headers::set_millis(&mut table, headers::LAST_FAILED_AT, now);
    retried.with_headers(table)
}

/// The properties of a dead letter on its way back: attempts start over, the death is forgotten,
/// the replay is marked.
pub(crate) fn replayed(properties: &BasicProperties, now: SystemTime) -> BasicProperties {
    let replays = properties
        .headers()
        .as_ref()
        .and_then(|table| headers::count(table, headers::REPLAYS))
        .unwrap_or_default();
    let mut forgotten = headers::DEATH.to_vec();
    forgotten.push(headers::ATTEMPT);
    let mut table = headers::fitted(headers::carried(properties.headers().as_ref(), &forgotten));
    headers::set_count(&mut table, headers::REPLAYS, replays.saturating_add(1));
    headers::set_millis(&mut table, headers::REPLAYED_AT, now);
    persistent(properties).with_headers(table)
}

/// A rung's name for a delay that was chosen.
pub(crate) fn rung(service: &ServiceName, delay: Duration) -> String {
    service.retry_rung(delay)
}

/// A copy is always written to disk, and never carries a per-message TTL: the broker expires only
/// at a queue's head, so one such message would hold up the rung. The user id is checked against
/// the connection's user, which is the consumer's now.
fn persistent(properties: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default().with_delivery_mode(2);
    macro_rules! keep {
        ($($read:ident => $write:ident),+) => {$(
            if let Some(value) = properties.$read() {
                copy = copy.$write(value.clone());
            }
        )+};
    }
    keep!(
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id
    );
    copy
}

fn chain(error: &BoxError) -> String {
    let text = crate::amqp::chain(error.as_ref());
    headers::truncated(&text, headers::MAX_CHAIN_BYTES).to_owned()
}

#[cfg(test)]
mod tests;
