//! The wire format: an event's metadata as AMQP properties and headers. Pure; no connection here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use maestro_metrics::Context;
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::headers;

/// Metadata of a message: who said it, about what, as part of what.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// Identity of the message: the same on every retry, redelivery and replay.
    pub message_id: Uuid,
    /// The event's type, `order.placed.v1`.
    pub event_type: String,
    /// The service that published it.
    pub publisher: Option<String>,
    /// The request or process this belongs to.
    pub correlation_id: Option<String>,
    /// The message whose handling caused this one.
    pub causation_id: Option<String>,
    /// The tenant it is about.
    pub tenant: Option<String>,
    /// What it is ordered by.
    pub key: Option<String>,
    /// When it was published, in whole seconds.
    pub published_at: Option<SystemTime>,
    /// How often it failed before: 0 on the first delivery, 1 on the first retry.
    pub attempt: u32,
    /// W3C `traceparent` of the publisher's span.
    pub traceparent: Option<String>,
    /// W3C `tracestate`.
    pub tracestate: Option<String>,
    /// W3C `baggage`.
    pub baggage: Option<String>,
}

impl Envelope {
    pub(crate) fn new(event_type: &str, publisher: &str) -> Self {
        Self {
            message_id: Uuid::now_v7(),
            event_type: event_type.to_owned(),
            publisher: Some(publisher.to_owned()),
            correlation_id: None,
            causation_id: None,
            tenant: None,
            key: None,
            published_at: Some(SystemTime::now()),
            attempt: 0,
            traceparent: None,
            tracestate: None,
            baggage: None,
        }
    }

    /// Takes over what identifies the work in hand: trace, correlation id, tenant, baggage, and the
    /// message being handled as the cause.
    pub(crate) fn enter(&mut self, context: &Context) {
        context.clone().or_new_correlation().inject(|name, value| {
            let value = Some(value.to_owned());
            match name {
                maestro_metrics::TRACEPARENT => self.traceparent = value,
                maestro_metrics::TRACESTATE => self.tracestate = value,
                maestro_metrics::BAGGAGE => self.baggage = value,
                maestro_metrics::CORRELATION_ID => self.correlation_id = value,
                maestro_metrics::TENANT_ID => self.tenant = value,
                _ => {}
            }
        });
        self.causation_id = CAUSE.try_with(Uuid::to_string).ok();
    }

    /// The context in which a handler runs.
    pub(crate) fn context(&self) -> Context {
        Context::extract(|name| match name {
            maestro_metrics::TRACEPARENT => self.traceparent.as_deref(),
            maestro_metrics::TRACESTATE => self.tracestate.as_deref(),
            maestro_metrics::BAGGAGE => self.baggage.as_deref(),
            maestro_metrics::CORRELATION_ID => self.correlation_id.as_deref(),
            maestro_metrics::TENANT_ID => self.tenant.as_deref(),
            _ => None,
        })
        .or_new_correlation()
    }

    /// The properties of a fresh message. Fails when a text exceeds its place on the wire.
    pub(crate) fn encode(&self) -> Result<BasicProperties, Error> {
        let mut table = FieldTable::default();
        for (name, value, limit) in [
            (headers::TRACEPARENT, &self.traceparent, 512),
            (headers::TRACESTATE, &self.tracestate, 8_192),
            (headers::BAGGAGE, &self.baggage, 8_192),
            (headers::CAUSATION_ID, &self.causation_id, 255),
            (headers::TENANT, &self.tenant, 255),
            (headers::KEY, &self.key, 255),
        ] {
            if let Some(value) = value {
                if value.len() > limit {
                    return Err(too_long(&self.event_type, name, value.len(), limit));
                }
                table.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        if self.attempt > 0 {
            headers::set_count(&mut table, headers::ATTEMPT, self.attempt);
        }
        let mut properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(self.message_id.to_string().into())
            .with_type(self.event_type.as_str().into())
            .with_headers(table);
        if let Some(publisher) = &self.publisher {
            properties = properties.with_app_id(publisher.as_str().into());
        }
        if let Some(correlation_id) = &self.correlation_id {
            // A short string on the wire holds 255 bytes; more would tear down the connection.
            let id = ShortString::try_new(correlation_id.as_str()).map_err(|_| {
                too_long(
                    &self.event_type,
                    "correlation_id",
                    correlation_id.len(),
                    255,
                )
            })?;
            properties = properties.with_correlation_id(id);
        }
        if let Some(at) = self.published_at {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            properties = properties.with_timestamp(since.as_secs());
        }
        Ok(properties)
    }

    /// Reads the properties of a message from anybody. Only an identity and a type are required;
    /// whatever else is missing or of a foreign type reads as absent.
    pub(crate) fn decode(properties: &BasicProperties) -> Result<Self, Malformed> {
        let message_id = properties
            .message_id()
            .as_ref()
            .ok_or(Malformed("the property `message_id` is missing"))?;
        let message_id = Uuid::try_parse(message_id.as_str())
            .map_err(|_| Malformed("the property `message_id` is not a UUID"))?;
        let event_type = properties
            .kind()
            .as_ref()
            .filter(|kind| !kind.as_str().is_empty())
            .ok_or(Malformed("the property `type` is missing"))?;
        let table = properties.headers().as_ref();
        let text = |name: &str| table.and_then(|table| headers::text(table, name));
        Ok(Self {
            message_id,
            event_type: event_type.to_string(),
            publisher: properties.app_id().as_ref().map(ToString::to_string),
            correlation_id: properties
                .correlation_id()
                .as_ref()
                .map(ToString::to_string),
            causation_id: text(headers::CAUSATION_ID),
            tenant: text(headers::TENANT),
            key: text(headers::KEY),
            published_at: properties
                .timestamp()
                .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
            attempt: table
                .and_then(|table| headers::count(table, headers::ATTEMPT))
                .unwrap_or_default(),
            traceparent: text(headers::TRACEPARENT),
            tracestate: text(headers::TRACESTATE),
            baggage: text(headers::BAGGAGE),
        })
    }
}

/// The context in the headers of a message, for a span of its own: nothing of it is required.
pub(crate) fn context(properties: &BasicProperties) -> Context {
    let Some(table) = properties.headers() else {
        return Context::new();
    };
    Context::extract(|name| match name {
        maestro_metrics::TENANT_ID => headers::text(table, headers::TENANT),
        maestro_metrics::CORRELATION_ID => properties
            .correlation_id()
            .as_ref()
            .map(ToString::to_string),
        other => headers::text(table, other),
    })
}

/// Why a message cannot be read; it goes to the dead-letter queue at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

tokio::task_local! {
    /// The message being handled by this task.
    pub(crate) static CAUSE: Uuid;
}

pub(crate) const CONTENT_TYPE: &str = "application/json";

/// Delivery mode 2: the broker writes it to disk.
const PERSISTENT: u8 = 2;

fn too_long(event_type: &str, what: &str, length: usize, limit: usize) -> Error {
    Error::new(
        ErrorKind::Codec,
        format!("encoding `{event_type}`: {what} is {length} bytes long, the limit is {limit}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary() -> impl Strategy<Value = Envelope> {
        let text = || proptest::option::of(".{0,40}");
        (
            any::<u128>(),
            "[a-z]{1,8}\\.[a-z]{1,8}\\.v[1-9]",
            (text(), text(), text(), text(), text()),
            (text(), text(), text()),
            proptest::option::of(0_u64..4_000_000_000),
            any::<u32>(),
        )
            .prop_map(|(id, event_type, a, b, seconds, attempt)| Envelope {
                message_id: Uuid::from_u128(id),
                event_type,
                publisher: a.0,
                correlation_id: a.1,
                causation_id: a.2,
                tenant: a.3,
                key: a.4,
                published_at: seconds.map(|s| UNIX_EPOCH + Duration::from_secs(s)),
                attempt,
                traceparent: b.0,
                tracestate: b.1,
                baggage: b.2,
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(envelope in arbitrary()) {
            let properties = envelope.encode().unwrap();
            prop_assert_eq!(Envelope::decode(&properties).unwrap(), envelope);
        }

        #[test]
        fn properties_of_strangers_never_panic(
            id in proptest::option::of(".{0,60}"),
            kind in proptest::option::of(".{0,60}"),
            attempt in any::<i64>(),
            seconds in any::<u64>(),
        ) {
            let mut table = FieldTable::default();
            table.insert(headers::ATTEMPT.into(), AMQPValue::LongLongInt(attempt));
            table.insert(headers::KEY.into(), AMQPValue::FieldTable(FieldTable::default()));
            let mut properties = BasicProperties::default()
                .with_headers(table)
                .with_timestamp(seconds);
            if let Some(id) = id { properties = properties.with_message_id(id.into()); }
            if let Some(kind) = kind { properties = properties.with_type(kind.into()); }
            if let Ok(envelope) = Envelope::decode(&properties) {
                prop_assert_eq!(envelope.key, None);
            }
        }
    }

    #[test]
    fn identity_and_type_are_required_and_nothing_else() {
        let id = Uuid::now_v7();
        let bare = BasicProperties::default();
        assert_eq!(
            Envelope::decode(&bare).unwrap_err().to_string(),
            "the property `message_id` is missing"
        );
        let named = bare.clone().with_message_id("seven".into());
        assert!(Envelope::decode(&named).is_err());
        let typeless = bare.with_message_id(id.to_string().into());
        assert!(Envelope::decode(&typeless).is_err());
        let envelope = Envelope::decode(&typeless.with_type("order.placed.v1".into())).unwrap();
        assert_eq!(envelope.message_id, id);
        assert_eq!(envelope.attempt, 0);
    }

    #[test]
    fn a_text_beyond_its_place_on_the_wire_is_refused_before_it_is_sent() {
        let mut envelope = Envelope::new("order.placed.v1", "orders");
        envelope.correlation_id = Some("c".repeat(256));
        assert_eq!(envelope.encode().unwrap_err().kind(), ErrorKind::Codec);
        envelope.correlation_id = None;
        envelope.key = Some("k".repeat(256));
        assert_eq!(envelope.encode().unwrap_err().kind(), ErrorKind::Codec);
    }
}
