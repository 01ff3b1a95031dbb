//! Publishing an event: what the caller says, what comes back.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maestro_metrics::Context;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use crate::client::Messaging;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind};
use crate::event::{self, Event};
use crate::headers;
use crate::transport::{Outgoing, Stored};

/// The broker has the event: every queue that wanted it has it on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    message_id: Uuid,
    routed: bool,
}

impl Receipt {
    /// The message's identity.
    pub fn message_id(&self) -> Uuid {
        self.message_id
    }

    /// False if nobody listens to the event.
    pub const fn routed(&self) -> bool {
        self.routed
    }
}

/// A publish being prepared; `.await` sends it.
///
/// Dropping the future does not take the message back: once handed to the broker it may be stored.
#[must_use = "nothing is published until it is awaited"]
#[derive(Debug)]
pub struct Publish<'a, E> {
    messaging: &'a Messaging,
    event: &'a E,
    options: Options,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) message_id: Option<Uuid>,
    pub(crate) require_route: bool,
    pub(crate) deadline: Option<Duration>,
}

impl<'a, E: Event> Publish<'a, E> {
    pub(crate) fn new(messaging: &'a Messaging, event: &'a E) -> Self {
        Self {
            messaging,
            event,
            options: Options::default(),
        }
    }

    /// Makes an event nobody listens to an error ([`ErrorKind::Unroutable`]).
    pub fn require_route(mut self) -> Self {
        self.options.require_route = true;
        self
    }

    /// Publishes under this identity: a repeated publish of the same event is then recognised by
    /// consumers that use the inbox. A new UUID v7 otherwise.
    pub fn message_id(mut self, id: Uuid) -> Self {
        self.options.message_id = Some(id);
        self
    }

    /// Longest time to wait for the broker; `MAESTRO_MESSAGING_CONFIRM_TIMEOUT` otherwise.
    pub fn deadline(mut self, within: Duration) -> Self {
        self.options.deadline = Some(within);
        self
    }
}

impl<'a, E: Event> IntoFuture for Publish<'a, E> {
    type Output = Result<Receipt, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Receipt, Error>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(publish(self.messaging, self.event, self.options))
    }
}

async fn publish<E: Event>(
    messaging: &Messaging,
    event: &E,
    options: Options,
) -> Result<Receipt, Error> {
    let inner = messaging.inner();
    let span = span(&inner.exchange, E::TYPE);
    let started = Instant::now();
    let deadline = started + options.deadline.unwrap_or(inner.config.confirm_timeout);
    let result = async {
        let (envelope, outgoing) = prepare(inner.service(), event, options.message_id)?;
        tracing::Span::current().record(
            "messaging.message.id",
            tracing::field::display(envelope.message_id),
        );
        let stored = inner
            .broker
            .send(Arc::new(outgoing), deadline)
            .await?
            .await?;
        receipt::<E>(
            messaging,
            envelope.message_id,
            stored,
            options.require_route,
        )
    }
    .instrument(span.clone())
    .await;
    if result.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    let metrics = &inner.metrics;
    metrics.publish_ended(started.elapsed(), result.as_ref().err());
    result
}

/// Publishes many at once: all are in flight together, within the window, under one span.
pub(crate) async fn publish_batch<'e, E: Event>(
    messaging: &Messaging,
    events: impl Iterator<Item = &'e E> + Send,
) -> Vec<Result<Receipt, Error>> {
    let span = span(&messaging.inner().exchange, E::TYPE);
    let receipts = publish_all(messaging, events)
        .instrument(span.clone())
        .await;
    span.record("messaging.batch.message_count", receipts.len());
    if receipts.iter().any(Result::is_err) {
        span.record("otel.status_code", "ERROR");
    }
    receipts
}

async fn publish_all<'e, E: Event>(
    messaging: &Messaging,
    events: impl Iterator<Item = &'e E> + Send,
) -> Vec<Result<Receipt, Error>> {
    let inner = messaging.inner();
    let deadline = Instant::now() + inner.config.confirm_timeout;
    let mut pending = Vec::with_capacity(events.size_hint().0);
    for event in events {
        let started = Instant::now();
        let sent = match prepare(inner.service(), event, None) {
            Ok((envelope, outgoing)) => inner
                .broker
                .send(Arc::new(outgoing), deadline)
                .await
                .map(|answer| (envelope.message_id, answer)),
            Err(error) => Err(error),
        };
        pending.push((started, sent));
    }
    let mut receipts = Vec::with_capacity(pending.len());
    for (started, sent) in pending {
        let result = match sent {
            Ok((id, answer)) => match answer.await {
                Ok(stored) => receipt::<E>(messaging, id, stored, false),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let metrics = &inner.metrics;
        metrics.publish_ended(started.elapsed(), result.as_ref().err());
        receipts.push(result);
    }
    receipts
}

/// The span of a publish, in the context of the work in hand.
pub(crate) fn span(exchange: &str, event_type: &str) -> tracing::Span {
    tracing::info_span!(
        "publish",
        otel.name = event_type,
        otel.kind = "producer",
        otel.status_code = tracing::field::Empty,
        messaging.system = "rabbitmq",
        messaging.operation.name = "publish",
        messaging.operation.r#type = "send",
        messaging.destination.name = exchange,
        messaging.rabbitmq.destination.routing_key = event_type,
        messaging.message.id = tracing::field::Empty,
        messaging.batch.message_count = tracing::field::Empty,
    )
}

/// Encodes an event in the context of the work in hand.
pub(crate) fn prepare<E: Event>(
    service: &maestro_config::ServiceName,
    event: &E,
    message_id: Option<Uuid>,
) -> Result<(Envelope, Outgoing), Error> {
    let event_type = event::type_of::<E>();
    let mut envelope = Envelope::new(event_type, service.as_str());
    if let Some(id) = message_id {
        envelope.message_id = id;
    }
    envelope.key = event.key().map(std::borrow::Cow::into_owned);
    envelope.enter(&Context::current());
    let body = serde_json::to_vec(event).map_err(|error| {
        Error::new(ErrorKind::Codec, format!("encoding `{event_type}` as JSON")).with_source(error)
    })?;
    let outgoing = outgoing(
        service.events_exchange().as_str(),
        E::TYPE,
        &envelope,
        body.into(),
    )?;
    Ok((envelope, outgoing))
}

pub(crate) fn outgoing(
    exchange: &str,
    routing_key: &str,
    envelope: &Envelope,
    body: Bytes,
) -> Result<Outgoing, Error> {
    if body.len() > MAX_BODY_BYTES {
        return Err(Error::new(
            ErrorKind::Codec,
            format!(
                "encoding `{}`: the body is {} bytes long, the limit is {MAX_BODY_BYTES}; publish a reference to the data instead",
                envelope.event_type,
                body.len()
            ),
        ));
    }
    let properties = envelope.encode()?;
    if let Some(table) = properties.headers()
        && headers::size(table) > headers::MAX_HEADER_BYTES
    {
        return Err(Error::new(
            ErrorKind::Codec,
            format!(
                "encoding `{}`: its headers exceed {} bytes",
                envelope.event_type,
                headers::MAX_HEADER_BYTES
            ),
        ));
    }
    Ok(Outgoing {
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        properties,
        body,
    })
}

fn receipt<E: Event>(
    messaging: &Messaging,
    message_id: Uuid,
    stored: Stored,
    require_route: bool,
) -> Result<Receipt, Error> {
    if !stored.routed {
        messaging
            .inner()
            .metrics
            .unrouted
            .with([E::TYPE])
            .increment();
        if require_route {
            return Err(Error::new(
                ErrorKind::Unroutable,
                format!(
                    "publishing `{}`: no queue is bound for it; is its consumer deployed?",
                    E::TYPE
                ),
            ));
        }
    }
    Ok(Receipt {
        message_id,
        routed: stored.routed,
    })
}

/// RabbitMQ 4 refuses larger messages by default, and closes the channel for all others in flight.
pub(crate) const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
