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
    let (size, memory) = (service.registry.text().len(), resident_kib());
    record(1);
    let (size_after, memory_after) = (service.registry.text().len(), resident_kib());
    assert!(orders.series() <= 1_001 && time.series() <= 1_001);
    assert!(size_after < size + 200, "{size} grew to {size_after}");
    let grown = memory_after.saturating_sub(memory);
    assert!(
        grown < 16 << 10,
        "{grown} KiB more after another {MANY} tenants"
    );
    let total = sum(&service.registry, "orders_total", &[]);
    assert!(
        (total - 2.0 * MANY as f64).abs() < 1e-6,
        "nothing is lost: {total}"
    );
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
    assert!(
        (overflowed - (2.0 * MANY as f64 - 1_000.0)).abs() < 1e-6,
        "{overflowed}"
    );
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
    record(0);
    let (size, memory) = (service.registry.text().len(), resident_kib());
    let mut text = String::new();
    for round in 1..=3 {
        text = record(round);
    }
    let (size_after, memory_after) = (text.len(), resident_kib());
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
    let grown = memory_after.saturating_sub(memory);
    assert!(
        grown < 8 << 10,
        "{grown} KiB more after another {} tenants",
        3 * MANY
    );
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
    let most = 4.0 * MANY as f64;
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
