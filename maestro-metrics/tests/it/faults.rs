//! A collector that is absent, refuses, hangs, fails or is slow must not be felt.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use maestro_metrics::{HealthRegistry, Operations};
use tower::ServiceExt;
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector};
use crate::service::{ClosedPort, Service, sum, until};

const FLUSH: Duration = Duration::from_mins(1);

async fn work(spans: usize) {
    for _ in 0..spans {
        async {}.instrument(info_span!("work")).await;
    }
}

fn pointed_at(url: &str, variables: &[(&str, &str)]) -> Service {
    let mut all = vec![("MAESTRO_TRACING_ENDPOINT", url)];
    all.extend_from_slice(variables);
    Service::start(&all)
}

#[tokio::test]
async fn a_collector_that_refuses_connections_costs_the_spans_and_nothing_else() {
    let closed = ClosedPort::new();
    let url = closed.url();
    let begun = Instant::now();
    let service = pointed_at(&url, &[]);
    let registry = service.registry.clone();
    work(100).await;
    until("a failed attempt", || {
        sum(
            &registry,
            "maestro_traces_exporter_state",
            &["state=\"failing\""],
        ) > 0.0
    })
    .await;
    let logs = service.logs.clone();
    let start = Instant::now();
    let report = service.shutdown(Duration::from_mins(2)).await;
    assert!(
        start.elapsed() < Duration::from_mins(1),
        "one last attempt: {:?}",
        start.elapsed()
    );
    assert_eq!(report.dropped, [("shutdown", 100)], "{report}");
    assert!(report.leftover().to_string().contains("100 spans"));
    let failure = report.last_failure.unwrap();
    assert!(
        failure.contains(&url) && failure.contains("refused"),
        "{failure}"
    );
    let lines = logs.json();
    let complaints = lines.iter().filter(|line| line["level"] == "WARN").count() as u64;
    let minutes = begun.elapsed().as_secs() / 60;
    assert!(
        (1..=1 + minutes).contains(&complaints),
        "one line a minute: {}",
        logs.text()
    );
    assert_eq!(lines[0]["fields"]["endpoint"], format!("{url}/v1/traces"));
}

#[tokio::test]
async fn a_collector_that_hangs_is_cut_off_at_the_deadline_of_the_shutdown() {
    let collector = Collector::http(Behaviour::Hang).await;
    let service = pointed_at(&collector.url(), &[]);
    work(10).await;
    until("the request hangs", || collector.arrived() > 0).await;
    work(5).await;
    let start = Instant::now();
    let report = service.shutdown(Duration::from_millis(500)).await;
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(30),
        "{took:?}"
    );
    assert_eq!(report.dropped, [("shutdown", 15)], "{report}");
}

#[tokio::test]
async fn a_collector_that_answers_500_is_not_asked_again_with_the_same_batch() {
    let collector = Collector::http(Behaviour::Answer(500)).await;
    let service = pointed_at(&collector.url(), &[]);
    let registry = service.registry.clone();
    work(10).await;
    until("the batch is refused", || {
        sum(
            &registry,
            "maestro_traces_spans_dropped_total",
            &["reason=\"refused\""],
        ) > 9.0
    })
    .await;
    let offered: usize = collector.offered().iter().sum();
    assert_eq!(offered, 10, "each span once");
    collector.behave(Behaviour::Accept);
    work(3).await;
    let report = service.shutdown(FLUSH).await;
    assert_eq!(report.exported, 3, "{report}");
    assert_eq!(report.dropped, [("refused", 10)]);
}

#[tokio::test]
async fn a_collector_that_is_busy_gets_the_batch_again() {
    let collector = Collector::http(Behaviour::Answer(503)).await;
    let service = pointed_at(&collector.url(), &[]);
    work(10).await;
    until("the first attempt", || collector.arrived() > 0).await;
    collector.behave(Behaviour::Accept);
    until("the second attempt", || collector.spans().len() == 10).await;
    let report = service.shutdown(FLUSH).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.exported, 10);
    assert_eq!(report.last_failure, None);
}

#[tokio::test]
async fn spans_a_collector_rejects_are_counted_as_lost() {
    let collector = Collector::http(Behaviour::Reject { spans: 4 }).await;
    let service = pointed_at(&collector.url(), &[]);
    work(10).await;
    let report = service.shutdown(FLUSH).await;
    // All at once, unless this machine took a second to make ten spans.
    let offered = collector.offered().into_iter();
    let rejected = offered.map(|spans| spans.min(4)).sum::<usize>() as u64;
    assert_eq!(
        (report.exported, report.dropped),
        (10 - rejected, vec![("rejected", rejected)])
    );
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let collector = Collector::http(Behaviour::Hang).await;
    let service = pointed_at(&collector.url(), &[("MAESTRO_TRACING_QUEUE", "50")]);
    let registry = service.registry.clone();
    work(10).await;
    until("the request hangs", || collector.arrived() > 0).await;
    let start = Instant::now();
    work(10_000).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(30), "10,000 spans took {took:?}");
    let full = sum(
        &registry,
        "maestro_traces_spans_dropped_total",
        &["reason=\"queue_full\""],
    );
    // What the exporter holds is ten, or less where this machine took a second to make ten spans.
    assert!((9_950.0..=9_960.0).contains(&full), "{full}");
    assert!((sum(&registry, "maestro_traces_queue_spans", &[]) - 50.0).abs() < 1e-9);
    let report = service.shutdown(Duration::from_millis(200)).await;
    let lost: u64 = report.dropped.iter().map(|(_, spans)| spans).sum();
    assert_eq!(
        lost + report.exported,
        10_010,
        "every span is accounted for: {report}"
    );
}

/// What a service may meet where its collector should be.
async fn faults(closed: &ClosedPort) -> Vec<(&'static str, String, Option<Collector>)> {
    let mut faults = vec![
        // A name that no resolver knows, and a machine on which nobody listens.
        ("absent", "http://collector.invalid:4318".to_owned(), None),
        ("refusing", closed.url(), None),
    ];
    for (name, behaviour) in [
        ("hanging", Behaviour::Hang),
        ("answering 500", Behaviour::Answer(500)),
        ("slow", Behaviour::Slow(Duration::from_secs(10))),
    ] {
        let collector = Collector::http(behaviour).await;
        faults.push((name, collector.url(), Some(collector)));
    }
    faults
}

/// The routes of a service, with everything a request gets.
fn routes(service: &Service) -> Router {
    let health = HealthRegistry::new(&service.identity, &service.registry);
    let routes = Router::new().route("/orders/{id}", get(|| async { "an order" }));
    Operations::new(&service.registry, &health).around(routes)
}

/// How long each of so many requests took, one after the other.
async fn requests(service: &Service, app: &Router, count: usize) -> Vec<Duration> {
    let _current = tracing::dispatcher::set_default(service.telemetry.dispatch());
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let request = Request::get("/orders/7").body(Body::empty()).unwrap();
        let start = Instant::now();
        let response = app.clone().oneshot(request).await.unwrap();
        took.push(start.elapsed());
        assert_eq!(response.status(), StatusCode::OK);
    }
    took
}

fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test]
async fn requests_do_not_feel_a_collector_that_fails_and_every_lost_span_is_counted() {
    // In turns in one run, so that whatever else the machine does meets both alike.
    const TURNS: usize = 20;
    const EACH: usize = 200;
    const WITHIN: Duration = Duration::from_secs(1);
    let closed = ClosedPort::new();
    for (fault, url, collector) in faults(&closed).await {
        let accepting = Collector::http(Behaviour::Accept).await;
        let well = pointed_at(&accepting.url(), &[]);
        let ill = pointed_at(&url, &[("MAESTRO_TRACING_QUEUE", "500")]);
        let (well_app, ill_app) = (routes(&well), routes(&ill));
        // Measured from the moment at which the fault is there.
        requests(&ill, &ill_app, 600).await;
        until("the exporter meets the fault", || {
            let failing = ["state=\"failing\""];
            collector.as_ref().is_some_and(|it| it.arrived() > 0)
                || sum(&ill.registry, "maestro_traces_exporter_state", &failing) > 0.0
        })
        .await;
        let (mut quiet, mut faulty) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            quiet.extend(requests(&well, &well_app, EACH).await);
            faulty.extend(requests(&ill, &ill_app, EACH).await);
        }
        let (quiet, faulty) = (p99(&mut quiet), p99(&mut faulty));

        let registry = ill.registry.clone();
        let start = Instant::now();
        let report = ill.shutdown(WITHIN).await;
        let took = start.elapsed();
        let lost: u64 = report.dropped.iter().map(|(_, spans)| spans).sum();
        eprintln!("{fault}: p99 {faulty:?}, else {quiet:?}; stopped in {took:?}; {report}");
        // Who waits for a collector waits longer than a busy machine makes anybody wait.
        assert!(
            faulty <= quiet * 2 + Duration::from_millis(200),
            "{fault}: p99 {faulty:?}, else {quiet:?}"
        );
        assert!(
            took < WITHIN + Duration::from_secs(30),
            "{fault}: stopping took {took:?}"
        );
        let all = (600 + TURNS * EACH) as u64;
        assert_eq!(report.exported + lost, all, "{fault}: {report}");
        // A slow one may answer while a slow machine runs this.
        assert!(report.exported == 0 || fault == "slow", "{fault}: {report}");
        assert!(!report.is_clean(), "{fault}: {report}");
        let counted = sum(&registry, "maestro_traces_spans_dropped_total", &[]);
        assert!((counted - lost as f64).abs() < 0.5, "{fault}: {counted}");

        // The same requests, where somebody takes their spans.
        let report = well.shutdown(FLUSH).await;
        assert_eq!(report.exported, (TURNS * EACH) as u64, "{report}");
        assert!(report.is_clean(), "{report}");
    }
}

#[tokio::test]
async fn telemetry_that_is_dropped_ends_its_exporter() {
    let collector = Collector::http(Behaviour::Hang).await;
    let service = pointed_at(&collector.url(), &[]);
    work(1).await;
    until("the request hangs", || collector.arrived() > 0).await;
    assert_eq!(collector.connections(), 1);
    drop(service);
    until("its connection is closed", || collector.connections() == 0).await;
}
