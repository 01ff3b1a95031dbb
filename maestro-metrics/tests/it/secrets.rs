//! A canary in every place a secret can come from appears nowhere.

use std::time::Duration;

use maestro_config::{Environment, Secret};
use maestro_metrics::TelemetryConfig;
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector};
use crate::service::{ClosedPort, Service};

const CANARY: &str = "canary-7f3a";

#[tokio::test]
async fn secrets_reach_neither_logs_nor_metrics_nor_traces() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = format!("http://user:{CANARY}@{}", collector.address);
    let headers = format!("x-key={CANARY}");
    for format in ["json", "pretty"] {
        let service = Service::start(&[
            ("MAESTRO_TRACING_ENDPOINT", url.as_str()),
            ("MAESTRO_TRACING_HEADERS", headers.as_str()),
            ("MAESTRO_LOG_FORMAT", format),
            ("MAESTRO_LOG_LEVEL", "trace"),
        ]);
        let secret = Secret::new(CANARY.to_owned());
        let dsn = format!("postgresql://orders:{CANARY}@db:5432/orders");
        let error = std::io::Error::other(format!("connecting to {dsn} failed"));
        let span = info_span!(
            "work",
            password = CANARY,
            api_key = ?CANARY,
            db.url = %dsn,
            secret = ?secret,
            later = tracing::field::Empty,
            token = tracing::field::Empty,
        );
        span.record("token", CANARY);
        span.record("later", tracing::field::display(&error));
        async {
            tracing::error!(
                authorization = CANARY,
                session_token = 17,
                error = &error as &dyn std::error::Error,
                "cannot reach {dsn}"
            );
            tracing::info!(refresh_token = ?Some(CANARY), config = ?service.telemetry, "state");
        }
        .instrument(span)
        .await;
        let (logs, registry) = (service.logs.clone(), service.registry.clone());
        let report = service.shutdown(Duration::from_mins(1)).await;
        assert!(report.is_clean(), "{report}");
        let logs = logs.text();
        assert!(
            logs.contains("cannot reach postgresql://[redacted]@db:5432/orders"),
            "{logs}"
        );
        assert!(!logs.contains(CANARY), "{logs}");
        assert!(!registry.text().contains(CANARY));
        assert!(!format!("{report} {report:?}").contains(CANARY));
    }
    assert_eq!(
        collector.headers()[0]["x-key"],
        CANARY,
        "the collector itself gets its key"
    );
    for bytes in collector.raw() {
        let found = bytes
            .windows(CANARY.len())
            .any(|window| window == CANARY.as_bytes());
        assert!(!found, "{}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn a_collector_that_cannot_be_reached_is_named_without_its_password() {
    let closed = ClosedPort::new();
    let address = closed.address;
    let url = format!("http://user:{CANARY}@{address}");
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    async {}.instrument(info_span!("work")).await;
    let logs = service.logs.clone();
    let report = service.shutdown(Duration::from_mins(1)).await;
    let said = format!("{report} {report:?} {}", logs.text());
    assert!(said.contains(&address.to_string()), "{said}");
    assert!(!said.contains(CANARY), "{said}");
}

#[test]
fn a_malformed_secret_is_not_quoted_in_the_problem() {
    let error = Environment::from_pairs([
        ("MAESTRO_TRACING_ENDPOINT", format!("http://user:{CANARY}@")),
        ("MAESTRO_TRACING_HEADERS", CANARY.to_owned()),
    ])
    .read::<TelemetryConfig>()
    .unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(!said.contains(CANARY), "{said}");
}
