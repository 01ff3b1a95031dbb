//! Calls to other services over HTTP: bounded in time, repeated where that is safe, stopped where
//! nobody answers, and part of the trace.

mod breaker;
mod retry;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::{Duration, Instant};

use axum::http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use axum::http::{Request, Response, Uri};
use parking_lot::Mutex;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{Instrument, Span};

use breaker::{Breaker, Policy, Transition};
use retry::Ending;

use crate::context::Context;
use crate::error::{Error, ErrorKind};
use crate::family::{Family, OVERFLOW};
use crate::handle::{Counter, Histogram};
use crate::metrics::{BREAKER_TRANSITIONS, HTTP_CLIENT_DURATION, HTTP_CLIENT_RETRIES};
use crate::propagation::SpanId;
use crate::registry::Registry;

/// Puts a deadline, retries, a circuit breaker for each target, the trace and metrics around an HTTP
/// client.
///
/// The client is any `tower` service from a request with a body that can be cloned (hyper-util's
/// `Client<_, Full<Bytes>>`). Targets are told apart by host and port.
///
/// ```
/// use std::time::Duration;
/// use maestro_metrics::{ClientLayer, Registry};
///
/// let layer = ClientLayer::new(&Registry::detached())
///     .deadline(Duration::from_secs(2))
///     .retries(1);
/// ```
///
/// A call is repeated (3 times at most, with growing, jittered waits) if its method is safe or it
/// carries [`Repeatable`], and if it got no answer, or 429, 502, 503 or 504; `Retry-After` is
/// followed as far as the deadline allows. The deadline (10 s) covers all attempts until the head of
/// the response. Five failures (no answer, or 5xx) within 30 s open the target's breaker: calls fail
/// at once with [`ErrorKind::Unavailable`], one probe goes through after 5 s, then after at most 60 s.
#[derive(Clone)]
pub struct ClientLayer {
    shared: Arc<Shared>,
    options: Options,
}

/// In a request's extensions: this call may be repeated although its method is not safe, because it
/// carries an idempotency key or does the same twice.
#[derive(Clone, Copy, Debug)]
pub struct Repeatable;

#[derive(Clone, Copy)]
struct Options {
    deadline: Duration,
    retries: u32,
    policy: Policy,
}

struct Shared {
    duration: Family<Histogram, 5>,
    retries: Family<Counter, 1>,
    transitions: Family<Counter, 2>,
    breakers: Mutex<HashMap<String, Arc<Mutex<Breaker>>>>,
}

/// Targets with a breaker of their own; who calls more hosts than this shares one.
const TARGETS: usize = 1_000;

impl ClientLayer {
    /// A layer with the platform's limits that records into `registry`.
    pub fn new(registry: &Registry) -> Self {
        Self {
            shared: Arc::new(Shared {
                duration: registry.family(&HTTP_CLIENT_DURATION),
                retries: registry.family(&HTTP_CLIENT_RETRIES),
                transitions: registry.family(&BREAKER_TRANSITIONS),
                breakers: Mutex::default(),
            }),
            options: Options {
                deadline: Duration::from_secs(10),
                retries: 3,
                policy: Policy {
                    failures: 5,
                    window: Duration::from_secs(30),
                    first_open: Duration::from_secs(5),
                    longest_open: Duration::from_mins(1),
                },
            },
        }
    }

    /// Longest time of a call with all its attempts, until the head of the response; 10 s otherwise.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// How often a call that may be repeated is; 3 otherwise, 0 = never.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Opens a target's breaker after `failures` within `window`, for at most `longest` between two
    /// probes; 5, 30 s and 60 s otherwise.
    #[must_use]
    pub fn breaker(mut self, failures: usize, window: Duration, longest: Duration) -> Self {
        self.options.policy = Policy {
            failures: failures.max(1),
            window,
            first_open: self.options.policy.first_open.min(longest),
            longest_open: longest,
        };
        self
    }
}

impl fmt::Debug for ClientLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer")
            .field("deadline", &self.options.deadline)
            .field("retries", &self.options.retries)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = ClientService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientService {
            inner,
            shared: Arc::clone(&self.shared),
            options: self.options,
        }
    }
}

/// What [`ClientLayer`] makes of a client.
#[derive(Clone)]
pub struct ClientService<S> {
    inner: S,
    shared: Arc<Shared>,
    options: Options,
}

impl<S> fmt::Debug for ClientService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientService").finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for ClientService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    S::Future: Send,
    B: Clone + Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Error>> + Send>>;

    /// Always ready: the client's own readiness is waited for within the deadline of a call.
    fn poll_ready(&mut self, _: &mut Poller<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = Call::new(&self.shared, self.options, &request);
        Box::pin(call.run(self.inner.clone(), request))
    }
}

/// One call with all its attempts.
struct Call {
    shared: Arc<Shared>,
    options: Options,
    breaker: Arc<Mutex<Breaker>>,
    method: &'static str,
    host: String,
    port: u16,
    /// Without what may be secret: user, password and query.
    target: String,
    repeatable: bool,
    deadline: Instant,
}

impl Call {
    fn new<B>(shared: &Arc<Shared>, options: Options, request: &Request<B>) -> Self {
        let uri = request.uri();
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let port = port(uri);
        Self {
            breaker: shared.breaker(format!("{host}:{port}"), options.policy),
            shared: Arc::clone(shared),
            options,
            method: crate::http::method(request.method()),
            target: format!("{host}:{port}{}", uri.path()),
            host,
            port,
            repeatable: retry::is_safe(request.method())
                || request.extensions().get::<Repeatable>().is_some(),
            deadline: Instant::now() + options.deadline,
        }
    }

    async fn run<S, B, R>(self, mut client: S, request: Request<B>) -> Result<Response<R>, Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        B: Clone,
    {
        let start = Instant::now();
        let mut attempt = 0;
        loop {
            self.admit()?;
            let (parts, body) = (request.headers().clone(), request.body().clone());
            let mut copy = Request::new(body);
            *copy.method_mut() = request.method().clone();
            *copy.uri_mut() = request.uri().clone();
            *copy.version_mut() = request.version();
            *copy.headers_mut() = parts;
            *copy.extensions_mut() = request.extensions().clone();
            let result = self.attempt(&mut client, copy, attempt).await;
            let ending = ending(&result);
            self.report(ending);
            let left = self.deadline.saturating_duration_since(Instant::now());
            let retries = self.options.retries;
            let pause = retry::wait(
                ending,
                self.repeatable,
                attempt + 1,
                retries,
                left,
                random(),
            );
            let Some(pause) = pause else {
                return result.map_err(|source| self.failed(start, attempt + 1, source));
            };
            drop(result);
            attempt += 1;
            self.shared.retries.with([&self.host]).increment();
            tokio::time::sleep(pause).await;
        }
    }

    /// One attempt in a span of its own.
    async fn attempt<S, B, R>(
        &self,
        client: &mut S,
        mut request: Request<B>,
        resend: u32,
    ) -> Result<Response<R>, Box<dyn StdError + Send + Sync>>
    where
        S: Service<Request<B>, Response = Response<R>>,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let span = tracing::info_span!(
            "http request",
            otel.name = self.method,
            otel.kind = "client",
            http.request.method = self.method,
            http.request.resend_count = resend,
            server.address = self.host,
            server.port = self.port,
            url.path = request.uri().path(),
            http.response.status_code = tracing::field::Empty,
            error.type = tracing::field::Empty,
            otel.status_code = tracing::field::Empty,
        );
        let start = Instant::now();
        let work = async {
            inject(request.headers_mut());
            let exchange = async {
                std::future::poll_fn(|cx| client.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                client.call(request).await.map_err(Into::into)
            };
            match tokio::time::timeout_at(self.deadline.into(), exchange).await {
                Ok(result) => result,
                Err(elapsed) => Err(elapsed.into()),
            }
        };
        let result = work.instrument(span.clone()).await;
        self.note(&span, start.elapsed(), &result);
        result
    }

    fn note<R>(
        &self,
        span: &Span,
        took: Duration,
        result: &Result<Response<R>, Box<dyn StdError + Send + Sync>>,
    ) {
        let (status, error) = match result {
            Ok(response) => {
                let status = response.status();
                span.record("http.response.status_code", status.as_u16());
                let failed = status.is_client_error() || status.is_server_error();
                (
                    status.as_str().to_owned(),
                    failed.then(|| status.as_str().to_owned()),
                )
            }
            Err(error) if error.is::<tokio::time::error::Elapsed>() => {
                (String::new(), Some("timeout".to_owned()))
            }
            Err(_) => (String::new(), Some("connection".to_owned())),
        };
        if let Some(error) = &error {
            span.record("error.type", error.as_str());
            span.record("otel.status_code", "error");
        }
        let port = self.port.to_string();
        let error = error.unwrap_or_default();
        let trace = span.in_scope(Context::current);
        self.shared
            .duration
            .with([self.method, &self.host, &port, &status, &error])
            .observe_traced(took, trace.trace());
    }

    fn admit(&self) -> Result<(), Error> {
        match self.breaker.lock().admit(Instant::now()) {
            Ok(transition) => {
                self.changed(transition);
                Ok(())
            }
            Err(left) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{} {} was not sent: its breaker is open after {} failures, the next probe is \
                     in {left:?}; look at the health of {}:{}",
                    self.method, self.target, self.options.policy.failures, self.host, self.port
                ),
            )),
        }
    }

    fn report(&self, ending: Ending) {
        let mut breaker = self.breaker.lock();
        let transition = if ending.is_failure() {
            breaker.failed(Instant::now())
        } else {
            breaker.succeeded()
        };
        drop(breaker);
        self.changed(transition);
    }

    fn changed(&self, transition: Option<Transition>) {
        let Some(transition) = transition else {
            return;
        };
        let target = format!("{}:{}", self.host, self.port);
        self.shared
            .transitions
            .with([&target, transition.as_str()])
            .increment();
        match transition {
            Transition::Opened => tracing::warn!(target_host = target, "breaker opened"),
            Transition::Closed => tracing::info!(target_host = target, "breaker closed"),
            Transition::Probing => tracing::debug!(target_host = target, "breaker probes"),
        }
    }

    fn failed(
        &self,
        start: Instant,
        attempts: u32,
        source: Box<dyn StdError + Send + Sync>,
    ) -> Error {
        let late = source.is::<tokio::time::error::Elapsed>();
        let what = if late {
            "no answer by the deadline"
        } else {
            "no answer"
        };
        let kind = if late {
            ErrorKind::Timeout
        } else {
            ErrorKind::Unavailable
        };
        Error::new(
            kind,
            format!(
                "{} {}: {what} after {:?} and {attempts} attempts (deadline {:?})",
                self.method,
                self.target,
                start.elapsed(),
                self.options.deadline
            ),
        )
        .with_source(source)
    }
}

impl Shared {
    fn breaker(&self, target: String, policy: Policy) -> Arc<Mutex<Breaker>> {
        let mut breakers = self.breakers.lock();
        let full = breakers.len() >= TARGETS && !breakers.contains_key(&target);
        let target = if full { OVERFLOW.to_owned() } else { target };
        let breaker = breakers
            .entry(target)
            .or_insert_with(|| Arc::new(Mutex::new(Breaker::new(policy))));
        Arc::clone(breaker)
    }
}

fn ending<R>(result: &Result<Response<R>, Box<dyn StdError + Send + Sync>>) -> Ending {
    match result {
        Ok(response) => Ending::Answered {
            status: response.status(),
            retry_after: retry_after(response.headers()),
        },
        Err(_) => Ending::Nothing,
    }
}

/// Seconds only; a date would need the clocks to agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

fn inject(headers: &mut HeaderMap) {
    Context::current().inject(|name, value| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    });
}

fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    })
}

fn random() -> f64 {
    u64::from_be_bytes(SpanId::random().to_bytes()) as f64 / u64::MAX as f64
}
