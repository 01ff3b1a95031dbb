//! The thread that delivers spans. It has its own runtime, so that neither a busy nor a
//! current-thread runtime of the service matters to it, and no subscriber, so that its own work is
//! not traced.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::dispatcher::WeakDispatch;

use super::endpoint::Endpoint;
use super::queue::{BATCH, DropReason, Queue};
use super::request::{self, Resource};
use super::transport::{Outcome, Transport};
use crate::error::{Error, ErrorKind};
use crate::handle::{Gauge, Histogram};
use crate::metrics::{EXPORT_DURATION, EXPORTER_STATE};
use crate::registry::Registry;
use crate::span::SpanRecord;
use crate::telemetry::SecretHeaders;

/// What an exporter needs to know.
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) headers: Option<SecretHeaders>,
    pub(crate) timeout: Duration,
    pub(crate) resource: Resource,
}

/// Ends its thread when dropped; what is queued then is lost and counted. To deliver it, call
/// [`Exporter::shutdown`].
pub(crate) struct Exporter {
    queue: Arc<Queue>,
    /// The deadline once the service ends; a closed channel ends at once.
    stop: watch::Sender<Option<Instant>>,
    ended: oneshot::Receiver<Option<String>>,
    /// Where the exporter's own log lines go; set once the subscriber exists.
    log: Arc<OnceLock<WeakDispatch>>,
}

impl Exporter {
    pub(crate) fn start(
        settings: Settings,
        queue: &Arc<Queue>,
        registry: &Registry,
    ) -> Result<Self, Error> {
        let (stop, stopping) = watch::channel(None);
        let (end, ended) = oneshot::channel();
        let log = Arc::new(OnceLock::new());
        let mut worker = Worker {
            shown: settings.endpoint.to_string(),
            queue: Arc::clone(queue),
            stop: stopping,
            resource: settings.resource.clone(),
            buffer: Vec::new(),
            figures: Figures::new(registry),
            complaints: Complaints {
                log: Arc::clone(&log),
                last: None,
                suppressed: 0,
            },
            last_failure: None,
        };
        std::thread::Builder::new()
            .name("maestro-otlp".to_owned())
            .spawn(move || {
                let quiet = tracing::Dispatch::none();
                tracing::dispatcher::with_default(&quiet, || worker.run(settings));
                let _ = end.send(worker.last_failure);
            })
            .map_err(|error| {
                Error::new(
                    ErrorKind::Resource,
                    "starting the thread that exports traces failed: look at the process's limit \
                     of threads",
                )
                .with_source(error)
            })?;
        Ok(Self {
            queue: Arc::clone(queue),
            stop,
            ended,
            log,
        })
    }

    pub(crate) fn log_to(&self, dispatch: &tracing::Dispatch) {
        let _ = self.log.set(dispatch.downgrade());
    }

    /// Delivers what is queued until the deadline; returns why it could not, if it could not.
    pub(crate) async fn shutdown(self, deadline: Instant) -> Option<String> {
        let _ = self.stop.send(Some(deadline));
        // The worker keeps the deadline itself; the grace is for its thread to be scheduled.
        let limit = deadline + Duration::from_millis(250);
        match tokio::time::timeout_at(limit.into(), self.ended).await {
            Ok(Ok(failure)) => failure,
            Ok(Err(_)) => {
                self.queue.abandon();
                Some("the export thread ended early".to_owned())
            }
            Err(_) => {
                self.queue.abandon();
                Some("the export thread did not end by the deadline".to_owned())
            }
        }
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

struct Worker {
    shown: String,
    queue: Arc<Queue>,
    stop: watch::Receiver<Option<Instant>>,
    resource: Resource,
    buffer: Vec<u8>,
    figures: Figures,
    complaints: Complaints,
    last_failure: Option<String>,
}

/// Longest time a span waits for others to fill a batch.
const LINGER: Duration = Duration::from_secs(1);
/// Attempts to deliver one batch; with the waits between them about 15 s, during which the queue
/// fills and then drops.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

impl Worker {
    fn run(&mut self, settings: Settings) {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return self.give_up(&error),
        };
        runtime.block_on(async {
            // The client is made here, because it takes the runtime it finds.
            match Transport::new(
                settings.endpoint,
                settings.headers.as_ref(),
                settings.timeout,
            ) {
                Ok(transport) => self.work(&transport).await,
                Err(error) => self.give_up(&error),
            }
        });
        // Connections that hang must not hold the thread.
        runtime.shutdown_background();
    }

    fn give_up(&mut self, error: &dyn std::error::Error) {
        let left = self.queue.close().len() as u64;
        self.queue.lost(DropReason::Unreachable, left);
        self.fail(&format!("the exporter cannot work: {error}"));
    }

    async fn work(&mut self, transport: &Transport) {
        let queue = Arc::clone(&self.queue);
        loop {
            let mut stop = self.stop.clone();
            let stopped = tokio::select! {
                () = queue.ready.notified() => false,
                () = tokio::time::sleep(LINGER) => false,
                changed = stop.changed() => changed.is_err() || stop.borrow().is_some(),
            };
            let deadline = *self.stop.borrow();
            if stopped || deadline.is_some() {
                let left = self.queue.close();
                return self.finish(transport, left, deadline).await;
            }
            let mut spans = self.queue.take().into_iter().peekable();
            while spans.peek().is_some() {
                let batch: Vec<_> = spans.by_ref().take(BATCH).collect();
                self.deliver(transport, &batch).await;
                if self.stop.has_changed().unwrap_or(true) {
                    let mut left: Vec<_> = spans.collect();
                    left.extend(self.queue.close());
                    let deadline = *self.stop.borrow();
                    return self.finish(transport, left, deadline).await;
                }
            }
        }
    }

    /// The last spans: one attempt for each batch, and none after a first failure, so that a
    /// collector that is away does not hold up the end of the service.
    async fn finish(
        &mut self,
        transport: &Transport,
        spans: Vec<SpanRecord>,
        deadline: Option<Instant>,
    ) {
        let mut spans = spans.into_iter().peekable();
        while spans.peek().is_some() {
            let batch: Vec<_> = spans.by_ref().take(BATCH).collect();
            let Some(deadline) = deadline.filter(|deadline| *deadline > Instant::now()) else {
                self.lose(batch.len() + spans.count(), "the deadline was reached");
                return;
            };
            request::encode(&self.resource, &batch, &mut self.buffer);
            let attempt = self.figures.attempt(transport, &self.buffer);
            let why = match tokio::time::timeout_at(deadline.into(), attempt).await {
                Ok(Outcome::Delivered(partial)) => {
                    self.delivered(&batch, &partial);
                    continue;
                }
                Ok(Outcome::Retry { why, .. } | Outcome::Refused { why }) => why,
                Err(_) => "no answer by the deadline".to_owned(),
            };
            self.lose(batch.len() + spans.count(), &why);
            return;
        }
    }

    fn lose(&mut self, spans: usize, why: &str) {
        self.queue.lost(DropReason::Shutdown, spans as u64);
        self.last_failure = Some(format!("{}: {why}", self.shown));
    }

    async fn deliver(&mut self, transport: &Transport, batch: &[SpanRecord]) {
        request::encode(&self.resource, batch, &mut self.buffer);
        let mut wait = FIRST_WAIT;
        for attempt in 1..=ATTEMPTS {
            let mut stop = self.stop.clone();
            let outcome = tokio::select! {
                outcome = self.figures.attempt(transport, &self.buffer) => outcome,
                () = cut_off(&mut stop) => {
                    self.queue.lost(DropReason::Shutdown, batch.len() as u64);
                    return self.fail("no answer by the deadline of the shutdown");
                }
            };
            match outcome {
                Outcome::Delivered(partial) => return self.delivered(batch, &partial),
                Outcome::Refused { why } => {
                    self.queue.lost(DropReason::Refused, batch.len() as u64);
                    return self.fail(&why);
                }
                Outcome::Retry { why, after } => {
                    self.fail(&why);
                    if attempt == ATTEMPTS {
                        break;
                    }
                    // Half fixed, half random: replicas do not come back together.
                    let pause = after.unwrap_or_else(|| wait / 2 + wait.mul_f64(fraction() / 2.0));
                    wait = (wait * 2).min(LONGEST_WAIT);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = stop.changed() => {
                            // One more attempt is made with the others of the shutdown.
                            return self.once_more(transport, batch).await;
                        }
                    }
                }
            }
        }
        self.queue.lost(DropReason::Unreachable, batch.len() as u64);
    }

    async fn once_more(&mut self, transport: &Transport, batch: &[SpanRecord]) {
        let deadline = *self.stop.borrow();
        self.finish(transport, batch.to_vec(), deadline).await;
    }

    fn delivered(&mut self, batch: &[SpanRecord], partial: &request::PartialSuccess) {
        let rejected = partial.rejected.min(batch.len() as u64);
        self.queue.exported(batch.len() as u64 - rejected);
        self.figures.state(State::Delivering);
        if rejected > 0 {
            self.queue.lost(DropReason::Rejected, rejected);
            let why = format!("rejected {rejected} spans: {}", partial.message);
            self.complaints.complain(&self.shown, &why);
        } else {
            self.last_failure = None;
        }
    }

    fn fail(&mut self, why: &str) {
        self.figures.state(State::Failing);
        self.last_failure = Some(format!("{}: {why}", self.shown));
        self.complaints.complain(&self.shown, why);
    }
}

/// Ends when the service has to end now; never, as long as it runs.
async fn cut_off(stop: &mut watch::Receiver<Option<Instant>>) {
    let deadline = match stop.wait_for(Option::is_some).await {
        Ok(deadline) => *deadline,
        // Dropped without a shutdown.
        Err(_) => None,
    };
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

fn fraction() -> f64 {
    let id = crate::propagation::SpanId::random().to_bytes();
    u64::from_be_bytes(id) as f64 / u64::MAX as f64
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Delivering,
    Failing,
}

struct Figures {
    states: [(State, Gauge); 3],
    delivered: Histogram,
    retry: Histogram,
    refused: Histogram,
}

impl Figures {
    fn new(registry: &Registry) -> Self {
        let states = registry.family(&EXPORTER_STATE);
        let durations = registry.family(&EXPORT_DURATION);
        let figures = Self {
            states: [
                (State::Idle, states.with(["idle"])),
                (State::Delivering, states.with(["delivering"])),
                (State::Failing, states.with(["failing"])),
            ],
            delivered: durations.with(["delivered"]),
            retry: durations.with(["retry"]),
            refused: durations.with(["refused"]),
        };
        figures.state(State::Idle);
        figures
    }

    fn state(&self, state: State) {
        for (other, gauge) in &self.states {
            gauge.set(f64::from(u8::from(*other == state)));
        }
    }

    async fn attempt(&self, transport: &Transport, message: &[u8]) -> Outcome {
        let start = Instant::now();
        let outcome = transport.send(message).await;
        let histogram = match &outcome {
            Outcome::Delivered(_) => &self.delivered,
            Outcome::Retry { .. } => &self.retry,
            Outcome::Refused { .. } => &self.refused,
        };
        histogram.observe_duration(start.elapsed());
        outcome
    }
}

/// One line a minute, whatever happens.
struct Complaints {
    log: Arc<OnceLock<WeakDispatch>>,
    last: Option<Instant>,
    suppressed: u64,
}

const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

impl Complaints {
    fn complain(&mut self, endpoint: &str, why: &str) {
        let due = self
            .last
            .is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY);
        let Some(dispatch) = self
            .log
            .get()
            .and_then(WeakDispatch::upgrade)
            .filter(|_| due)
        else {
            self.suppressed += 1;
            return;
        };
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::warn!(
                endpoint,
                reason = why,
                earlier = self.suppressed,
                "exporting traces fails; spans are queued and then dropped, requests are not \
                 affected: look at the collector and at maestro_traces_spans_dropped_total"
            );
        });
        self.last = Some(Instant::now());
        self.suppressed = 0;
    }
}
