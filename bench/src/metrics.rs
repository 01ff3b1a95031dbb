//! `maestro-metrics` beside `prometheus`, `prometheus-client`, `metrics` with its Prometheus exporter,
//! and `foundations`.
//!
//! `foundations` stands beside the cells only: its page is written by `prometheus-client`, out of a
//! registry of the whole process. `metrics` keeps every observation of a histogram until somebody
//! scrapes or `run_upkeep` is called: that work is outside its figure.

mod http;

use std::borrow::Cow;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use foundations::telemetry::metrics as foundations_metrics;
use maestro_metrics::{Counter, DURATION_BUCKETS, Format, Histogram, Metric, Registry};
use metrics::{Key, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use prometheus::Encoder as _;
use prometheus_client::metrics::counter::Counter as ClientCounter;
use prometheus_client::metrics::family::Family as ClientFamily;
use prometheus_client::metrics::histogram::Histogram as ClientHistogram;

use crate::harness::{Comparison, Result, Row, Target, Unit, nanoseconds, versioned};

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let mut rows = counter(rounds).await?;
    rows.extend(histogram(rounds).await?);
    rows.extend(two_threads(rounds).await?);
    rows.extend(labels(rounds).await?);
    rows.extend(encode(rounds).await?);
    rows.extend(http::run(rounds).await?);
    Ok(rows)
}

async fn counter(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&COUNTER);
    let plain = AtomicU64::new(0);
    let theirs = prometheus::IntCounter::new("jobs_total", "Jobs.")?;
    let client: ClientCounter = ClientCounter::default();
    let facade = recorder()?.register_counter(&Key::from_static_name("jobs_total"), &METADATA);
    let foundations: foundations_metrics::Counter = foundations_metrics::Counter::default();
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
    .peer(
        versioned("prometheus-client", ""),
        "",
        Target::None,
        || async { Ok(nanoseconds(CALLS, || client.inc())) },
    )
    .peer(
        versioned("metrics-exporter-prometheus", ""),
        "",
        Target::None,
        || async { Ok(nanoseconds(CALLS, || facade.increment(1))) },
    )
    .peer(versioned("foundations", ""), "", Target::None, || async {
        Ok(nanoseconds(CALLS, || foundations.inc()))
    })
    .run()
    .await
}

async fn histogram(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&HISTOGRAM);
    let theirs = prometheus_histogram()?;
    let client = ClientHistogram::new(DURATION_BUCKETS.iter().copied());
    let recorder = recorder()?;
    let facade = recorder.register_histogram(&Key::from_static_name("job_seconds"), &METADATA);
    let foundations = foundations_metrics::TimeHistogram::new(DURATION_BUCKETS.iter().copied());
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
    .peer(
        versioned("prometheus-client", ""),
        "",
        Target::None,
        || async {
            let mut values = values();
            Ok(nanoseconds(CALLS, || client.observe(values())))
        },
    )
    .peer(
        versioned("metrics-exporter-prometheus", ""),
        "kept until a scrape",
        Target::None,
        || async {
            let mut values = values();
            let figure = nanoseconds(CALLS, || facade.record(values()));
            recorder.handle().run_upkeep();
            Ok(figure)
        },
    )
    .peer(versioned("foundations", ""), "", Target::None, || async {
        let mut values = values();
        Ok(nanoseconds(CALLS, || foundations.observe(nanos(values()))))
    })
    .run()
    .await
}

async fn two_threads(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().metric(&HISTOGRAM);
    let alone = Registry::detached().metric(&HISTOGRAM);
    let theirs = prometheus_histogram()?;
    let client = ClientHistogram::new(DURATION_BUCKETS.iter().copied());
    let recorder = recorder()?;
    let facade = recorder.register_histogram(&Key::from_static_name("job_seconds"), &METADATA);
    let foundations = foundations_metrics::TimeHistogram::new(DURATION_BUCKETS.iter().copied());
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
    .peer(
        versioned("prometheus-client", ""),
        "",
        Target::None,
        || async { Ok(on_two_threads(|value| client.observe(value))) },
    )
    .peer(
        versioned("metrics-exporter-prometheus", ""),
        "kept until a scrape",
        Target::None,
        || async {
            let figure = on_two_threads(|value| facade.record(value));
            recorder.handle().run_upkeep();
            Ok(figure)
        },
    )
    .peer(versioned("foundations", ""), "", Target::None, || async {
        Ok(on_two_threads(|value| foundations.observe(nanos(value))))
    })
    .run()
    .await
}

async fn labels(rounds: usize) -> Result<Vec<Row>> {
    let ours = Registry::detached().family(&SERIES);
    let theirs = prometheus_family()?;
    let client = ClientFamily::<Labels, ClientCounter>::default();
    let wanted: Labels = [("route", "/runs/{id}".into()), ("method", "GET".into())];
    let recorder = recorder()?;
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
    .peer(
        versioned("prometheus-client", ""),
        "",
        Target::None,
        || async { Ok(nanoseconds(CALLS, || client.get_or_create(&wanted).inc())) },
    )
    .peer(
        versioned("metrics-exporter-prometheus", ""),
        "",
        Target::None,
        || async {
            Ok(metrics::with_local_recorder(&recorder, || {
                nanoseconds(CALLS, || {
                    let labels = [("route", "/runs/{id}"), ("method", "GET")];
                    metrics::counter!("requests_total", &labels).increment(1);
                })
            }))
        },
    )
    .run()
    .await
}

async fn encode(rounds: usize) -> Result<Vec<Row>> {
    let registry = Registry::detached();
    let ours = registry.family(&SERIES);
    let theirs = prometheus_family()?;
    let other = prometheus::Registry::new();
    other.register(Box::new(theirs.clone()))?;
    let client = ClientFamily::<Labels, ClientCounter>::default();
    let mut client_registry = prometheus_client::registry::Registry::default();
    client_registry.register("requests", "Requests.", client.clone());
    let recorder = recorder()?;
    for number in 0..10_000 {
        let route = format!("/route/{number}");
        ours.with([&route, "GET"]).add(number);
        theirs.with_label_values(&[&route, "GET"]).inc_by(number);
        let labels = [("route", route.clone().into()), ("method", "GET".into())];
        client.get_or_create(&labels).inc_by(number);
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("requests_total", "route" => route, "method" => "GET")
                .increment(number);
        });
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
    .peer(
        versioned("prometheus-client", ""),
        "OpenMetrics",
        Target::None,
        || async {
            let mut buffer = String::new();
            let started = Instant::now();
            for _ in 0..ENCODINGS {
                buffer.clear();
                prometheus_client::encoding::text::encode(&mut buffer, &client_registry)?;
            }
            Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(ENCODINGS))
        },
    )
    .peer(
        versioned("metrics-exporter-prometheus", ""),
        "",
        Target::None,
        || async {
            let handle = recorder.handle();
            let started = Instant::now();
            for _ in 0..ENCODINGS {
                std::hint::black_box(handle.render());
            }
            Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(ENCODINGS))
        },
    )
    .run()
    .await
}

fn recorder() -> Result<PrometheusRecorder> {
    Ok(PrometheusBuilder::new()
        .set_buckets(DURATION_BUCKETS)?
        .build_recorder())
}

/// Whole nanoseconds, as `foundations` takes a duration.
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
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

static METADATA: Metadata<'static> = Metadata::new("bench", Level::INFO, None);

type Labels = [(&'static str, Cow<'static, str>); 2];

const CALLS: u32 = 2_000_000;
const ENCODINGS: u32 = 20;
