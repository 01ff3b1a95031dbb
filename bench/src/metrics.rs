//! `maestro-metrics` beside the `prometheus` crate.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use maestro_metrics::{Counter, DURATION_BUCKETS, Format, Histogram, Metric, Registry};
use prometheus::Encoder as _;

use crate::harness::{Comparison, Result, Row, Target, Unit, nanoseconds, versioned};

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = counter(rounds).await?;
    rows.extend(histogram(rounds).await?);
    rows.extend(two_threads(rounds).await?);
    rows.extend(labels(rounds).await?);
    rows.extend(encode(rounds).await?);
    Ok(rows)
}

async fn counter(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&COUNTER);
    let plain = AtomicU64::new(0);
    let theirs = prometheus::IntCounter::new("jobs_total", "Jobs.")?;
    Comparison::new("counter, one more", Unit::Nanoseconds, rounds, || async {
        Ok(nanoseconds(CALLS, || ours.increment()))
    })
    .peer(
        "relaxed atomic add",
        "",
        Target::Ratio(1.0 / 1.1),
        || async {
            Ok(nanoseconds(CALLS, || {
                plain.fetch_add(1, Ordering::Relaxed);
            }))
        },
    )
    .peer(versioned("prometheus", ""), "", Target::None, || async {
        Ok(nanoseconds(CALLS, || theirs.inc()))
    })
    .run()
    .await
}

async fn histogram(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&HISTOGRAM);
    let theirs = prometheus_histogram()?;
    Comparison::new("histogram, observe", Unit::Nanoseconds, rounds, || async {
        let mut values = values();
        Ok(nanoseconds(CALLS, || ours.observe(values())))
    })
    .peer(
        versioned("prometheus", ""),
        "",
        Target::Ratio(1.0 / 0.6),
        || async {
            let mut values = values();
            Ok(nanoseconds(CALLS, || theirs.observe(values())))
        },
    )
    .run()
    .await
}

async fn two_threads(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&HISTOGRAM);
    let alone = Registry::detached().metric(&HISTOGRAM);
    let theirs = prometheus_histogram()?;
    Comparison::new(
        "histogram, two threads",
        Unit::Nanoseconds,
        rounds,
        || async { Ok(on_two_threads(|value| ours.observe(value))) },
    )
    .peer("ours, one thread", "", Target::Ratio(1.0 / 1.5), || async {
        let mut values = values();
        Ok(nanoseconds(CALLS, || alone.observe(values())))
    })
    .peer(versioned("prometheus", ""), "", Target::None, || async {
        Ok(on_two_threads(|value| theirs.observe(value)))
    })
    .run()
    .await
}

async fn labels(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().family(&SERIES);
    let theirs = prometheus_family()?;
    Comparison::new(
        "counter, found by two labels",
        Unit::Nanoseconds,
        rounds,
        || async {
            Ok(nanoseconds(CALLS, || {
                ours.with(["/runs/{id}", "GET"]).increment()
            }))
        },
    )
    .peer(versioned("prometheus", ""), "", Target::None, || async {
        Ok(nanoseconds(CALLS, || {
            theirs.with_label_values(&["/runs/{id}", "GET"]).inc()
        }))
    })
    .run()
    .await
}

async fn encode(rounds: usize) -> Result<Vec<Row>> {
    let registry = Registry::detached();
    let ours = registry.family(&SERIES);
    let theirs = prometheus_family()?;
    let other = prometheus::Registry::new();
    other.register(Box::new(theirs.clone()))?;
    for number in 0..10_000 {
        let route = format!("/route/{number}");
        ours.with([&route, "GET"]).add(number);
        theirs.with_label_values(&[&route, "GET"]).inc_by(number);
    }
    Comparison::new(
        "10,000 series as text",
        Unit::Milliseconds,
        rounds,
        || async {
            let mut buffer = Vec::new();
            let started = Instant::now();
            for _ in 0..ENCODINGS {
                buffer.clear();
                registry.encode(Format::Text, &mut buffer);
            }
            Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(ENCODINGS))
        },
    )
    .peer(
        versioned("prometheus", ""),
        "",
        Target::Ratio(1.0 / 0.3),
        || async {
            let mut buffer = Vec::new();
            let started = Instant::now();
            for _ in 0..ENCODINGS {
                buffer.clear();
                prometheus::TextEncoder::new().encode(&other.gather(), &mut buffer)?;
            }
            Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(ENCODINGS))
        },
    )
    .run()
    .await
}

fn prometheus_histogram() -> Result<prometheus::Histogram> {
    let options = prometheus::HistogramOpts::new("job_seconds", "Jobs.");
    Ok(prometheus::Histogram::with_opts(
        options.buckets(DURATION_BUCKETS.to_vec()),
    )?)
}

fn prometheus_family() -> Result<prometheus::IntCounterVec> {
    let options = prometheus::Opts::new("requests_total", "Requests.");
    Ok(prometheus::IntCounterVec::new(
        options,
        &["route", "method"],
    )?)
}

/// Nanoseconds for one call when two threads make them at the same time: what a caller waits.
fn on_two_threads(observe: impl Fn(f64) + Sync) -> f64 {
    let start = Barrier::new(2);
    let work = || {
        let mut values = values();
        start.wait();
        nanoseconds(CALLS, || observe(values()))
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mine = work();
        // A thread that panicked has no figure, and no figure must look like a good one.
        f64::midpoint(mine, other.join().unwrap_or(f64::NAN))
    })
}

/// Durations from half a millisecond to sixteen seconds, over all buckets, cheap to come by.
fn values() -> impl FnMut() -> f64 {
    let mut state = 1_u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0.000_5 * f64::from(1 << (state >> 28))
    }
}

static COUNTER: Metric<Counter> = Metric::counter("jobs_total", "Jobs.");
static HISTOGRAM: Metric<Histogram> = Metric::seconds("job_seconds", "Jobs.");
static SERIES: Metric<Counter, 2> = Metric::counter("requests_total", "Requests.")
    .labels(["route", "method"])
    .limit(20_000);

const CALLS: u32 = 2_000_000;
const ENCODINGS: u32 = 20;
