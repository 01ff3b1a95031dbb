use std::time::Duration;

use maestro_metrics::{Context, LogLevel};
use tracing::{Instrument, info_span};

use crate::service::{Service, sum};

#[tokio::test]
async fn every_line_is_one_json_object_with_the_identity() {
    let service = Service::start(&[]);
    let text = "two\nlines \"quoted\" \u{1b}[31m";
    tracing::info!(
        answer = 42,
        ratio = 0.5,
        nan = f64::NAN,
        text,
        ok = true,
        "{text}"
    );
    tracing::debug!("not at info");
    let lines = service.logs.json();
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    for (field, value) in [
        ("service", "quality-fabric"),
        ("version", "1.2.3"),
        ("environment", "test"),
        ("team", "quality"),
        ("instance", "qf-1"),
        ("level", "INFO"),
        ("message", text),
        ("target", "it::logs"),
    ] {
        assert_eq!(line[field], value, "{field}");
    }
    assert_eq!(line["fields"]["answer"], 42);
    assert_eq!(line["fields"]["nan"], "NaN");
    assert_eq!(line["fields"]["ok"], true);
    assert!(
        (sum(
            &service.registry,
            "maestro_log_lines_total",
            &["level=\"info\""]
        ) - 1.0)
            .abs()
            < 1e-9
    );
}

#[tokio::test]
async fn a_pretty_line_is_one_line_too() {
    let service = Service::start(&[("MAESTRO_LOG_FORMAT", "pretty")]);
    let context = Context::new().or_new_correlation();
    context.sync_scope(|| tracing::warn!(path = "/a b", "first\nsecond"));
    let text = service.logs.text();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("WARN it::logs: first\\nsecond path=\"/a b\" correlation_id="),
        "{text}"
    );
}

#[tokio::test]
async fn the_level_changes_while_the_service_runs() {
    let service = Service::start(&[("MAESTRO_LOG_LEVEL", "warn")]);
    let say = || {
        tracing::info!("info");
        tracing::debug!("debug");
    };
    say();
    assert_eq!(service.logs.text(), "");
    let control = service.telemetry.log_control();
    control.set(&LogLevel::parse("debug").unwrap());
    say();
    assert_eq!(service.logs.json().len(), 2);
    control.set(&LogLevel::parse("off").unwrap());
    say();
    assert_eq!(service.logs.json().len(), 2);
}

#[tokio::test]
async fn a_line_has_the_ids_of_the_innermost_of_span_and_scope() {
    let service = Service::start(&[]);
    let outer = Context::new().or_new_correlation();
    let inner = Context::new().or_new_correlation();
    let work = async {
        tracing::info!("in the span");
        inner
            .scope(async { tracing::info!("in the scope inside the span") })
            .await;
        tracing::info!("in the span again");
    };
    let span = outer.span(|| info_span!("work"));
    work.instrument(span).await;
    tracing::info!("outside");
    let ids: Vec<_> = service
        .logs
        .json()
        .iter()
        .map(|line| line["correlation_id"].clone())
        .collect();
    let (outer, inner) = (outer.correlation().unwrap(), inner.correlation().unwrap());
    assert_eq!(ids[..3], [outer.as_str(), inner.as_str(), outer.as_str()]);
    assert!(ids[3].is_null());
}

#[tokio::test]
async fn two_services_in_one_process_log_apart() {
    let service = Service::start(&[]);
    let other = Service::start(&[("MAESTRO_LOG_LEVEL", "error")]);
    tracing::dispatcher::with_default(service.telemetry.dispatch(), || tracing::info!("mine"));
    tracing::info!("not logged by the other");
    assert_eq!(service.logs.json().len(), 1);
    assert_eq!(other.logs.text(), "");
    other.shutdown(Duration::from_secs(1)).await;
}

/// A value that logs while it is logged.
struct Chatty;

impl std::fmt::Debug for Chatty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        tracing::info!("from inside");
        f.write_str("chatty")
    }
}

#[tokio::test]
async fn a_field_that_logs_itself_harms_no_line() {
    let service = Service::start(&[]);
    tracing::info!(value = ?Chatty, "outside");
    let lines = service.logs.json();
    let outside = lines
        .iter()
        .find(|line| line["message"] == "outside")
        .unwrap();
    assert_eq!(outside["fields"]["value"], "chatty");
}
