use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use maestro_metrics::{Context, HealthRegistry, Operations, TraceContext};
use tower::ServiceExt;
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector, text};
use crate::service::{Service, sum, until};

const COUNT: &str = "http_server_request_duration_seconds_count";
const FLUSH: Duration = Duration::from_mins(1);

fn app(service: &Service) -> Router {
    let health = HealthRegistry::new(&service.identity, &service.registry);
    let nested = Router::new().route("/{item}", get(|| async { "item" }));
    let routes = Router::new()
        .route(
            "/orders/{id}",
            get(|| async {
                tracing::info!("reading");
                async {}.instrument(info_span!("query")).await;
                Context::current().correlation().unwrap().to_string()
            }),
        )
        .route(
            "/orders",
            post(|body: String| async move { body.len().to_string() }),
        )
        .route(
            "/failing",
            get(|| async { StatusCode::INTERNAL_SERVER_ERROR }),
        )
        .route(
            "/panicking",
            get(|| async { panic!("no such order") as &'static str }),
        )
        .route("/hanging", get(std::future::pending::<&'static str>))
        .route("/stream", get(stream))
        .nest("/nested", nested);
    Operations::new(&service.registry, &health).around(routes)
}

/// Three chunks of four bytes, without a length.
async fn stream() -> Response<Body> {
    let chunks = (0..3).map(|_| Ok::<_, std::io::Error>("data"));
    Response::new(Body::from_stream(Chunks(chunks)))
}

struct Chunks<I>(I);

impl<I: Iterator + Unpin> futures_core::Stream for Chunks<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

async fn call(app: &Router, request: Request<Body>) -> (StatusCode, String, String) {
    let response = app.clone().oneshot(request).await.unwrap();
    let id = response.headers()["x-correlation-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap(), id)
}

fn get_request(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn requests_are_counted_by_route_method_and_status() {
    let service = Service::start(&[]);
    let app = app(&service);
    for id in 0..5 {
        call(&app, get_request(&format!("/orders/{id}"))).await;
    }
    call(&app, get_request("/nested/7")).await;
    call(&app, get_request("/nowhere")).await;
    call(&app, get_request("/failing")).await;
    let posted = Request::post("/orders")
        .body(Body::from("x".repeat(100)))
        .unwrap();
    assert_eq!(call(&app, posted).await.1, "100");
    let count = |labels: &[&str]| sum(&service.registry, COUNT, labels);
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let orders = [
        "http_route=\"/orders/{id}\"",
        "method=\"GET\"",
        "status_code=\"200\"",
        "url_scheme=\"http\"",
        "network_protocol_version=\"1.1\"",
        "error_type=\"\"",
    ];
    assert!(close(count(&orders), 5.0), "{}", service.registry.text());
    assert!(close(count(&["http_route=\"/nested/{item}\""]), 1.0));
    assert!(close(
        count(&["http_route=\"_unmatched\"", "status_code=\"404\""]),
        1.0
    ));
    assert!(close(
        count(&["http_route=\"/failing\"", "error_type=\"500\""]),
        1.0
    ));
    let sent = sum(
        &service.registry,
        "http_server_request_body_size_bytes_sum",
        &["http_route=\"/orders\""],
    );
    assert!(close(sent, 100.0), "{sent}");
    assert!(close(
        sum(&service.registry, "http_server_active_requests", &[]),
        0.0
    ));
}

#[tokio::test]
async fn the_correlation_id_is_taken_made_and_returned() {
    let service = Service::start(&[]);
    let app = app(&service);
    let mut request = get_request("/orders/1");
    request
        .headers_mut()
        .insert("x-correlation-id", "order-17".parse().unwrap());
    let (_, seen, returned) = call(&app, request).await;
    assert_eq!((seen.as_str(), returned.as_str()), ("order-17", "order-17"));
    assert_eq!(service.logs.json()[0]["correlation_id"], "order-17");

    for bad in ["a b", &"x".repeat(129)] {
        let mut request = get_request("/orders/1");
        request
            .headers_mut()
            .insert("x-correlation-id", bad.parse().unwrap());
        let (_, seen, returned) = call(&app, request).await;
        assert_eq!(seen, returned);
        assert_ne!(seen, bad);
        assert_eq!(seen.len(), 36, "a new one: {seen}");
    }
}

#[tokio::test]
async fn the_server_span_continues_the_callers_trace() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    let app = app(&service);
    let parent = TraceContext::root(true);
    let mut request = get_request("/orders/7?token=hidden");
    let headers = request.headers_mut();
    headers.insert("traceparent", parent.traceparent().parse().unwrap());
    headers.insert("x-tenant-id", "acme".parse().unwrap());
    headers.insert("host", "orders.example".parse().unwrap());
    call(&app, request).await;
    call(&app, get_request("/failing")).await;
    let line = service.logs.json().remove(0);
    service.shutdown(FLUSH).await;

    let server = collector.span("GET /orders/{id}");
    assert_eq!(server.trace_id, parent.trace_id().to_bytes());
    assert_eq!(server.parent_span_id, parent.span_id().to_bytes());
    assert_eq!(server.kind, 2);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/orders/{id}"),
        ("url.path", "/orders/7"),
        ("http.response.status_code", "200"),
        ("server.address", "orders.example"),
        ("tenant.id", "acme"),
    ] {
        assert_eq!(text(&server, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(collector.span("query").parent_span_id, server.span_id);
    assert_eq!(line["trace_id"], parent.trace_id().to_string());
    assert_eq!(line["tenant"], "acme");
    let failed = collector.span("GET /failing");
    assert_eq!(failed.status.unwrap().code, 2);
    assert!(failed.parent_span_id.is_empty());
}

#[tokio::test]
async fn an_unsampled_request_that_fails_is_exported_with_its_route() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let variables = [
        ("MAESTRO_TRACING_ENDPOINT", url.as_str()),
        ("MAESTRO_TRACING_SAMPLE_RATIO", "0"),
    ];
    let service = Service::start(&variables);
    let app = app(&service);
    call(&app, get_request("/orders/1")).await;
    call(&app, get_request("/failing")).await;
    service.shutdown(FLUSH).await;
    let names: Vec<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    assert_eq!(names, ["GET /failing"]);
}

#[tokio::test]
async fn a_panic_is_a_500_a_counter_and_a_line_and_the_next_request_works() {
    let service = Service::start(&[]);
    let app = app(&service);
    let (status, body, id) = call(&app, get_request("/panicking")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(
        !body.contains("no such order"),
        "what panicked is not the client's business: {body}"
    );
    let panics = sum(
        &service.registry,
        "maestro_http_panics_total",
        &["/panicking"],
    );
    assert!((panics - 1.0).abs() < 1e-9);
    assert!(
        sum(
            &service.registry,
            COUNT,
            &["error_type=\"panic\"", "status_code=\"500\""]
        ) > 0.0
    );
    let lines = service.logs.json();
    assert_eq!(lines[0]["fields"]["panic"], "no such order");
    assert_eq!(lines[0]["correlation_id"], id);
    assert_eq!(call(&app, get_request("/orders/1")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_and_not_in_flight() {
    let service = Service::start(&[]);
    let app = app(&service);
    let active = || sum(&service.registry, "http_server_active_requests", &[]);
    let request = tokio::spawn(app.clone().oneshot(get_request("/hanging")));
    until("it is in flight", || active() > 0.5).await;
    request.abort();
    until("it is not any more", || active() < 0.5).await;
    let labels = [
        "http_route=\"/hanging\"",
        "error_type=\"cancelled\"",
        "status_code=\"\"",
    ];
    assert!((sum(&service.registry, COUNT, &labels) - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn a_stream_is_in_flight_until_its_end() {
    let service = Service::start(&[]);
    let app = app(&service);
    let active = || sum(&service.registry, "http_server_active_requests", &[]);
    let response = app.clone().oneshot(get_request("/stream")).await.unwrap();
    assert!((active() - 1.0).abs() < 1e-9);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 12);
    assert!(active() < 0.5);
    let sent = sum(
        &service.registry,
        "http_server_response_body_size_bytes_sum",
        &["http_route=\"/stream\""],
    );
    assert!((sent - 12.0).abs() < 1e-9);
}

#[tokio::test]
async fn scrapes_and_probes_are_not_counted_as_requests() {
    let service = Service::start(&[]);
    let app = app(&service);
    for path in ["/metrics", "/health/live", "/health"] {
        app.clone().oneshot(get_request(path)).await.unwrap();
    }
    assert!(sum(&service.registry, COUNT, &[]) < 0.5);
}

#[tokio::test]
async fn metrics_are_sent_in_the_format_and_coding_that_is_accepted() {
    let service = Service::start(&[]);
    let app = app(&service);
    call(&app, get_request("/orders/1")).await;
    let plain = app.clone().oneshot(get_request("/metrics")).await.unwrap();
    assert_eq!(
        plain.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(!plain.headers().contains_key("content-encoding"));

    let mut request = get_request("/metrics");
    let headers = request.headers_mut();
    headers.insert(
        "accept",
        "application/openmetrics-text;version=1.0.0"
            .parse()
            .unwrap(),
    );
    headers.insert("accept-encoding", "gzip".parse().unwrap());
    let packed = app.clone().oneshot(request).await.unwrap();
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    assert!(
        packed.headers()["content-type"]
            .to_str()
            .unwrap()
            .contains("openmetrics")
    );
    let bytes = packed.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text)
        .unwrap();
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("http_server_request_duration_seconds_bucket"));
}
