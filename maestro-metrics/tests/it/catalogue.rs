use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use maestro_metrics::{
    CATALOGUE, Catalogue, ClientLayer, Counter, Criticality, Gauge, HealthCheck, HealthRegistry,
    HealthStatus, Metric, Operations, coverage, observe_process, observe_runtime,
};
use tower::{Layer, ServiceExt};
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector};
use crate::service::{Service, sum, until};

const WIDE: Metric<Counter, 1> = Metric::counter("wide_total", "Wide.")
    .labels(["a"])
    .limit(1);
const TWICE: Metric<Gauge> = Metric::gauge("wide", "Declared as something else below.");
const AGAIN: Metric<Gauge, 1> = Metric::gauge("wide", "Again.").labels(["a"]);
const OWN: Catalogue = Catalogue::new("test", &[WIDE.describe(), TWICE.describe()]);

#[tokio::test]
async fn what_is_declared_is_emitted_and_what_is_emitted_is_declared() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let service = Service::start(&[
        ("MAESTRO_TRACING_ENDPOINT", url.as_str()),
        ("MAESTRO_TRACING_SAMPLE_RATIO", "0"),
    ]);
    let registry = service.registry.clone();
    observe_process(&registry);
    observe_runtime(&registry);
    registry.family(&WIDE).with(["1"]).increment();
    registry.family(&WIDE).with(["2"]).increment();
    registry.metric(&TWICE).set(1.0);
    registry.family(&AGAIN).with(["1"]).set(1.0);

    let health = HealthRegistry::new(&service.identity, &registry);
    health.register(HealthCheck::new("x", Criticality::Critical, || async {
        HealthStatus::healthy()
    }));
    health.start();
    health.started();
    health.until_ready().await;

    let routes: Router = Router::new().route("/panicking", get(|| async { panic!("x") as &str }));
    let app = Operations::new(&registry, &health).around(routes);
    let request = || Request::get("/panicking").body(Body::empty()).unwrap();
    app.oneshot(request()).await.unwrap();

    let failing = tower::service_fn(|_: Request<()>| async {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        Ok::<_, std::io::Error>(response)
    });
    let client = ClientLayer::new(&registry).retries(5).layer(failing);
    let call = Request::get("http://orders/").body(()).unwrap();
    assert!(
        client.oneshot(call).await.is_err(),
        "its breaker opens at the fifth failure"
    );
    async { tracing::error!("kept") }
        .instrument(info_span!("work"))
        .await;
    until("the span is exported", || !collector.spans().is_empty()).await;
    collector.behave(Behaviour::Reject { spans: 1 });
    service.logs.fail();
    async { tracing::error!("kept, written nowhere, and rejected") }
        .instrument(info_span!("work"))
        .await;
    let dropped = "maestro_traces_spans_dropped_total";
    until("the span is rejected", || {
        sum(&registry, dropped, &[]) > 0.0
    })
    .await;
    // Counted in hundredths of a second.
    let cpu = "process_cpu_seconds_total";
    until("CPU time is used", || sum(&registry, cpu, &[]) > 0.0).await;

    let text = registry.text();
    let all = [&CATALOGUE, &OWN];
    assert_eq!(coverage::undeclared(&all, &text), [""; 0]);
    assert_eq!(coverage::unmoved(&all, &text), [""; 0], "{text}");
    health.stop().await;
    service.shutdown(Duration::from_mins(1)).await;
}
