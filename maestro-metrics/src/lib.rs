//! Metrics, traces, logs and health of Maestro services.
//!
//! Without features this crate is what a client crate instruments itself with: metrics declared as
//! data, handles that record from birth, a registry, health checks, drain steps, and the context of
//! the work in hand. Feature `http` adds the server side (layer, `/metrics`, `/health*`), feature
//! `otlp` logs and the export of traces.
//!
//! A client crate declares what it measures and resolves its handles once:
//!
//! ```
//! use maestro_metrics::{Catalogue, Counter, Family, Gauge, Histogram, Metric, Registry};
//!
//! const REQUESTS: Metric<Counter, 2> =
//!     Metric::counter("maestro_cache_requests_total", "Lookups by level and result.")
//!         .labels(["level", "result"]);
//! const DURATION: Metric<Histogram, 1> =
//!     Metric::seconds("maestro_cache_operation_duration_seconds", "Time of one operation.")
//!         .labels(["operation"]);
//! const CONNECTED: Metric<Gauge> =
//!     Metric::gauge("maestro_cache_connected", "1 while connected.");
//!
//! /// In the crate's `metrics.rs`; from it `docs/metrics.md` is generated.
//! pub const CATALOGUE: Catalogue = Catalogue::new(
//!     "maestro-cache",
//!     &[REQUESTS.describe(), DURATION.describe(), CONNECTED.describe()],
//! );
//!
//! struct Metrics {
//!     local_hits: Counter,
//!     duration: Family<Histogram, 1>,
//!     connected: Gauge,
//! }
//!
//! impl Metrics {
//!     fn new(registry: &Registry) -> Self {
//!         Self {
//!             local_hits: registry.family(&REQUESTS).with(["l1", "hit"]),
//!             duration: registry.family(&DURATION),
//!             connected: registry.metric(&CONNECTED),
//!         }
//!     }
//! }
//!
//! // The builder takes a registry, `Registry::detached()` when it is given none.
//! let registry = Registry::detached();
//! let metrics = Metrics::new(&registry);
//! let start = std::time::Instant::now();
//! metrics.local_hits.increment();
//! metrics.duration.with(["get"]).observe_duration(start.elapsed());
//! metrics.connected.set(1.0);
//! assert!(registry.text().contains(r#"maestro_cache_requests_total{level="l1",result="hit"} 1"#));
//! ```
//!
//! What somebody else keeps already (a pool's size) is read at the scrape: [`Registry::observe`].
//! A client also hands out its [`HealthCheck`] and its [`DrainStep`]s as plain values; the service
//! registers them. It sends [`Context::current`] along with what it sends, and runs what it receives
//! in the [`Context`] that came with it: one trace and one correlation id over all processes.

mod catalogue;
mod cell;
mod config;
mod context;
pub mod coverage;
pub mod docs;
mod drain;
mod encode;
#[cfg(any(feature = "http", feature = "otlp", feature = "push"))]
mod error;
mod family;
#[cfg(all(any(test, fuzzing), feature = "otlp"))]
pub mod fuzzing;
mod guard;
mod handle;
mod health;
#[cfg(feature = "http")]
mod http;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
mod outage;
#[cfg(feature = "http")]
mod outbound;
mod process;
#[cfg(feature = "prometheus")]
mod prometheus;
mod propagation;
#[cfg(any(feature = "otlp", feature = "push"))]
mod protobuf;
#[cfg(feature = "push")]
mod push;
mod registry;
#[cfg(feature = "otlp")]
mod span;
#[cfg(not(feature = "otlp"))]
#[path = "span_absent.rs"]
mod span;
mod stripes;
#[cfg(feature = "otlp")]
mod telemetry;
mod timestamp;

pub use catalogue::{
    Catalogue, DEFAULT_SERIES_LIMIT, DURATION_BUCKETS, Description, FAST_DURATION_BUCKETS, Kind,
    Metric, SEMANTIC_CONVENTIONS, SIZE_BUCKETS, Stability, Top, Unit,
};
pub use config::MetricsConfig;
pub use context::{
    BAGGAGE, CORRELATION_ID, Context, CorrelationId, TENANT_ID, TRACEPARENT, TRACESTATE,
};
pub use drain::{DrainPhase, DrainStep, Drained, Leftover};
pub use encode::Format;
#[cfg(any(feature = "http", feature = "otlp", feature = "push"))]
pub use error::{Error, ErrorKind};
pub use family::{Family, OVERFLOW, Observable};
pub use handle::{Counter, Gauge, Handle, Histogram, StripedCounter, Tracked};
pub use health::{
    Answer, CheckReport, Criticality, HealthCheck, HealthRegistry, HealthReport, HealthState,
    HealthStatus, Probe,
};
#[cfg(feature = "http")]
pub use http::{Operations, ServerLayer, ServerService};
pub use metrics::CATALOGUE;
#[cfg(feature = "otlp")]
pub use otlp::Endpoint;
pub use outage::Outage;
#[cfg(feature = "http")]
pub use outbound::{ClientLayer, ClientService, Repeatable};
pub use process::{observe_process, observe_runtime};
pub use propagation::{SpanId, TraceContext, TraceId};
#[cfg(feature = "push")]
pub use push::Pusher;
pub use registry::Registry;
#[cfg(feature = "otlp")]
pub use telemetry::{
    LogConfig, LogControl, LogFormat, LogLevel, SecretHeaders, Telemetry, TelemetryBuilder,
    TelemetryConfig, TelemetryReport, TracingConfig,
};

/// The guide's snippets compile.
#[cfg(all(doctest, feature = "http", feature = "otlp", feature = "push"))]
#[doc = include_str!("../../docs/observability.md")]
struct Guide;
