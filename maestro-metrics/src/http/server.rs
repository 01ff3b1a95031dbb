//! The layer around a service's routes.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::MatchedPath;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;
use tracing::{Instrument, Span};

use super::figures::{self, Error, Figures, Labels, UNMATCHED};
use super::server_span;
use super::tracked::{RequestSize, Tracked};
use crate::context::{CORRELATION_ID, Context};
use crate::guard::catch_panic;
use crate::handle::Tracked as Active;
use crate::propagation::TraceContext;
use crate::registry::Registry;

/// Measures and traces every request of a router: rate, errors and duration by matched route, bodies'
/// sizes, requests in flight, a server span that continues the caller's trace, the correlation id
/// (taken from `X-Correlation-Id` or new, on every log line and in the response), and panics of
/// handlers, which become a 500 and a counter.
///
/// Apply it with `Router::layer` after the routes, so that it sees which one matched:
/// ```
/// use axum::{Router, routing::get};
/// use maestro_metrics::{Registry, ServerLayer};
///
/// let registry = Registry::detached();
/// let app: Router = Router::new()
///     .route("/orders/{id}", get(|| async { "here" }))
///     .layer(ServerLayer::new(&registry));
/// ```
///
/// The duration ends with the head of the response; the span ends with its body, so that a stream
/// is a long span but no slow request. A client that goes away is counted with
/// `error_type="cancelled"` and without a status.
#[derive(Clone)]
pub struct ServerLayer {
    figures: Arc<Figures>,
}

impl ServerLayer {
    /// A layer that records into `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            figures: Arc::new(Figures::new(registry)),
        }
    }
}

impl fmt::Debug for ServerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ServerLayer {
    type Service = ServerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ServerService {
            inner,
            figures: Arc::clone(&self.figures),
        }
    }
}

/// What [`ServerLayer`] makes of a service.
#[derive(Clone)]
pub struct ServerService<S> {
    inner: S,
    figures: Arc<Figures>,
}

impl<S> fmt::Debug for ServerService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerService").finish_non_exhaustive()
    }
}

impl<S> Service<Request<Body>> for ServerService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Poller<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let start = Instant::now();
        // The clone that was asked whether it is ready is the one that is called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);

        let context = incoming(request.headers());
        let span = context.span(server_span::make);
        let trace = server_span::began(&span, &request);
        let (parts, body) = request.into_parts();
        let (size, body) = RequestSize::of(body);
        let request = Request::from_parts(parts, body);
        let mut call = Call::new(&self.figures, &request, start, span.clone(), trace, size);

        let scope = context.clone();
        let work = async move {
            let mut response = match catch_panic(async { inner.call(request).await }).await {
                Ok(Ok(response)) => call.answered(response),
                Err(panic) => call.panicked(&panic),
            };
            if let Some(id) = context.correlation()
                && let Ok(value) = HeaderValue::from_str(id.as_str())
            {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(CORRELATION_ID), value);
            }
            Ok(response)
        };
        Box::pin(scope.scope(work).instrument(span))
    }
}

fn incoming(headers: &HeaderMap) -> Context {
    Context::extract(|name| headers.get(name).and_then(|value| value.to_str().ok()))
        .or_new_correlation()
}

/// One request from its head to the end of its response; dropped before, the client went away.
struct Call {
    figures: Arc<Figures>,
    route: Option<MatchedPath>,
    method: &'static str,
    scheme: &'static str,
    protocol: &'static str,
    start: Instant,
    span: Span,
    trace: Option<TraceContext>,
    size: RequestSize,
    active: Option<Active>,
    answered: bool,
}

impl Call {
    fn new(
        figures: &Arc<Figures>,
        request: &Request<Body>,
        start: Instant,
        span: Span,
        trace: Option<TraceContext>,
        size: RequestSize,
    ) -> Self {
        let method = figures::method(request.method());
        let scheme = match request.uri().scheme_str() {
            Some("https") => "https",
            _ => "http",
        };
        Self {
            route: request.extensions().get::<MatchedPath>().cloned(),
            method,
            scheme,
            protocol: figures::protocol(request.version()),
            start,
            span,
            trace,
            size,
            active: Some(figures.active(method, scheme).track()),
            answered: false,
            figures: Arc::clone(figures),
        }
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or(UNMATCHED, MatchedPath::as_str)
    }

    fn finish(&mut self, status: u16, error: Error) -> Arc<figures::Resolved> {
        self.answered = true;
        let resolved = self.figures.resolve(Labels {
            route: self.route(),
            method: self.method,
            scheme: self.scheme,
            protocol: self.protocol,
            status,
            error,
        });
        resolved.request(self.start.elapsed(), self.size.bytes(), self.trace.as_ref());
        server_span::ended(&self.span, self.method, self.route(), status, error);
        resolved
    }

    fn answered(&mut self, response: Response<Body>) -> Response<Body> {
        let status = response.status();
        let error = if status.is_server_error() {
            Error::Status
        } else {
            Error::None
        };
        let resolved = self.finish(status.as_u16(), error);
        if let Some(exact) = http_body::Body::size_hint(response.body()).exact() {
            resolved.response(exact);
            return response;
        }
        // In flight, and in its span, as long as it is being sent.
        let held = (self.active.take(), self.span.clone());
        response.map(|body| {
            Body::new(Tracked::new(body, move |bytes| {
                resolved.response(bytes);
                drop(held);
            }))
        })
    }

    fn panicked(&mut self, panic: &str) -> Response<Body> {
        self.figures.panicked(self.route());
        tracing::error!(
            http.route = self.route(),
            panic,
            "a handler panicked; the request was answered with 500"
        );
        let resolved = self.finish(500, Error::Panic);
        resolved.response(INTERNAL.len() as u64);
        let mut response = Response::new(Body::from(INTERNAL));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

const INTERNAL: &str = r#"{"error":"internal error"}"#;

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.finish(0, Error::Cancelled);
        }
    }
}
