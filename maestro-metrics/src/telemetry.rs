//! Logs and traces of a service: one subscriber, one exporter, one end.

mod config;
mod fields;
mod layer;
mod logs;
mod redaction;
mod sampling;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_config::{Deployment, Identity};
use parking_lot::{Mutex, RwLock};
use tracing::Dispatch;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

pub use config::{LogConfig, LogFormat, LogLevel, SecretHeaders, TelemetryConfig, TracingConfig};
use layer::{Shared, TelemetryFilter, TelemetryLayer, Traces};
use logs::{Logs, Output};
use redaction::Redaction;
use sampling::Ratio;

use crate::drain::Leftover;
use crate::error::{Error, ErrorKind};
use crate::metrics::{BUILD, SPANS_KEPT};
use crate::otlp::{DropReason, Exporter, Queue, Resource, Settings};
use crate::registry::Registry;

/// Logs and traces of a service, from [`Telemetry::start`] to [`Telemetry::shutdown`].
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use maestro_config::{Environment, Identity};
/// use maestro_metrics::{Registry, Telemetry, TelemetryConfig};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let (identity, config) = Environment::load()?.read::<(Identity, TelemetryConfig)>()?;
/// let registry = Registry::new(&identity);
/// let telemetry = Telemetry::start(&config, &identity, &registry)?;
/// telemetry.install()?;
/// tracing::info!("at work");
/// let report = telemetry.shutdown(Instant::now() + Duration::from_secs(5)).await;
/// if !report.is_clean() {
///     eprintln!("{report}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// Starting it changes nothing in the process: [`install`](Self::install) makes it the process's
/// subscriber, [`dispatch`](Self::dispatch) hands it to one part of a process (a test). Dropping it
/// ends the exporter without delivering what is queued; `shutdown` delivers it.
#[must_use = "dropping it ends the export of traces"]
pub struct Telemetry {
    dispatch: Dispatch,
    shared: Arc<Shared>,
    exporter: Option<(Exporter, Arc<Queue>)>,
}

impl Telemetry {
    /// Starts with the settings alone.
    pub fn start(
        config: &TelemetryConfig,
        identity: &Identity,
        registry: &Registry,
    ) -> Result<Self, Error> {
        Self::builder(config, identity, registry).start()
    }

    /// For options that are code.
    pub fn builder<'a>(
        config: &'a TelemetryConfig,
        identity: &'a Identity,
        registry: &'a Registry,
    ) -> TelemetryBuilder<'a> {
        TelemetryBuilder {
            config,
            identity,
            registry,
            output: Output::Stdout,
            redacted: Vec::new(),
            more: None,
        }
    }

    /// Makes this the subscriber of the whole process; only one can be.
    pub fn install(&self) -> Result<(), Error> {
        tracing::dispatcher::set_global_default(self.dispatch.clone()).map_err(|error| {
            Error::new(
                ErrorKind::Conflict,
                "installing the process's tracing subscriber failed, because there is one \
                 already: start telemetry once, before anything else installs one",
            )
            .with_source(error)
        })?;
        // A thread that came to a place in the code between the start and now found no subscriber,
        // and such a place stays silent until it is asked again.
        tracing_core::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// The subscriber, for a part of a process: `tracing::dispatcher::with_default`, or
    /// `tracing::instrument::WithSubscriber` for a future.
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// A handle that changes what is logged while the service runs.
    pub fn log_control(&self) -> LogControl {
        LogControl(Arc::clone(&self.shared))
    }

    /// Delivers what is queued, until the deadline, and ends the exporter. Dropping the future
    /// loses what is queued.
    pub async fn shutdown(self, deadline: Instant) -> TelemetryReport {
        let mut report = TelemetryReport::default();
        if let Some((exporter, queue)) = self.exporter {
            let start = Instant::now();
            report.last_failure = exporter.shutdown(deadline).await;
            report.took = start.elapsed();
            let (exported, dropped) = queue.totals();
            report.exported = exported;
            report.dropped = DropReason::ALL
                .iter()
                .zip(dropped)
                .filter(|(_, spans)| *spans > 0)
                .map(|(reason, spans)| (reason.as_str(), spans))
                .collect();
        }
        report
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("exporting", &self.exporter.is_some())
            .finish_non_exhaustive()
    }
}

/// Options of [`Telemetry`] that are code.
///
/// ```
/// use maestro_config::{Environment, Identity};
/// use maestro_metrics::{Registry, Telemetry, TelemetryConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let environment = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "orders"),
///     ("MAESTRO_ENVIRONMENT", "test"),
/// ]);
/// let (identity, config) = environment.read::<(Identity, TelemetryConfig)>()?;
/// let registry = Registry::new(&identity);
/// let telemetry = Telemetry::builder(&config, &identity, &registry)
///     .redact(["iban"])
///     .log_to(std::io::stderr())
///     .start()?;
/// tracing::dispatcher::with_default(telemetry.dispatch(), || {
///     tracing::info!(iban = "DE02 1203 0000 0000 2020 51", "paid"); // logged as [redacted]
/// });
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct TelemetryBuilder<'a> {
    config: &'a TelemetryConfig,
    identity: &'a Identity,
    registry: &'a Registry,
    output: Output,
    redacted: Vec<String>,
    more: Option<ExtraLayer>,
}

type ExtraLayer = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

impl TelemetryBuilder<'_> {
    /// Writes log lines there instead of to standard output, each in one `write_all`.
    pub fn log_to(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Output::Other(Mutex::new(Box::new(output)));
        self
    }

    /// Replaces the values of these fields too by `[redacted]`, in logs and spans. Fields named
    /// `password`, `secret`, `token`, `authorization`, `cookie`, `api_key` and the like always are,
    /// also as the last word of a longer name.
    pub fn redact(mut self, fields: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.redacted.extend(fields.into_iter().map(Into::into));
        self
    }

    /// Adds a layer of another kind to the subscriber: the way to another tracing library. It sees
    /// the spans of unsampled traces as well, which then cost what they cost there.
    ///
    /// ```no_run
    /// # use maestro_metrics::{Error, Telemetry, TelemetryBuilder};
    /// # fn example(builder: TelemetryBuilder<'_>) -> Result<Telemetry, Error> {
    /// // What a developer reads, beside the JSON on standard output:
    /// let people = tracing_subscriber::fmt::layer().pretty().with_writer(std::io::stderr);
    /// let telemetry = builder.layer(people).start()?;
    /// # Ok(telemetry)
    /// # }
    /// ```
    pub fn layer(
        mut self,
        layer: impl Layer<tracing_subscriber::Registry> + Send + Sync + 'static,
    ) -> Self {
        self.more = Some(match self.more.take() {
            None => Box::new(layer),
            Some(other) => Box::new(other.and_then(layer)),
        });
        self
    }

    /// Starts: the exporter's thread, if there is a collector, and the subscriber, which is not
    /// installed anywhere yet.
    pub fn start(self) -> Result<Telemetry, Error> {
        let Self {
            config,
            identity,
            registry,
            output,
            redacted,
            more,
        } = self;
        let deployment = identity.deployment();
        let exporter = match &config.tracing.endpoint {
            None => None,
            Some(endpoint) => {
                let queue = Queue::new(config.tracing.queue, registry);
                let settings = Settings {
                    endpoint: endpoint.clone(),
                    headers: config.tracing.headers.clone(),
                    timeout: config.tracing.timeout,
                    resource: Resource::new(identity),
                };
                install_crypto_provider();
                Some((Exporter::start(settings, &queue, registry)?, queue))
            }
        };
        let kept = registry.family(&SPANS_KEPT);
        let shared = Arc::new(Shared {
            logged: RwLock::new(Arc::new(config.log.level.targets().clone())),
            traces: exporter.as_ref().map(|(_, queue)| Traces {
                queue: Arc::clone(queue),
                ratio: Ratio::new(
                    config
                        .tracing
                        .sample_ratio
                        .unwrap_or(default_ratio(deployment)),
                ),
                slow: (config.tracing.slow > Duration::ZERO).then_some(config.tracing.slow),
                kept_errors: kept.with(["error"]),
                kept_slow: kept.with(["slow"]),
            }),
            redaction: Redaction::new(redacted),
        });
        let format = config.log.format.unwrap_or(match deployment {
            Deployment::Development => LogFormat::Pretty,
            _ => LogFormat::Json,
        });
        let filter = TelemetryFilter(Arc::clone(&shared));
        let layer = TelemetryLayer {
            filter: filter.clone(),
            logs: Logs::new(format, output, identity, registry),
            alone: more.is_none(),
        };
        let subscriber = tracing_subscriber::registry();
        let dispatch = match more {
            None => Dispatch::new(subscriber.with(layer)),
            Some(more) => Dispatch::new(subscriber.with(more).with(layer.with_filter(filter))),
        };
        registry
            .family(&BUILD)
            .with([
                identity.version(),
                env!("CARGO_PKG_VERSION"),
                identity.instance(),
            ])
            .set(1.0);
        if let Some((exporter, _)) = &exporter {
            exporter.log_to(&dispatch);
        }
        if let Some(warning) = config.tracing.endpoint.as_ref().and_then(|e| e.warning()) {
            tracing::dispatcher::with_default(&dispatch, || {
                tracing::warn!(variable = "MAESTRO_TRACING_ENDPOINT", "{warning}");
            });
        }
        Ok(Telemetry {
            dispatch,
            shared,
            exporter,
        })
    }
}

impl fmt::Debug for TelemetryBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("config", self.config)
            .finish_non_exhaustive()
    }
}

/// Changes what is logged while the service runs. A clone controls the same.
///
/// ```
/// use maestro_config::{Environment, Identity};
/// use maestro_metrics::{LogLevel, Registry, Telemetry, TelemetryConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let environment = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "orders"),
///     ("MAESTRO_ENVIRONMENT", "test"),
/// ]);
/// let (identity, config) = environment.read::<(Identity, TelemetryConfig)>()?;
/// let registry = Registry::new(&identity);
/// let telemetry = Telemetry::start(&config, &identity, &registry)?;
/// let control = telemetry.log_control();
/// if let Some(level) = LogLevel::parse("info,orders::billing=debug") {
///     control.set(&level);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LogControl(Arc<Shared>);

impl LogControl {
    /// Logs by these directives from now on.
    pub fn set(&self, level: &LogLevel) {
        *self.0.logged.write() = Arc::new(level.targets().clone());
        // What was decided once for each place in the code is decided anew.
        tracing_core::callsite::rebuild_interest_cache();
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}

/// What became of the spans.
///
/// ```no_run
/// # async fn end(telemetry: maestro_metrics::Telemetry, deadline: std::time::Instant) {
/// let report = telemetry.shutdown(deadline).await;
/// if !report.leftover().is_none() {
///     eprintln!("{} within {:?}", report.leftover(), report.took); // longer next time
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TelemetryReport {
    /// Spans a collector has accepted since the start.
    pub exported: u64,
    /// Spans that reached no collector since the start, by the reasons of
    /// `maestro_traces_spans_dropped_total`.
    pub dropped: Vec<(&'static str, u64)>,
    /// How long the end took.
    pub took: Duration,
    /// Why the last delivery failed, if it did.
    pub last_failure: Option<String>,
}

impl TelemetryReport {
    /// True when every recorded span was delivered.
    pub fn is_clean(&self) -> bool {
        self.dropped.is_empty()
    }

    /// What the end of the service left undelivered.
    pub fn leftover(&self) -> Leftover {
        self.dropped
            .iter()
            .filter(|(reason, _)| *reason == DropReason::Shutdown.as_str())
            .fold(Leftover::none(), |left, (_, spans)| {
                left.and(*spans, "spans not delivered")
            })
    }
}

impl fmt::Display for TelemetryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} spans delivered", self.exported)?;
        for (reason, spans) in &self.dropped {
            write!(f, ", {spans} lost ({reason})")?;
        }
        if let Some(why) = &self.last_failure {
            write!(f, "; {why}")?;
        }
        Ok(())
    }
}

/// What is recorded where nothing says otherwise: everything while a system is being built, a tenth
/// under real load.
const fn default_ratio(deployment: Deployment) -> f64 {
    if deployment.is_strict() { 0.1 } else { 1.0 }
}

/// With two providers compiled in, rustls refuses to choose; ours is *ring*. When one is installed
/// already, that one is used.
fn install_crypto_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
