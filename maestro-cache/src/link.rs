//! The way to the server: supervised connections, a deadline around every call, a breaker in front.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use maestro_metrics::Context;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backoff;
use crate::breaker::{Breaker, Transition};
use crate::clock::Clock;
use crate::config::CacheConfig;
use crate::connection::{Connection, Event, Failure, refusal};
use crate::error::{Error, ErrorKind};
use crate::lag::Lag;
use crate::metrics::{Metrics, Operation};

/// Commands in a row without an answer after which a connection is given up: the peer hangs, and a
/// new connection finds out whether the server does.
const TIMEOUTS_IN_A_ROW: u32 = 3;

/// One command.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) command: Cmd,
    /// Sent again, once, when the connection is lost before the answer: only what may run twice.
    pub(crate) repeatable: bool,
}

/// Supervised connections to one server.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: CacheConfig,
    pub(crate) clock: Arc<Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lag: Lag,
    breaker: Breaker,
    slots: Box<[Slot]>,
    next: AtomicUsize,
    last_error: Mutex<Option<Error>>,
    opened: Notify,
}

/// A place for one connection.
#[derive(Debug)]
struct Slot {
    live: RwLock<Option<Arc<Live>>>,
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct Live {
    connection: Connection,
    /// Answers missed in a row.
    missed: AtomicU32,
    /// Asks the supervisor for another connection.
    replace: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first attempt since the start or the loss is under way: worth waiting for.
    Connecting,
    Up,
    /// An attempt has failed: callers are told at once.
    Down,
}

impl Link {
    pub(crate) fn new(config: CacheConfig, clock: Arc<Clock>, metrics: Arc<Metrics>) -> Self {
        let slot = || Slot {
            live: RwLock::new(None),
            state: watch::Sender::new(State::Connecting),
        };
        Self {
            slots: (0..config.connections.max(1)).map(|_| slot()).collect(),
            config,
            clock,
            metrics,
            lag: Lag::default(),
            breaker: Breaker::default(),
            next: AtomicUsize::new(0),
            last_error: Mutex::new(None),
            opened: Notify::new(),
        }
    }

    /// A link with one connection, to a double, and nobody who makes another.
    #[cfg(test)]
    pub(crate) async fn over(double: Arc<dyn crate::connection::Double>) -> Arc<Self> {
        let pairs = [
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_CACHE_URL", "redis://double/0"),
        ];
        let mut config: CacheConfig = maestro_config::Environment::from_pairs(pairs)
            .read()
            .unwrap();
        config.double = Some(double);
        let metrics = Metrics::new(&maestro_metrics::Registry::detached(), &config);
        let deadline = Instant::now() + config.connect_timeout;
        let connection = Connection::open(&config, deadline, |_| {}).await.unwrap();
        let link = Self::new(config, Arc::new(Clock::start()), Arc::new(metrics));
        if let Some(slot) = link.slots.first() {
            *slot.live.write() = Some(Arc::new(Live {
                connection,
                missed: AtomicU32::new(0),
                replace: Arc::default(),
            }));
            slot.state.send_replace(State::Up);
        }
        Arc::new(link)
    }

    /// Whether a call has a chance: costs two loads.
    pub(crate) fn is_up(&self) -> bool {
        !self.breaker.is_open()
            && self
                .slots
                .iter()
                .any(|slot| *slot.state.borrow() != State::Down)
    }

    pub(crate) fn last_error(&self) -> Option<Error> {
        self.last_error.lock().clone()
    }

    /// Sends a command and waits for the answer, at most for the configured time.
    ///
    /// Dropping the future does not take the command back.
    pub(crate) async fn query(&self, request: &Request) -> Result<Value, Error> {
        let attempt = async |started| self.attempt(request, started, 1).await;
        self.observed(request.operation, attempt).await
    }

    /// An operation of a caller with its span and its time, unless the breaker is open.
    pub(crate) async fn observed<T>(
        &self,
        operation: Operation,
        attempt: impl AsyncFnOnce(Instant) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.breaker.is_open() {
            // Decided without a span or an observation: this is the fast path of an outage.
            return Err(self.away(operation, "the breaker is open"));
        }
        let span = tracing::info_span!(
            "redis",
            otel.name = operation.as_str(),
            otel.kind = "client",
            db.system.name = "redis",
            db.operation.name = operation.as_str(),
            error.type = tracing::field::Empty,
        );
        let started = Instant::now();
        let answer = attempt(started).instrument(span.clone()).await;
        let elapsed = started.elapsed();
        match &answer {
            Ok(_) => {
                if let Some(histogram) = self.metrics.succeeded(operation) {
                    histogram.observe_duration(elapsed);
                }
            }
            Err(error) => {
                span.record("error.type", error.kind().as_str());
                let code = server_code(error).unwrap_or_default();
                let trace = span.in_scope(Context::current);
                self.metrics
                    .failed(operation, code, error.kind())
                    .observe_traced(elapsed, trace.trace());
            }
        }
        answer
    }

    /// Sends a command on behalf of so many calls, the first of which began at `started`.
    pub(crate) async fn attempt(
        &self,
        request: &Request,
        started: Instant,
        calls: u32,
    ) -> Result<Value, Error> {
        let deadline = started + self.config.command_timeout;
        let mut again = request.repeatable;
        loop {
            let live = self.live(request.operation, deadline).await?;
            match live.connection.send(&request.command, deadline).await {
                Ok(value) => {
                    if live.missed.load(Ordering::Relaxed) != 0 {
                        live.missed.store(0, Ordering::Relaxed);
                    }
                    return Ok(value);
                }
                Err(Failure::Lost(_)) if again => again = false,
                Err(failure) => {
                    return Err(self.failed(request.operation, &live, failure, calls));
                }
            }
        }
    }

    /// A connection, after a short wait while the first attempt is under way.
    async fn live(&self, operation: Operation, deadline: Instant) -> Result<Arc<Live>, Error> {
        let count = self.slots.len();
        // With one connection there is nothing to take turns about, and a line of memory less that
        // processors fight over.
        let first = match count {
            1 => 0,
            _ => self.next.fetch_add(1, Ordering::Relaxed),
        };
        for index in 0..count {
            if let Some(slot) = self.slots.get((first + index) % count)
                && let Some(live) = slot.live.read().as_ref()
            {
                return Ok(Arc::clone(live));
            }
        }
        let Some(slot) = self.slots.get(first % count) else {
            return Err(self.away(operation, "there is no connection"));
        };
        let mut state = slot.state.subscribe();
        let settled = state.wait_for(|state| *state != State::Connecting);
        let settled = timeout_at(deadline, settled).await.is_ok();
        let live = slot.live.read().as_ref().map(Arc::clone);
        live.ok_or_else(|| {
            let why = if settled {
                "there is no connection"
            } else {
                "the connection was not made in time"
            };
            self.away(operation, why)
        })
    }

    fn failed(&self, operation: Operation, live: &Live, failure: Failure, calls: u32) -> Error {
        let error = match failure {
            Failure::Timeout => {
                let before = live.missed.fetch_add(calls, Ordering::Relaxed);
                if before.saturating_add(calls) >= TIMEOUTS_IN_A_ROW {
                    live.replace.notify_one();
                }
                Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "{} on Redis at {} was not answered within {:?}: look at the server's load and slow log",
                        operation.as_str(),
                        self.config.server(),
                        self.config.command_timeout
                    ),
                )
            }
            Failure::Lost(error) | Failure::Refused(error) => {
                refusal(operation.as_str(), &self.config, error)
            }
        };
        match error.kind() {
            ErrorKind::Timeout | ErrorKind::Loading => {
                (0..calls).for_each(|_| self.note_failure());
            }
            // The name may lead to another server by now.
            ErrorKind::ReadOnly => live.replace.notify_one(),
            _ => {}
        }
        *self.last_error.lock() = Some(error.clone());
        error
    }

    /// Makes every connection anew: the server is not the primary any more.
    pub(crate) fn replace_connections(&self) {
        for slot in &self.slots {
            if let Some(live) = slot.live.read().as_ref() {
                live.replace.notify_one();
            }
        }
    }

    fn away(&self, operation: Operation, why: &str) -> Error {
        let server = self.config.server();
        let context = format!(
            "{} was not sent to Redis at {server}: {why}",
            operation.as_str()
        );
        match self.last_error.lock().clone() {
            Some(cause) => Error::with_source(ErrorKind::Unavailable, context, cause),
            None => Error::new(ErrorKind::Unavailable, context),
        }
    }

    pub(crate) fn note_failure(&self) {
        let opened = self.breaker.failure(self.clock.elapsed(), fastrand::f64());
        if opened == Some(Transition::Opened) {
            tracing::warn!(
                server = %self.config.server(),
                "breaker opened: Redis does not answer, calls are decided without it"
            );
            self.metrics.breaker(true);
            self.opened.notify_waiters();
        }
    }

    pub(crate) fn note_answer(&self) {
        if self.breaker.answered() == Some(Transition::Closed) {
            self.metrics.breaker(false);
            tracing::info!(server = %self.config.server(), "breaker closed: Redis answers again");
        }
    }

    /// Keeps the connection of one place alive until `stop`.
    pub(crate) async fn supervise(self: Arc<Self>, index: usize, stop: CancellationToken) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let mut attempt = 0;
        let mut since = Instant::now();
        loop {
            let replace = Arc::new(Notify::new());
            let on_event = {
                let replace = Arc::clone(&replace);
                move |event| {
                    if matches!(event, Event::Lost) {
                        replace.notify_one();
                    }
                }
            };
            let deadline = Instant::now() + self.config.connect_timeout;
            let opened = tokio::select! {
                () = stop.cancelled() => break,
                opened = Connection::open(&self.config, deadline, on_event) => opened,
            };
            match opened {
                Ok(connection) => {
                    if attempt > 0 {
                        let outage = since.elapsed();
                        tracing::info!(server = %self.config.server(), ?outage, "connected to Redis");
                    }
                    self.note_answer();
                    let live = Arc::new(Live {
                        connection,
                        missed: AtomicU32::new(0),
                        replace,
                    });
                    *slot.live.write() = Some(Arc::clone(&live));
                    slot.state.send_replace(State::Up);
                    self.metrics.connected.increment();
                    let stopped = self.until_lost(&live, &stop).await;
                    *slot.live.write() = None;
                    self.metrics.connected.decrement();
                    if stopped {
                        break;
                    }
                    slot.state.send_replace(State::Connecting);
                    self.note_failure();
                    tracing::warn!(server = %self.config.server(), "connection to Redis lost");
                    attempt = 0;
                    since = Instant::now();
                }
                Err(error) => {
                    if attempt == 0 {
                        tracing::warn!(%error, "Redis cannot be reached; trying again in the background");
                    }
                    *self.last_error.lock() = Some(error);
                    self.note_failure();
                    slot.state.send_replace(State::Down);
                    attempt += 1;
                }
            }
            let pause = backoff::pause(attempt, since.elapsed(), fastrand::f64());
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
            }
        }
        slot.state.send_replace(State::Down);
    }

    /// Waits until the connection is to be replaced, and meanwhile probes for an open breaker; true
    /// when asked to stop.
    async fn until_lost(&self, live: &Live, stop: &CancellationToken) -> bool {
        loop {
            // Made before the breaker is looked at, so that its opening is not missed.
            let opened = self.opened.notified();
            let probe = self.breaker.next_probe().map(|due| {
                let pause = due.saturating_sub(self.clock.elapsed());
                Instant::now() + pause.min(backoff::MAX_PROBE)
            });
            tokio::select! {
                () = stop.cancelled() => return true,
                () = live.replace.notified() => return false,
                () = opened => continue,
                () = async { sleep_until(probe.unwrap_or_else(Instant::now)).await }, if probe.is_some() => {}
            }
            let deadline = Instant::now() + self.config.command_timeout;
            match live.connection.send(&redis::cmd("PING"), deadline).await {
                Ok(_) => self.note_answer(),
                Err(_) => return false,
            }
        }
    }

    /// Waits for the outcome of the first attempt.
    pub(crate) async fn settled(&self) {
        let Some(slot) = self.slots.first() else {
            return;
        };
        let mut state = slot.state.subscribe();
        // The sender lives as long as this link.
        let _ = state.wait_for(|state| *state != State::Connecting).await;
    }
}

/// The server's own word for an error (`NOPERM`).
fn server_code(error: &Error) -> Option<&str> {
    error.cause::<redis::RedisError>()?.code()
}
