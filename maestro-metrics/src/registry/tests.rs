use std::sync::Arc;
use std::time::Duration;

use maestro_config::{Environment, Identity};

use crate::{Counter, Format, Gauge, Histogram, Metric, Registry, TraceContext};

const ORDERS: Metric<Counter, 1> =
    Metric::counter("orders_total", "Orders \\ by result\nand \"more\".").labels(["result"]);
const SIZE: Metric<Gauge, 1> = Metric::gauge("pool_size", "Connections.").labels(["pool"]);
const TIME: Metric<Histogram> = Metric::seconds("time_seconds", "Time.").buckets(&[0.1, 1.0]);

fn identity() -> Identity {
    Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "quality-fabric"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("MAESTRO_TEAM", "quality"),
    ])
    .read()
    .unwrap()
}

#[test]
fn text_has_the_identity_on_every_series_and_escapes_what_must_be() {
    let registry = Registry::new(&identity());
    registry.family(&ORDERS).with(["a\"b\\c\nd"]).add(7);
    registry
        .metric(&TIME)
        .observe_duration(Duration::from_millis(100));
    registry.metric(&TIME).observe(5.0);
    assert_eq!(
        registry.text(),
        r#"# HELP orders_total Orders \\ by result\nand "more".
# TYPE orders_total counter
orders_total{service="quality-fabric",team="quality",environment="test",result="a\"b\\c\nd"} 7
# HELP time_seconds Time.
# TYPE time_seconds histogram
time_seconds_bucket{service="quality-fabric",team="quality",environment="test",le="0.1"} 1
time_seconds_bucket{service="quality-fabric",team="quality",environment="test",le="1.0"} 1
time_seconds_bucket{service="quality-fabric",team="quality",environment="test",le="+Inf"} 2
time_seconds_sum{service="quality-fabric",team="quality",environment="test"} 5.1
time_seconds_count{service="quality-fabric",team="quality",environment="test"} 2
"#
    );
}

#[test]
fn open_metrics_has_units_exemplars_and_an_end() {
    let registry = Registry::detached();
    registry.family(&ORDERS).with(["ok"]).increment();
    let trace = TraceContext::root(true);
    let time = registry.metric(&TIME);
    time.observe_traced(Duration::from_millis(50), Some(&trace));
    time.observe_traced(Duration::from_secs(3), Some(&TraceContext::root(false)));
    let mut buffer = Vec::new();
    registry.encode(Format::OpenMetrics, &mut buffer);
    let text = String::from_utf8(buffer).unwrap();
    assert!(
        text.contains("# TYPE orders counter\norders_total{result=\"ok\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("# UNIT time_seconds seconds\n"), "{text}");
    let exemplar = format!(
        "time_seconds_bucket{{le=\"0.1\"}} 1 # {{trace_id=\"{}\",span_id=\"{}\"}} 0.05 ",
        trace.trace_id(),
        trace.span_id()
    );
    assert!(text.contains(&exemplar), "{text}");
    assert_eq!(
        text.matches("trace_id").count(),
        1,
        "an unsampled trace is no exemplar"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_was_counted_before_joining_is_there_after_and_the_same_series_is_one() {
    let early = Registry::detached();
    early.family(&ORDERS).with(["ok"]).add(3);
    early.metric(&TIME).observe(0.05);
    let service = Registry::new(&identity());
    service.family(&ORDERS).with(["ok"]).add(4);
    service.metric(&TIME).observe(0.5);
    service.join(&early);
    service.join(&early);
    service.join(&service.clone());
    early.join(&service);
    let text = service.text();
    assert_eq!(text.matches("orders_total{").count(), 1, "{text}");
    assert!(
        text.contains(r#"environment="test",result="ok"} 7"#),
        "{text}"
    );
    assert!(
        text.contains(
            r#"time_seconds_count{service="quality-fabric",team="quality",environment="test"} 2"#
        ),
        "{text}"
    );
}

#[test]
fn observed_values_are_added_up_and_leave_with_their_source() {
    let registry = Registry::detached();
    let pools = [Arc::new(3usize), Arc::new(4)];
    for pool in &pools {
        let weak = Arc::downgrade(pool);
        registry.observe(&SIZE, ["main"], move || {
            weak.upgrade().map(|pool| *pool as f64)
        });
    }
    assert!(registry.text().contains("pool_size{pool=\"main\"} 7\n"));
    drop(pools);
    assert!(!registry.text().contains("pool_size"));
}

#[test]
fn a_source_may_ask_for_metrics_while_it_is_read() {
    let registry = Registry::detached();
    let inner = registry.clone();
    registry.observe(&SIZE, ["main"], move || {
        inner.family(&ORDERS).with(["ok"]).increment();
        Some(1.0)
    });
    registry.text();
    assert!(registry.text().contains("orders_total"));
}

#[test]
fn a_second_declaration_under_one_name_works_but_is_not_exposed() {
    const OTHER: Metric<Gauge, 1> = Metric::gauge("pool_size", "Something else.").labels(["x"]);
    let registry = Registry::detached();
    registry.family(&SIZE).with(["main"]).set(1.0);
    registry.family(&OTHER).with(["main"]).set(2.0);
    let text = registry.text();
    assert!(text.contains("pool_size{pool=\"main\"} 1\n"), "{text}");
    assert!(!text.contains("Something else"), "{text}");
    assert!(
        text.contains("maestro_metrics_conflicts_total{metric=\"pool_size\"} 1"),
        "{text}"
    );
}
