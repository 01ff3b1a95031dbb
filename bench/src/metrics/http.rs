//! What a request pays for being seen: our HTTP layer beside what a service would put together
//! itself, axum-prometheus for the figures and tracing-opentelemetry for the span.
//!
//! The peers do less: they neither carry a correlation id, nor catch panics, nor measure request
//! bodies, nor write logs, and their exporter drops its spans where ours encodes and sends them to a
//! sink. Each figure is the time of a request under the layer less that of the same request on the
//! bare route, both measured in the same turn.

use std::io;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::MatchedPath;
use axum::http::{HeaderMap, Request, Response};
use axum::routing::get;
use axum_prometheus::PrometheusMetricLayer;
use maestro_config::{Environment, Identity};
use maestro_metrics::{
    Criticality, HealthCheck, HealthRegistry, HealthStatus, Operations, Registry, ServerLayer,
    Telemetry, TelemetryConfig,
};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tower::{Service as _, ServiceExt as _};
use tower_http::trace::TraceLayer;
use tracing::{Dispatch, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::harness::{Comparison, Result, Row, Target, Unit, versioned};

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    // It installs the process's recorder, once.
    let (figures, _handle) = PrometheusMetricLayer::pair();
    let sink = sink().await?;
    let mut rows = Vec::new();
    for (bench, traceparent, target) in [
        ("HTTP layer, unsampled", UNSAMPLED, 1.0 / 0.5),
        ("HTTP layer, sampled", SAMPLED, 1.0 / 0.8),
    ] {
        let (sink, figures) = (&sink, &figures);
        let peer = format!(
            "{} + {}",
            versioned("axum-prometheus", ""),
            versioned("tracing-opentelemetry", "")
        );
        let comparison = Comparison::new(bench, Unit::Nanoseconds, rounds, move || async move {
            ours(sink, traceparent).await
        })
        .peer(
            peer,
            "no correlation id, panics, request sizes, logs, export",
            Target::Ratio(target),
            move || async move { theirs(figures.clone(), traceparent).await },
        );
        rows.extend(comparison.run().await?);
    }
    rows.extend(health(rounds).await?);
    Ok(rows)
}

/// `/health/ready` of a service with three checks beside a route that answers with a constant.
async fn health(rounds: usize) -> Result<Vec<Row>> {
    let environment = environment("");
    let identity: Identity = environment.read()?;
    let registry = Registry::new(&identity);
    let health = HealthRegistry::new(&identity, &registry);
    for name in ["database", "cache", "broker"] {
        let check = || async { HealthStatus::healthy() };
        health.register(HealthCheck::new(name, Criticality::Critical, check));
    }
    health.start();
    health.started();
    health.until_ready().await;
    let operations: Router = Operations::new(&registry, &health).router();
    let fixed: Router = Router::new().route("/static", get(|| async { "ready" }));
    let (operations, fixed) = (&operations, &fixed);
    let rows = Comparison::new(
        "/health/ready",
        Unit::Nanoseconds,
        rounds,
        move || async move { per_request(operations, "/health/ready", UNSAMPLED).await },
    )
    .peer(
        "a static route",
        "",
        Target::Ratio(1.0 / 1.2),
        move || async move { per_request(fixed, "/static", UNSAMPLED).await },
    )
    .run()
    .await?;
    health.stop().await;
    Ok(rows)
}

/// Telemetry lives for one turn only: a subscriber that exists takes part in what the call sites
/// of the other are interested in.
async fn ours(sink: &str, traceparent: &str) -> Result<f64> {
    let bare = per_request(&routes(), PATH, traceparent).await?;
    let environment = environment(sink);
    let (identity, config) = environment.read::<(Identity, TelemetryConfig)>()?;
    let registry = Registry::new(&identity);
    let telemetry = Telemetry::builder(&config, &identity, &registry)
        .log_to(io::sink())
        .start()?;
    let app = routes().layer(ServerLayer::new(&registry));
    let figure = {
        let _current = tracing::dispatcher::set_default(telemetry.dispatch());
        per_request(&app, PATH, traceparent).await?
    };
    let report = telemetry.shutdown(Instant::now() + STOP).await;
    let expected = if traceparent == SAMPLED { REQUESTS } else { 0 };
    if report.exported != u64::from(expected) {
        return Err(format!("{expected} spans were due: {report}").into());
    }
    Ok(figure - bare)
}

async fn theirs(figures: PrometheusMetricLayer<'static>, traceparent: &str) -> Result<f64> {
    let bare = per_request(&routes(), PATH, traceparent).await?;
    let queue = BatchConfigBuilder::default().with_max_queue_size(QUEUE);
    let processor = BatchSpanProcessor::builder(Discard)
        .with_batch_config(queue.build())
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(sampler)
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
    let spans = TraceLayer::new_for_http()
        .make_span_with(server_span)
        .on_request(())
        .on_response(|response: &Response<_>, _: Duration, span: &Span| {
            span.record("http.response.status_code", response.status().as_u16());
        })
        .on_body_chunk(())
        .on_eos(())
        .on_failure(());
    let app = routes().layer(figures).layer(spans);
    let figure = {
        let _current = tracing::dispatcher::set_default(&dispatch);
        per_request(&app, PATH, traceparent).await?
    };
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    Ok(figure - bare)
}

/// The server span of the semantic conventions, continuing the caller's trace.
fn server_span(request: &Request<Body>) -> Span {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("", MatchedPath::as_str);
    let span = info_span!(
        "request",
        otel.kind = "server",
        otel.name = format!("{} {route}", request.method()),
        http.request.method = request.method().as_str(),
        http.route = route,
        url.path = request.uri().path(),
        url.scheme = "http",
        http.response.status_code = field::Empty,
    );
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // A span nobody is interested in has no parent to be given.
    let _ = span.set_parent(parent);
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// An exporter that costs nothing.
#[derive(Debug)]
struct Discard;

impl SpanExporter for Discard {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
    }
}

/// A collector that takes everything.
async fn sink() -> Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    // It ends with the process.
    tokio::spawn(async move {
        let app = Router::new().fallback(|_: axum::body::Bytes| async {});
        axum::serve(listener, app).await
    });
    Ok(url)
}

fn environment(sink: &str) -> Environment {
    let queue = QUEUE.to_string();
    Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "bench"),
        ("MAESTRO_SERVICE_VERSION", "1.0.0"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("MAESTRO_TEAM", "bench"),
        ("MAESTRO_TRACING_ENDPOINT", sink),
        ("MAESTRO_TRACING_QUEUE", &queue),
    ])
}

fn routes() -> Router {
    Router::new().route("/orders/{id}", get(|| async { "an order" }))
}

/// Nanoseconds for one request, from its construction to the end of its answer's body.
async fn per_request(app: &Router, path: &str, traceparent: &str) -> Result<f64> {
    let mut service = app.clone().into_service::<Body>();
    let started = Instant::now();
    for _ in 0..REQUESTS {
        let request = Request::get(path)
            .header("traceparent", traceparent)
            .body(Body::empty())?;
        let response = service.ready().await?.call(request).await?;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()).into());
        }
        to_bytes(response.into_body(), 1_024).await?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS))
}

const PATH: &str = "/orders/7";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const REQUESTS: u32 = 20_000;
/// Room for the spans of a turn: a full queue would make a span cheap.
const QUEUE: usize = 50_000;
const STOP: Duration = Duration::from_secs(30);
