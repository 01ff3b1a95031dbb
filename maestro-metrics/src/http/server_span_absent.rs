//! Without feature `otlp` there is a span for whatever subscriber the service has, and nothing else.

use axum::body::Body;
use axum::http::Request;
use tracing::Span;

use super::figures::Error;
use crate::propagation::TraceContext;

pub(crate) fn make() -> Span {
    tracing::info_span!(target: "maestro_metrics::http", "request")
}

pub(crate) fn began(_: &Span, _: &Request<Body>) -> Option<TraceContext> {
    None
}

pub(crate) fn ended(_: &Span, _: &'static str, _: &str, _: u16, _: Error) {}
