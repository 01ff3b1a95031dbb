use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::get;
use maestro_metrics::{Counter, Histogram, Metric, Registry, ServerLayer};
use tower::ServiceExt;

use crate::service::{Service, sum};

const BY_TENANT: Metric<Counter, 2> =
    Metric::counter("orders_total", "Orders.").labels(["tenant", "result"]);
const TIME: Metric<Histogram, 1> = Metric::seconds("orders_seconds", "Time.").labels(["tenant"]);

const MANY: usize = 100_000;

#[tokio::test]
async fn a_hundred_thousand_tenants_make_a_thousand_series_and_one_line() {
    let service = Service::start(&[]);
    let (orders, time) = (
        service.registry.family(&BY_TENANT),
        service.registry.family(&TIME),
    );
    let record = |round: usize| {
        for tenant in 0..MANY {
            let tenant = format!("tenant-{round}-{tenant}");
            orders.with([&tenant, "ok"]).increment();
            time.with([&tenant]).observe(0.01);
        }
    };
    record(0);
    let size = service.registry.text().len();
    let rounds = until_steady(16 << 10, record);
    let size_after = service.registry.text().len();
    assert!(orders.series() <= 1_001 && time.series() <= 1_001);
    assert!(size_after < size + 200, "{size} grew to {size_after}");
    let all = (1 + rounds) as f64 * MANY as f64;
    let total = sum(&service.registry, "orders_total", &[]);
    assert!((total - all).abs() < 1e-6, "nothing is lost: {total}");
    let lines = service.logs.json();
    let of = |metric: &str| {
        lines
            .iter()
            .filter(|line| line["fields"]["metric"] == metric)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("orders_total").len(), 1);
    assert_eq!(of("orders_total")[0]["fields"]["label"], "tenant");
    assert_eq!(of("orders_seconds").len(), 1);
    let overflow = ["metric=\"orders_total\"", "label=\"tenant\""];
    let overflowed = sum(
        &service.registry,
        "maestro_metrics_overflow_total",
        &overflow,
    );
    assert!((overflowed - (all - 1_000.0)).abs() < 1e-6, "{overflowed}");
}

const BUSIEST: Metric<Histogram, 2> = Metric::seconds("busiest_seconds", "Time by tenant.")
    .labels(["tenant", "result"])
    .top("tenant", 20);

#[tokio::test]
async fn of_a_hundred_thousand_tenants_the_busiest_have_series_in_steady_memory() {
    let service = Service::start(&[]);
    let time = service.registry.family(&BUSIEST);
    let record = |round: usize| {
        for i in 0..MANY {
            // Every tenth event is of one of ten busy tenants, all others of a new tenant each.
            let tenant = match i % 10 {
                0 => format!("busy-{}", i / 10 % 10),
                _ => format!("tenant-{round}-{i}"),
            };
            time.with([&tenant, "ok"]).observe(0.01);
        }
        service.registry.text()
    };
    let size = record(0).len();
    // More of it belongs to the same claim: who is busy stays, whoever else comes.
    record(1);
    record(2);
    let rounds = until_steady(8 << 10, |round| drop(record(2 + round)));
    let text = service.registry.text();
    let size_after = text.len();
    for busy in 0..10 {
        let shown = format!("busiest_seconds_count{{tenant=\"busy-{busy}\"");
        let shown = shown.replace(
            '{',
            "{service=\"quality-fabric\",team=\"quality\",environment=\"test\",",
        );
        assert!(text.contains(&shown), "{shown} in {text}");
    }
    assert!(time.series() <= 21 + 10, "{} series", time.series());
    assert!(size_after < size + 500, "{size} grew to {size_after}");
    let lines = service.logs.json();
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| line["fields"]["metric"] == "busiest_seconds")
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["fields"]["label"], "tenant");
    assert_eq!(lines[0]["fields"]["keep"], 20);
    let overflow = ["metric=\"busiest_seconds\"", "label=\"tenant\""];
    let counted = sum(
        &service.registry,
        "maestro_metrics_overflow_total",
        &overflow,
    );
    let most = (3 + rounds) as f64 * MANY as f64;
    assert!((0.85 * most..most).contains(&counted), "{counted}");
}

#[tokio::test]
async fn a_hundred_thousand_paths_and_methods_are_a_handful_of_series() {
    let registry = Registry::detached();
    let app: Router = Router::new()
        .route("/orders/{id}", get(|| async { "here" }))
        .layer(ServerLayer::new(&registry));
    for i in 0..MANY {
        let (method, path) = match i % 3 {
            0 => ("GET".to_owned(), format!("/orders/{i}")),
            1 => ("GET".to_owned(), format!("/wp-admin/{i}.php")),
            _ => (format!("M{i}"), format!("/orders/{i}")),
        };
        let request = Request::builder()
            .method(&*method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        app.clone().oneshot(request).await.unwrap();
    }
    let series = registry
        .text()
        .lines()
        .filter(|line| line.starts_with("http_server_request_duration_seconds_count"))
        .count();
    assert_eq!(series, 3, "{}", registry.text());
    let count = |labels: &[&str]| {
        sum(
            &registry,
            "http_server_request_duration_seconds_count",
            labels,
        )
    };
    let unmatched = count(&["http_route=\"_unmatched\"", "status_code=\"404\""]);
    assert!((unmatched - 33_333.0).abs() < 1e-9, "{unmatched}");
    let other = count(&["http_request_method=\"_OTHER\"", "status_code=\"405\""]);
    assert!((other - 33_333.0).abs() < 1e-9, "{other}");
}

/// Repeats it until a round takes less than so much memory more; how many rounds that took. Other tests
/// of this process take memory too, but who kept something of every tenant would grow in every round.
fn until_steady(kib: u64, mut record: impl FnMut(usize)) -> usize {
    let mut grown = Vec::new();
    for round in 1..=6 {
        let before = resident_kib();
        record(round);
        grown.push(resident_kib().saturating_sub(before));
        if grown.last().is_some_and(|grown| *grown < kib) {
            return round;
        }
    }
    panic!("KiB more after each {MANY} tenants: {grown:?}")
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_ascii_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}
