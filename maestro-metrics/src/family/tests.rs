use crate::{Counter, Gauge, Histogram, Metric, OVERFLOW, Registry};

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

const BUSIEST: Metric<Counter, 2> = Metric::counter("busiest_total", "Busiest.")
    .labels(["tenant", "result"])
    .top("tenant", 4);

/// Series of a metric by their label values, as a scrape shows them.
fn scrape(registry: &Registry, name: &str) -> Vec<(String, f64)> {
    let text = registry.text();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let mut series: Vec<_> = lines
        .filter_map(|line| line.strip_prefix('{')?.rsplit_once("} "))
        .map(|(labels, value)| (labels.to_owned(), value.parse().unwrap()))
        .collect();
    series.sort_by(|a: &(String, f64), b| a.0.cmp(&b.0));
    series
}

fn value(series: &[(String, f64)], label: &str) -> Option<f64> {
    let of = series.iter().filter(|(labels, _)| labels.contains(label));
    of.map(|(_, value)| *value).reduce(|a, b| a + b)
}

#[test]
fn the_busiest_values_have_series_and_the_others_are_counted_together() {
    let registry = Registry::detached();
    let family = registry.family(&BUSIEST);
    for i in 0..4_000 {
        let tenant = match i % 8 {
            0..4 => format!("busy-{}", i % 4),
            _ => format!("tenant-{i}"),
        };
        family
            .with([&tenant, if i % 2 == 0 { "ok" } else { "failed" }])
            .increment();
    }
    let series = scrape(&registry, "busiest_total");
    for busy in 0..4 {
        assert_eq!(
            value(&series, &format!("busy-{busy}")),
            Some(500.0),
            "{series:?}"
        );
    }
    assert_eq!(value(&series, OVERFLOW), Some(2_000.0), "{series:?}");
    assert_eq!(series.len(), 4 + 2, "{series:?}");
}

#[test]
fn a_value_that_becomes_busy_takes_the_place_of_an_idle_one_and_no_event_is_lost_or_counted_twice()
{
    let registry = Registry::detached();
    let family = registry.family(&BUSIEST);
    for tenant in 0..4 {
        family.with([&format!("early-{tenant}"), "ok"]).add(10);
    }
    let held = family.with(["early-0", "ok"]);
    for early in 1..4 {
        for _ in 0..50 {
            family.with([&format!("early-{early}"), "ok"]).increment();
        }
    }
    assert_eq!(
        value(&scrape(&registry, "busiest_total"), "early-0"),
        Some(10.0)
    );
    for _ in 0..1_000 {
        family.with(["late", "ok"]).increment();
    }
    held.add(3);

    // The scrape shows the one that goes for the last time, with everything until then.
    let last = scrape(&registry, "busiest_total");
    assert_eq!(value(&last, "early-0"), Some(13.0), "{last:?}");
    let (late, overflow) = (
        value(&last, "late").unwrap(),
        value(&last, OVERFLOW).unwrap(),
    );
    assert!(late > 900.0, "{last:?}");
    assert!((late + overflow - 1_000.0).abs() < 1e-9, "{last:?}");

    held.add(2);
    let after = scrape(&registry, "busiest_total");
    assert_eq!(value(&after, "early-0"), None, "{after:?}");
    assert_eq!(value(&after, OVERFLOW), Some(overflow + 2.0), "{after:?}");
    drop(held);
    registry.text();
    let after = scrape(&registry, "busiest_total");
    assert_eq!(value(&after, OVERFLOW), Some(overflow + 2.0), "{after:?}");
}

#[test]
fn a_value_that_was_very_busy_once_gives_way() {
    let registry = Registry::detached();
    let family = registry.family(&BUSIEST);
    for tenant in ["a", "b", "c", "d", "late"] {
        for _ in 0..50_000 {
            family.with([tenant, "ok"]).increment();
        }
    }
    let series = scrape(&registry, "busiest_total");
    assert!(value(&series, "late") > Some(25_000.0), "{series:?}");
}

#[test]
fn values_that_take_turns_do_not_make_a_series_each() {
    let registry = Registry::detached();
    let family = registry.family(&BUSIEST);
    let mut seen = std::collections::BTreeSet::new();
    for tenant in 0..60 {
        for _ in 0..15_000 {
            family.with([&format!("batch-{tenant}"), "ok"]).increment();
        }
        seen.extend(
            scrape(&registry, "busiest_total")
                .into_iter()
                .map(|(labels, _)| labels),
        );
    }
    // The first ones, those that may change places at once, the overflow, and a slow machine.
    assert!(
        seen.len() <= 4 + 2 + 1 + 6,
        "{} series: {seen:?}",
        seen.len()
    );
}

#[test]
fn a_gauge_that_is_held_up_while_its_series_ends_comes_down_again() {
    const ACTIVE: Metric<Gauge, 1> = Metric::gauge("active", "Active.")
        .labels(["tenant"])
        .top("tenant", 1);
    let registry = Registry::detached();
    let family = registry.family(&ACTIVE);
    let early = family.with(["early"]).track();
    for _ in 0..1_000 {
        drop(family.with(["late"]).track());
    }
    assert_eq!(value(&scrape(&registry, "active"), "early"), Some(1.0));
    registry.text();
    let moved = scrape(&registry, "active");
    assert_eq!(value(&moved, OVERFLOW), Some(1.0), "{moved:?}");
    drop(early);
    registry.text();
    let moved = scrape(&registry, "active");
    assert_eq!(value(&moved, OVERFLOW), Some(0.0), "{moved:?}");
    assert_eq!(value(&moved, "late"), Some(0.0), "{moved:?}");
}

#[test]
fn observed_gauges_show_the_largest_values_and_the_sum_of_the_others() {
    const BACKLOG: Metric<Gauge, 2> = Metric::gauge("backlog", "Backlog.")
        .labels(["queue", "tenant"])
        .top("tenant", 2);
    let registry = Registry::detached();
    for tenant in 0..10u32 {
        registry.observe(&BACKLOG, ["runs", &format!("t{tenant}")], move || {
            Some(tenant.into())
        });
    }
    assert_eq!(
        scrape(&registry, "backlog"),
        [("_overflow", 28.0), ("t8", 8.0), ("t9", 9.0)]
            .map(|(tenant, value)| (format!(r#"queue="runs",tenant="{tenant}""#), value))
    );
}

#[test]
fn threads_lose_no_event_of_values_that_come_and_go() {
    const EVENTS: Metric<Histogram, 1> = Metric::seconds("events_seconds", "Events.")
        .labels(["tenant"])
        .top("tenant", 8);
    let registry = Registry::detached();
    let family = registry.family(&EVENTS);
    let shown = std::sync::Mutex::new(std::collections::HashMap::<String, f64>::new());
    let mut total = 0.0;
    let look = |total: &mut f64| {
        // As Prometheus adds up increases: a series that begins again begins at 0.
        let mut shown = shown.lock().unwrap();
        let now: std::collections::HashMap<_, _> = scrape(&registry, "events_seconds_count")
            .into_iter()
            .collect();
        for (labels, value) in &now {
            let before = shown.get(labels).copied().unwrap_or(0.0);
            *total += if *value < before {
                *value
            } else {
                value - before
            };
        }
        *shown = now;
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4u64)
            .map(|worker| {
                let family = family.clone();
                scope.spawn(move || {
                    for i in 0..20_000 {
                        // Another set of tenants is busy in every phase.
                        let tenant = 8 * (i / 4_000) + i % 8;
                        let tenant = if i % 3 == 0 { i * 10 + worker } else { tenant };
                        family.with([&format!("t{tenant}")]).observe(0.01);
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            look(&mut total);
        }
    });
    look(&mut total);
    look(&mut total);
    assert!((total - 80_000.0).abs() < 1e-6, "{total}");
}
