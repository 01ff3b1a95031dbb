//! The server span of a request. Its attributes are written straight into what is exported: as
//! fields of a `tracing` span they would be formatted also when nobody records it.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::http::header::{HOST, HeaderName, USER_AGENT};
use tracing::Span;

use super::figures::{self, Error};
use crate::propagation::TraceContext;
use crate::span::{self, SpanKind, Value};

pub(crate) fn make() -> Span {
    tracing::info_span!(target: "maestro_metrics::http", "request")
}

/// Notes what the head of the request says; returns the span's ids.
pub(crate) fn began(span: &Span, request: &Request<Body>) -> Option<TraceContext> {
    span::edit(span, |data| {
        if data.records_children()
            && let Some(record) = &mut data.record
        {
            record.kind = SpanKind::Server;
            let mut text = |key: &'static str, value: &str| {
                record.attribute(key, Value::Text(Cow::Owned(cut(value).to_owned())));
            };
            text("url.path", request.uri().path());
            for (key, header) in [
                ("server.address", HOST),
                ("user_agent.original", USER_AGENT),
            ] {
                if let Some(value) = header_text(request, &header) {
                    text(key, value);
                }
            }
            let version = figures::protocol(request.version());
            record.attribute(
                "network.protocol.version",
                Value::Text(Cow::Borrowed(version)),
            );
        }
        data.context.trace().cloned()
    })
    .flatten()
}

/// Notes how the request ended.
pub(crate) fn ended(span: &Span, method: &'static str, route: &str, status: u16, error: Error) {
    span::edit(span, |data| {
        let sampled = data.records_children();
        let Some(record) = &mut data.record else {
            return;
        };
        record.kind = SpanKind::Server;
        // Of an unsampled trace, only a root that failed or was slow is exported.
        if !sampled && error == Error::None && record.started.elapsed() < NOTEWORTHY {
            return;
        }
        record.name = Cow::Owned(format!("{method} {route}"));
        record.attribute("http.request.method", Value::Text(Cow::Borrowed(method)));
        record.attribute("http.route", Value::Text(Cow::Owned(route.to_owned())));
        if status != 0 {
            record.attribute(
                "http.response.status_code",
                Value::Integer(i64::from(status)),
            );
        }
        let word = match error {
            Error::None => return,
            Error::Status => Cow::Owned(status.to_string()),
            Error::Panic => Cow::Borrowed("panic"),
            Error::Cancelled => Cow::Borrowed("cancelled"),
        };
        if error != Error::Cancelled && record.failed.is_none() {
            record.failed = Some(Cow::Borrowed(""));
        }
        record.attribute("error.type", Value::Text(word));
    });
}

/// A request that took less is not described unless its trace is sampled: no sensible threshold of
/// slowness is below.
const NOTEWORTHY: Duration = Duration::from_millis(10);

/// Longest path or header that is kept.
const LENGTH: usize = 512;

fn cut(text: &str) -> &str {
    text.char_indices()
        .nth(LENGTH)
        .map_or(text, |(at, _)| &text[..at])
}

fn header_text<'a>(request: &'a Request<Body>, name: &HeaderName) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}
