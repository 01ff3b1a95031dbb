//! `ExportTraceServiceRequest` and what collectors answer; the numbers are those of the OTLP
//! protocol, version 1.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use maestro_config::Identity;

use crate::protobuf::{self, Field, member};
use crate::span::{SpanEvent, SpanRecord, Value};

/// Who sends the spans, encoded once.
#[derive(Clone, Debug)]
pub(crate) struct Resource(Vec<u8>);

impl Resource {
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut encoded = Vec::new();
        protobuf::message(&mut encoded, 1, |resource| {
            for (key, value) in [
                ("service.name", identity.service().as_str()),
                ("service.version", identity.version()),
                ("service.instance.id", identity.instance()),
                (
                    "deployment.environment.name",
                    identity.deployment().as_str(),
                ),
                ("maestro.team", identity.team()),
                ("telemetry.sdk.name", "maestro"),
                ("telemetry.sdk.language", "rust"),
                ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
            ] {
                text_attribute(resource, 1, key, value);
            }
        });
        Self(encoded)
    }
}

/// Writes a request into `buffer`, which is cleared first.
pub(crate) fn encode(resource: &Resource, spans: &[SpanRecord], buffer: &mut Vec<u8>) {
    buffer.clear();
    protobuf::message(buffer, 1, |resource_spans| {
        resource_spans.extend_from_slice(&resource.0);
        protobuf::message(resource_spans, 2, |scope_spans| {
            protobuf::message(scope_spans, 1, |scope| {
                protobuf::bytes(scope, 1, b"maestro-metrics");
                protobuf::bytes(scope, 2, env!("CARGO_PKG_VERSION").as_bytes());
            });
            for record in spans {
                protobuf::message(scope_spans, 2, |message| span(message, record));
            }
        });
    });
}

fn span(message: &mut Vec<u8>, record: &SpanRecord) {
    let began = nanoseconds(record.began);
    protobuf::bytes(message, 1, &record.trace.trace_id().to_bytes());
    protobuf::bytes(message, 2, &record.trace.span_id().to_bytes());
    protobuf::bytes(
        message,
        3,
        record.trace.tracestate().unwrap_or_default().as_bytes(),
    );
    if let Some(parent) = record.parent {
        protobuf::bytes(message, 4, &parent.to_bytes());
    }
    protobuf::bytes(message, 5, record.name.as_bytes());
    protobuf::integer(message, 6, record.kind as u64);
    protobuf::fixed64(message, 7, began);
    protobuf::fixed64(message, 8, began.saturating_add(record.nanoseconds));
    attributes(message, 9, &record.attributes);
    if let Some(id) = &record.correlation {
        text_attribute(message, 9, "correlation.id", id);
    }
    if let Some(tenant) = &record.tenant {
        text_attribute(message, 9, "tenant.id", tenant);
    }
    protobuf::integer(message, 10, u64::from(record.dropped_attributes));
    for happened in &record.events {
        protobuf::message(message, 11, |message| event(message, happened));
    }
    protobuf::integer(message, 12, u64::from(record.dropped_events));
    for link in &record.links {
        protobuf::message(message, 13, |message| {
            protobuf::bytes(message, 1, &link.trace_id().to_bytes());
            protobuf::bytes(message, 2, &link.span_id().to_bytes());
        });
    }
    if let Some(description) = &record.failed {
        protobuf::message(message, 15, |status| {
            protobuf::bytes(status, 2, description.as_bytes());
            protobuf::integer(status, 3, STATUS_ERROR);
        });
    }
    protobuf::fixed32(message, 16, u32::from(record.trace.sampled()));
}

const STATUS_ERROR: u64 = 2;

fn event(message: &mut Vec<u8>, event: &SpanEvent) {
    protobuf::fixed64(message, 1, nanoseconds(event.at));
    protobuf::bytes(message, 2, event.name.as_bytes());
    attributes(message, 3, &event.attributes);
}

fn attributes(message: &mut Vec<u8>, field: u32, list: &[(Cow<'static, str>, Value)]) {
    for (key, value) in list {
        match value {
            Value::Text(text) => text_attribute(message, field, key, text),
            other => protobuf::message(message, field, |pair| {
                protobuf::bytes(pair, 1, key.as_bytes());
                protobuf::message(pair, 2, |any| match other {
                    Value::Bool(value) => member::integer(any, 2, u64::from(*value)),
                    // Negative numbers are written as their two's complement.
                    Value::Integer(value) => member::integer(any, 3, value.cast_unsigned()),
                    Value::Number(value) => member::double(any, 4, *value),
                    Value::Text(text) => member::bytes(any, 1, text.as_bytes()),
                });
            }),
        }
    }
}

fn text_attribute(message: &mut Vec<u8>, field: u32, key: &str, value: &str) {
    protobuf::message(message, field, |pair| {
        protobuf::bytes(pair, 1, key.as_bytes());
        protobuf::message(pair, 2, |any| member::bytes(any, 1, value.as_bytes()));
    });
}

fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

/// Spans a collector did not take although it answered with success, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PartialSuccess {
    pub(crate) rejected: u64,
    pub(crate) message: String,
}

/// Reads an `ExportTraceServiceResponse`.
pub(crate) fn decode_response(bytes: &[u8]) -> PartialSuccess {
    let mut partial = PartialSuccess::default();
    for (field, value) in protobuf::fields(bytes) {
        let (1, Field::Bytes(inner)) = (field, value) else {
            continue;
        };
        for (field, value) in protobuf::fields(inner) {
            match (field, value) {
                (1, Field::Integer(rejected)) => partial.rejected = rejected,
                (2, Field::Bytes(text)) => {
                    partial.message = String::from_utf8_lossy(text).into_owned();
                }
                _ => {}
            }
        }
    }
    partial
}

#[cfg(test)]
pub(super) mod tests;
