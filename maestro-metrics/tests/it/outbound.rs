//! Calls to a server that misbehaves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use maestro_metrics::{
    ClientLayer, ClientService, Context, ErrorKind, Registry, Repeatable, TraceContext,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt};
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector, text};
use crate::service::{ClosedPort, Service, sum};

#[derive(Clone, Copy, Debug)]
enum Act {
    Answer(u16),
    Busy { seconds: u64 },
    Close,
    Hang,
}

/// Acts as it is told, one act for each request; answers 200 when it has no more.
struct Server {
    address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct State {
    acts: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<(Method, HeaderMap)>>,
}

impl Server {
    async fn start(acts: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            acts: Mutex::new(acts.into_iter().collect()),
            seen: Mutex::default(),
        });
        let serving = Arc::clone(&state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move { state.act(&request).await }
                    });
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    fn seen(&self) -> usize {
        self.state.seen.lock().unwrap().len()
    }

    fn request(&self, method: Method) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(format!("http://{}/orders?key=hidden", self.address))
            .body(Full::default())
            .unwrap()
    }
}

impl State {
    async fn act(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let seen = (request.method().clone(), request.headers().clone());
        self.seen.lock().unwrap().push(seen);
        let act = self
            .acts
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or(Act::Answer(200));
        let mut response = Response::new(Full::default());
        match act {
            Act::Answer(status) => *response.status_mut() = status.try_into().unwrap(),
            Act::Busy { seconds } => {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response.headers_mut().insert("retry-after", seconds.into());
            }
            Act::Close => return Err(std::io::Error::other("closed on purpose")),
            Act::Hang => std::future::pending().await,
        }
        Ok(response)
    }
}

type Plain = Client<HttpConnector, Full<Bytes>>;

fn client(layer: &ClientLayer) -> ClientService<Plain> {
    layer.layer(Client::builder(TokioExecutor::new()).build_http())
}

#[tokio::test]
async fn a_safe_call_is_repeated_until_it_is_answered() {
    let registry = Registry::detached();
    let server = Server::start([Act::Answer(503), Act::Close, Act::Answer(502)]).await;
    let layer = ClientLayer::new(&registry).deadline(Duration::from_mins(1));
    let request = server.request(Method::GET);
    let response = client(&layer).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(server.seen(), 4);
    assert!((sum(&registry, "maestro_http_client_retries_total", &[]) - 3.0).abs() < 1e-9);
    let count = |label| {
        sum(
            &registry,
            "http_client_request_duration_seconds_count",
            &[label],
        )
    };
    assert!((count("status_code=\"503\"") - 1.0).abs() < 1e-9);
    assert!((count("error_type=\"connection\"") - 1.0).abs() < 1e-9);
    assert!((count("status_code=\"200\"") - 1.0).abs() < 1e-9);
    assert!(!registry.text().contains("hidden"));
}

#[tokio::test]
async fn a_call_that_changes_something_is_sent_once_unless_it_is_marked() {
    let registry = Registry::detached();
    let server = Server::start([Act::Answer(503), Act::Answer(503)]).await;
    let client = client(&ClientLayer::new(&registry));
    let response = client
        .clone()
        .oneshot(server.request(Method::POST))
        .await
        .unwrap();
    assert_eq!((response.status().as_u16(), server.seen()), (503, 1));
    let mut marked = server.request(Method::POST);
    marked.extensions_mut().insert(Repeatable);
    let response = client.oneshot(marked).await.unwrap();
    assert_eq!((response.status().as_u16(), server.seen()), (200, 3));
}

#[tokio::test]
async fn the_deadline_covers_all_attempts_and_the_waits() {
    let registry = Registry::detached();
    let server = Server::start([Act::Answer(503), Act::Hang]).await;
    let layer = ClientLayer::new(&registry).deadline(Duration::from_secs(3));
    let start = Instant::now();
    let error = client(&layer)
        .oneshot(server.request(Method::GET))
        .await
        .unwrap_err();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(2_990) && took < Duration::from_secs(30),
        "{took:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let said = error.to_string();
    assert!(
        said.contains("GET 127.0.0.1") && said.contains("2 attempts"),
        "{said}"
    );
    assert!(!said.contains("hidden"), "{said}");
    // A wait the deadline has no room for is not begun.
    let server = Server::start([Act::Busy { seconds: 30 }]).await;
    let response = client(&layer)
        .oneshot(server.request(Method::GET))
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
}

#[tokio::test]
async fn five_failures_open_the_breaker_of_that_target_alone_and_a_probe_closes_it() {
    let registry = Registry::detached();
    let server = Server::start(std::iter::repeat_n(Act::Answer(500), 5)).await;
    let other = Server::start([]).await;
    let longest = Duration::from_secs(5);
    let layer = ClientLayer::new(&registry).breaker(5, Duration::from_secs(30), longest);
    let client = client(&layer);
    for _ in 0..5 {
        let response = client
            .clone()
            .oneshot(server.request(Method::GET))
            .await
            .unwrap();
        assert_eq!(response.status(), 500);
    }
    let error = client
        .clone()
        .oneshot(server.request(Method::GET))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("breaker is open"), "{error}");
    assert_eq!(server.seen(), 5, "the call was not sent");
    assert!(
        client
            .clone()
            .oneshot(other.request(Method::GET))
            .await
            .is_ok()
    );

    let deadline = Instant::now() + Duration::from_mins(1);
    while client
        .clone()
        .oneshot(server.request(Method::GET))
        .await
        .is_err()
    {
        assert!(Instant::now() < deadline, "the probe never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for to in ["open", "half_open", "closed"] {
        let labels = [format!("to=\"{to}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let count = sum(
            &registry,
            "maestro_resilience_breaker_transitions_total",
            &labels,
        );
        assert!((count - 1.0).abs() < 1e-9, "{to}: {count}");
    }
}

#[tokio::test]
async fn nobody_listening_is_an_error_that_may_pass() {
    let closed = ClosedPort::new();
    let address = closed.address;
    let client = client(&ClientLayer::new(&Registry::detached()).retries(1));
    let request = Request::get(format!("http://{address}/"))
        .body(Full::default())
        .unwrap();
    let error = client.oneshot(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_transient());
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn the_other_side_gets_the_trace_of_the_attempt_and_the_correlation_id() {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    let server = Server::start([Act::Answer(503)]).await;
    let client = client(&ClientLayer::new(&service.registry));
    let context = Context::new().or_new_correlation().with_tenant("acme");
    let span = context.span(|| info_span!("work"));
    client
        .oneshot(server.request(Method::GET))
        .instrument(span)
        .await
        .unwrap();
    service.shutdown(Duration::from_mins(1)).await;

    let work = collector.span("work");
    let attempts: Vec<_> = collector
        .spans()
        .into_iter()
        .filter(|span| span.name == "GET")
        .collect();
    assert_eq!(attempts.len(), 2);
    let seen = server.state.seen.lock().unwrap();
    for (attempt, (_, headers)) in attempts.iter().zip(&*seen) {
        let parent = TraceContext::parse(headers["traceparent"].to_str().unwrap(), None).unwrap();
        assert_eq!(parent.span_id().to_bytes().to_vec(), attempt.span_id);
        assert_eq!(parent.trace_id().to_bytes().to_vec(), work.trace_id);
        assert_eq!(attempt.parent_span_id, work.span_id);
        assert_eq!(attempt.kind, 3);
        assert_eq!(
            headers["x-correlation-id"],
            context.correlation().unwrap().as_str()
        );
        assert_eq!(headers["x-tenant-id"], "acme");
    }
    assert_eq!(attempts[0].status.as_ref().unwrap().code, 2);
    assert_eq!(
        text(&attempts[1], "http.request.resend_count").as_deref(),
        Some("1")
    );
    assert_eq!(
        text(&attempts[1], "http.response.status_code").as_deref(),
        Some("200")
    );
}
