use crate::{Counter, Histogram, Metric, OVERFLOW, Registry};

const BY_TENANT: Metric<Counter, 2> = Metric::counter("orders_total", "Orders.")
    .labels(["result", "tenant"])
    .limit(100);

#[test]
fn the_same_labels_are_the_same_cell() {
    let registry = Registry::detached();
    let family = registry.family(&BY_TENANT);
    family.with(["ok", "acme"]).increment();
    registry
        .family(&BY_TENANT)
        .clone()
        .with(["ok", "acme"])
        .add(2);
    assert_eq!(family.with(["ok", "acme"]).value(), 3);
    assert_eq!(family.with(["acme", "ok"]).value(), 0);
}

#[test]
fn a_label_that_runs_away_is_bounded_and_the_other_labels_stay_right() {
    let registry = Registry::detached();
    let family = registry.family(&BY_TENANT);
    for tenant in 0..10_000 {
        let result = if tenant % 4 == 0 { "failed" } else { "ok" };
        family
            .with([result, &format!("tenant-{tenant}")])
            .increment();
    }
    assert!(family.series() <= 102, "{} series", family.series());
    assert_eq!(family.with(["failed", OVERFLOW]).value(), 2_500 - 25);
    assert_eq!(family.with(["ok", OVERFLOW]).value(), 7_500 - 75);
    let text = registry.text();
    let overflow = r#"maestro_metrics_overflow_total{metric="orders_total",label="tenant"} "#;
    assert!(text.contains(overflow), "{text}");
}

#[test]
fn labels_that_all_run_away_are_bounded_too() {
    const BOTH: Metric<Counter, 2> = Metric::counter("both_total", "Both.")
        .labels(["a", "b"])
        .limit(50);
    let family = Registry::detached().family(&BOTH);
    for i in 0..5_000 {
        family
            .with([&format!("a{i}"), &format!("b{i}")])
            .increment();
    }
    assert!(family.series() <= 50 + 64 + 1, "{} series", family.series());
    let counted = family.with([OVERFLOW, OVERFLOW]).value();
    assert!(counted >= 5_000 - 50 - 64, "{counted}");
}

#[test]
fn threads_lose_no_observation() {
    const TIME: Metric<Histogram, 1> = Metric::seconds("time_seconds", "Time.").labels(["op"]);
    let family = Registry::detached().family(&TIME);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for i in 0..10_000u64 {
                    let op = if i % 2 == 0 { "a" } else { "b" };
                    family
                        .with([op])
                        .observe_duration(std::time::Duration::from_millis(i % 20));
                }
            });
        }
    });
    assert_eq!(
        family.with(["a"]).count() + family.with(["b"]).count(),
        80_000
    );
    let sum = family.with(["a"]).sum() + family.with(["b"]).sum();
    assert!((sum - 760.0).abs() < 1e-6, "{sum}");
}
