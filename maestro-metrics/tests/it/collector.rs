//! An OTLP collector that does as the test says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::service::own_host;

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// What the collector does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    Accept,
    Answer(u16),
    Reject { spans: i64 },
    Slow(Duration),
    Hang,
    GrpcStatus(u32),
}

/// Listens until it is dropped.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<ExportTraceServiceRequest>>,
    headers: Mutex<Vec<HeaderMap>>,
    raw: Mutex<Vec<Bytes>>,
    connections: AtomicUsize,
}

impl Collector {
    pub(crate) async fn http(behaviour: Behaviour) -> Self {
        Self::start("127.0.0.1:0", behaviour, false).await
    }

    /// On port 4317 of an address of its own, because the port says that it is gRPC.
    pub(crate) async fn grpc(behaviour: Behaviour) -> Self {
        Self::start(&format!("{}:4317", own_host()), behaviour, true).await
    }

    async fn start(address: &str, behaviour: Behaviour, grpc: bool) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            behaviour: Mutex::new(behaviour),
            requests: Mutex::default(),
            headers: Mutex::default(),
            raw: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let state = Arc::clone(&serving);
                connections.spawn(async move {
                    let counted = Arc::clone(&state);
                    counted.connections.fetch_add(1, Ordering::Relaxed);
                    let service = service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move {
                            Ok::<_, std::convert::Infallible>(state.answer(request, grpc).await)
                        }
                    });
                    let io = TokioIo::new(stream);
                    if grpc {
                        let builder =
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(io, service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder.serve_connection(io, service).await;
                    }
                    counted.connections.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// Everything that was accepted.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let requests = self.state.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }

    pub(crate) fn span(&self, name: &str) -> Span {
        let spans = self.spans();
        let names: Vec<_> = spans.iter().map(|span| span.name.clone()).collect();
        spans
            .into_iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no span {name} among {names:?}"))
    }

    /// An attribute of who sent the first of what was accepted.
    pub(crate) fn resource(&self, key: &str) -> Option<String> {
        let requests = self.state.requests.lock().unwrap();
        let resource = requests.first()?.resource_spans.first()?.resource.clone()?;
        let pair = resource
            .attributes
            .into_iter()
            .find(|pair| pair.key == key)?;
        match pair.value?.value? {
            Value::StringValue(text) => Some(text),
            other => Some(format!("{other:?}")),
        }
    }

    /// Spans in everything that arrived, accepted or not, of each request over HTTP.
    pub(crate) fn offered(&self) -> Vec<usize> {
        let spans = |bytes: &Bytes| -> usize {
            let request = ExportTraceServiceRequest::decode(bytes.clone()).unwrap();
            let resources = request.resource_spans.iter();
            let scopes = resources.flat_map(|resource| &resource.scope_spans);
            scopes.map(|scope| scope.spans.len()).sum()
        };
        self.raw().iter().map(spans).collect()
    }

    /// Requests that arrived, whatever became of them.
    pub(crate) fn arrived(&self) -> usize {
        self.state.headers.lock().unwrap().len()
    }

    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.state.headers.lock().unwrap().clone()
    }

    /// Connections open now.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Every byte that arrived.
    pub(crate) fn raw(&self) -> Vec<Bytes> {
        self.state.raw.lock().unwrap().clone()
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>, grpc: bool) -> Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let bytes = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let packed = head.headers.get("content-encoding");
        let bytes = match packed.map(HeaderValue::as_bytes) {
            Some(b"gzip") => unpacked(&bytes),
            _ => bytes,
        };
        self.headers.lock().unwrap().push(head.headers);
        self.raw.lock().unwrap().push(bytes.clone());
        let behaviour = *self.behaviour.lock().unwrap();
        let mut answer = ExportTraceServiceResponse::default();
        match behaviour {
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Slow(pause) => tokio::time::sleep(pause).await,
            Behaviour::Answer(status) => {
                let mut response = Response::new(full(Bytes::from_static(b"no")));
                *response.status_mut() = status.try_into().unwrap();
                return response;
            }
            Behaviour::GrpcStatus(code) => return trailers_only(code),
            Behaviour::Reject { spans } => {
                answer.partial_success = Some(ExportTracePartialSuccess {
                    rejected_spans: spans,
                    error_message: "too old".to_owned(),
                });
            }
            Behaviour::Accept => {}
        }
        let expected = if grpc {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        } else {
            "/v1/traces"
        };
        if path != expected {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            return response;
        }
        let message = if grpc { bytes.slice(5..) } else { bytes };
        let decoded = ExportTraceServiceRequest::decode(message).unwrap();
        self.requests.lock().unwrap().push(decoded);
        let encoded = answer.encode_to_vec();
        if grpc {
            return with_trailers(&encoded);
        }
        Response::new(full(encoded.into()))
    }
}

fn unpacked(bytes: &[u8]) -> Bytes {
    let mut unpacked = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(bytes);
    std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
    unpacked.into()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn with_trailers(message: &[u8]) -> Response<Body> {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(Bytes::from(frame))),
        Ok(Frame::trailers(trailers)),
    ];
    grpc_response(BodyExt::boxed(StreamBody::new(Frames(frames.into_iter()))))
}

fn trailers_only(code: u32) -> Response<Body> {
    let mut response = grpc_response(full(Bytes::new()));
    response.headers_mut().insert("grpc-status", code.into());
    response
}

struct Frames<I>(I);

impl<I: Iterator + Unpin> futures_core::Stream for Frames<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

/// The text of an attribute.
pub(crate) fn text(span: &Span, key: &str) -> Option<String> {
    let pair = span.attributes.iter().find(|pair| pair.key == key)?;
    Some(match pair.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}
