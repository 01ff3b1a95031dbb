//! Fields of `tracing` spans and events, as attributes of what is exported.

use std::borrow::Cow;
use std::fmt;

use tracing::field::{Field, Visit};

use super::redaction::{REDACTED, Redaction, scrub};
use crate::span::{SpanKind, SpanRecord, Value};

/// Longest value of an attribute, in bytes; longer ones are cut.
const LENGTH: usize = 2_048;

/// Writes fields into a span. `otel.name`, `otel.kind`, `otel.status_code` and
/// `otel.status_description` say what they say everywhere in the `tracing` world.
pub(crate) struct SpanFields<'a> {
    pub(crate) record: &'a mut SpanRecord,
    pub(crate) redaction: &'a Redaction,
}

impl SpanFields<'_> {
    fn text(&mut self, field: &Field, text: &str) {
        match field.name() {
            "otel.name" => self.record.name = Cow::Owned(text.to_owned()),
            "otel.kind" => {
                if let Some(kind) = SpanKind::parse(text) {
                    self.record.kind = kind;
                }
            }
            "otel.status_code" => {
                if text.eq_ignore_ascii_case("error") {
                    self.record.failed.get_or_insert(Cow::Borrowed(""));
                } else if text.eq_ignore_ascii_case("ok") {
                    self.record.failed = None;
                }
            }
            "otel.status_description" | "otel.status_message" => {
                self.record.failed = Some(Cow::Owned(clean(text)));
            }
            name => {
                let value = if self.redaction.covers(name) {
                    Value::Text(Cow::Borrowed(REDACTED))
                } else {
                    Value::Text(Cow::Owned(clean(text)))
                };
                self.record.attribute(name, value);
            }
        }
    }

    fn plain(&mut self, field: &Field, value: Value) {
        let value = if self.redaction.covers(field.name()) {
            Value::Text(Cow::Borrowed(REDACTED))
        } else {
            value
        };
        self.record.attribute(field.name(), value);
    }
}

impl Visit for SpanFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, Value::Integer(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.plain(field, Value::Number(value));
    }
}

/// Collects the fields of an event that becomes part of a span.
pub(crate) struct EventFields<'a> {
    pub(crate) message: String,
    pub(crate) attributes: Vec<(Cow<'static, str>, Value)>,
    pub(crate) redaction: &'a Redaction,
}

/// Fields of one event.
const FIELDS: usize = 32;

impl EventFields<'_> {
    fn value(&mut self, field: &Field, value: Value) {
        if self.attributes.len() < FIELDS {
            let value = if self.redaction.covers(field.name()) {
                Value::Text(Cow::Borrowed(REDACTED))
            } else {
                value
            };
            self.attributes.push((Cow::Borrowed(field.name()), value));
        }
    }

    fn text(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            self.message = clean(text);
        } else {
            self.value(field, Value::Text(Cow::Owned(clean(text))));
        }
    }
}

impl Visit for EventFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field, Value::Integer(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field, unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field, Value::Number(value));
    }
}

/// OTLP has no unsigned numbers; what does not fit is written out.
fn unsigned(value: u64) -> Value {
    i64::try_from(value).map_or_else(
        |_| Value::Text(Cow::Owned(value.to_string())),
        Value::Integer,
    )
}

fn clean(text: &str) -> String {
    let text = match text.char_indices().find(|(at, _)| *at >= LENGTH) {
        Some((at, _)) => &text[..at],
        None => text,
    };
    scrub(text).into_owned()
}
