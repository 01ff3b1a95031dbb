//! A subscription at work: one task that cannot end silently.
//!
//! It opens a channel, declares what the subscription needs, consumes, and starts over with
//! jittered backoff whenever that ends for any reason. Handlers run as tasks of their own, owned by
//! it across channels, so that a lost connection neither kills a handler nor lets more run than the
//! subscription allows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use maestro_metrics::Tracked;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::amqp::chain;
use crate::attendance::Attendance;
use crate::backoff::Backoff;
use crate::batch::{self, BatchHandler};
use crate::client::Inner;
use crate::delivery::{self, Desk};
use crate::error::{Error, ErrorKind};
use crate::foreign::Foreign;
use crate::handler::ErasedHandler;
use crate::headers;
use crate::in_flight::InFlight;
use crate::intake::{Handling, Intake, Job};
use crate::metrics::QueueMetrics;
use crate::ordered;
use crate::running::{ConsumerState, Drained};
use crate::topology::{Binding, Topology};
use crate::transport::{Deliveries, Incoming};
use crate::trouble::Trouble;

/// Everything a subscription is, valid once.
pub(crate) struct Spec {
    pub(crate) name: Arc<str>,
    pub(crate) queue: String,
    pub(crate) dead_letter_queue: String,
    pub(crate) topology: Topology,
    pub(crate) retired: Vec<Binding>,
    pub(crate) handlers: HashMap<&'static str, ErasedHandler>,
    /// Of a subscription that handles in batches, which has no other handler.
    pub(crate) batch: Option<(&'static str, BatchHandler)>,
    pub(crate) handling: Handling,
    /// In order: an event that failed on every attempt is tried on, while its key waits.
    pub(crate) parks_keys: bool,
    pub(crate) in_flight: InFlight,
    pub(crate) attendance: Attendance,
    pub(crate) prefetch: u16,
    pub(crate) concurrency: usize,
    pub(crate) handler_timeout: Duration,
    pub(crate) metrics: QueueMetrics,
}

pub(crate) struct ConsumerTask {
    inner: Arc<Inner>,
    spec: Arc<Spec>,
    state: watch::Sender<ConsumerState>,
    drain: CancellationToken,
    trouble: Arc<Mutex<Trouble>>,
    slots: Arc<Semaphore>,
    intake: Intake,
    /// Each tells the key of a job that was in order.
    handlers: JoinSet<Option<String>>,
    last_alive: Instant,
}

/// Why consuming on one channel ended.
enum End {
    Draining(Box<dyn Deliveries>),
    Lost(String),
}

impl ConsumerTask {
    pub(crate) fn new(
        inner: Arc<Inner>,
        spec: Arc<Spec>,
        state: watch::Sender<ConsumerState>,
        drain: CancellationToken,
    ) -> Self {
        Self {
            inner,
            slots: Arc::new(Semaphore::new(spec.concurrency)),
            intake: Intake::new(spec.handling),
            spec,
            state,
            drain,
            trouble: Arc::new(Mutex::new(Trouble::new())),
            handlers: JoinSet::new(),
            last_alive: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) -> Drained {
        let mut backoff = Backoff::reconnect();
        let drain = self.drain.clone();
        let drained = loop {
            let opened = tokio::select! {
                () = drain.cancelled() => break self.finish(None).await,
                opened = self.open() => opened,
            };
            let (reason, pause) = match opened {
                Ok(deliveries) => {
                    let since = Instant::now();
                    match self.consume(deliveries).await {
                        End::Draining(deliveries) => break self.finish(Some(deliveries)).await,
                        End::Lost(reason) => {
                            if since.elapsed() > STABLE {
                                backoff.reset();
                            }
                            (reason, backoff.next())
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Closed => break self.finish(None).await,
                Err(error) => {
                    let reason = format!("{error}: {}", chain(&error));
                    // Nothing mends these by itself within seconds.
                    let least = match error.kind() {
                        ErrorKind::Conflict | ErrorKind::Denied => SLOW_RETRY,
                        ErrorKind::Internal => HARMFUL_RETRY,
                        _ => Duration::ZERO,
                    };
                    (reason, backoff.next().max(least))
                }
            };
            tracing::warn!(
                queue = self.spec.queue,
                reason,
                "the consumer is interrupted; trying on"
            );
            self.state.send_replace(ConsumerState::Interrupted(reason));
            // Void with their channel.
            self.intake = Intake::new(self.spec.handling);
            if self.spec.handling == Handling::Ordered {
                // Nothing of a key begins while an earlier one of it runs.
                self.finish_handlers(Instant::now() + self.spec.handler_timeout)
                    .await;
            }
            self.idle(pause).await;
        };
        self.state.send_replace(ConsumerState::Stopped);
        drained
    }

    async fn open(&mut self) -> Result<Box<dyn Deliveries>, Error> {
        let spec = &self.spec;
        let opening = self.inner.broker.open(
            &spec.topology,
            &spec.queue,
            spec.prefetch,
            &self.inner.consumer_tag,
        );
        tokio::pin!(opening);
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        loop {
            tokio::select! {
                opened = &mut opening => return opened,
                // Waiting for the broker is no sign of life.
                _ = alive.tick() => spec.metrics.last_alive.set(self.last_alive.elapsed().as_secs_f64()),
            }
        }
    }

    /// Consumes on one channel until it ends or the subscription is drained.
    async fn consume(&mut self, mut deliveries: Box<dyn Deliveries>) -> End {
        let foreign = Foreign::new(&self.inner, &self.spec);
        self.show(foreign.missing());
        let mut foreign = Box::pin(foreign.progress());
        let attendance = self.spec.attendance.clone();
        attendance.begin();
        let missed = attendance.missed();
        tokio::pin!(missed);
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut slots: Option<BoxFuture<'static, OwnedSemaphorePermit>> = None;
        loop {
            if slots.is_none() && self.intake.is_ready(Instant::now()) {
                match self.free_slot() {
                    Some(permit) => {
                        self.start(permit);
                        continue;
                    }
                    None => slots = Some(Box::pin(self.take_slots())),
                }
            }
            let due = self.intake.due();
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return End::Draining(deliveries),
                permit = taken(&mut slots) => {
                    slots = None;
                    self.start(permit);
                }
                delivery = deliveries.next(), if self.intake.wants_more() => match delivery {
                    Some(Ok(mut incoming)) => {
                        self.spec.metrics.consumed.increment();
                        attendance.busy();
                        incoming.held = self.hold(&incoming);
                        self.intake.add(incoming, Instant::now());
                    }
                    Some(Err(error)) => return End::Lost(format!("{error}: {}", chain(&error))),
                    None => {
                        return End::Lost(
                            "the broker ended it: its queue was deleted, or its channel or connection is gone".to_owned(),
                        );
                    }
                },
                Some(done) = self.handlers.join_next() => match done {
                    Ok(key) => self.intake.done(key.as_deref()),
                    // Nothing in it panics beside the handler, which is caught; should it happen,
                    // starting over delivers its message again and frees its key.
                    Err(error) => return End::Lost(format!("a handler's task ended: {error}")),
                },
                (left, missing) = &mut foreign => {
                    foreign.set(left.progress());
                    self.show(missing);
                }
                () = &mut missed => {
                    deliveries.close().await;
                    return End::Lost("the broker does not know of it: its queue went without a word, or another took its place".to_owned());
                }
                () = until(due) => {}
                _ = alive.tick() => {
                    if !deliveries.is_alive() {
                        return End::Lost("its channel is gone".to_owned());
                    }
                    self.alive();
                    // Only one replica gets what is in order.
                    let stands_by = self.spec.handling == Handling::Ordered;
                    if stands_by || self.intake.holds_any() || !self.handlers.is_empty() {
                        attendance.busy();
                    }
                    if self.handlers.is_empty() {
                        self.spec.metrics.lag.set(0.0);
                    }
                }
            }
        }
    }

    /// Room for one handler, if there is some at once and nothing speaks against using it.
    fn free_slot(&self) -> Option<OwnedSemaphorePermit> {
        if self.trouble.lock().is_probing() {
            return None;
        }
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Room for one handler. In trouble: after a pause, and only when no other handler runs.
    fn take_slots(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let slots = Arc::clone(&self.slots);
        let all = u32::try_from(self.spec.concurrency).unwrap_or(u32::MAX);
        let pause = self.trouble.lock().pause();
        async move {
            let wanted = match pause {
                None => 1,
                Some(pause) => {
                    tokio::time::sleep(pause).await;
                    all
                }
            };
            match slots.acquire_many_owned(wanted).await {
                Ok(permit) => permit,
                // The semaphore is never closed.
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn start(&mut self, permit: OwnedSemaphorePermit) {
        let Some(job) = self.intake.take() else {
            return;
        };
        let desk = Desk {
            inner: Arc::clone(&self.inner),
            spec: Arc::clone(&self.spec),
            trouble: Arc::clone(&self.trouble),
            slots: Arc::clone(&self.slots),
            drain: self.drain.clone(),
        };
        match job {
            Job::One(incoming) => {
                // Handlers that have ended are reaped here too: under load no turn of the loop
                // waits.
                while self.handlers.try_join_next().is_some() {}
                self.handlers.spawn(async move {
                    delivery::work(&desk, incoming, permit).await;
                    None
                });
            }
            Job::InOrder(incoming, key) => {
                self.handlers.spawn(async move {
                    ordered::work(&desk, incoming, permit).await;
                    key
                });
            }
            Job::Batch(deliveries) => {
                self.handlers.spawn(async move {
                    batch::work(&desk, deliveries, permit).await;
                    None
                });
            }
        }
    }

    /// Counts a delivery of a tenant until it is settled.
    fn hold(&self, incoming: &Incoming) -> Option<Tracked> {
        let headers = incoming.properties.headers().as_ref()?;
        let tenant = headers::text(headers, headers::TENANT)?;
        Some(self.spec.metrics.hold(&tenant))
    }

    fn alive(&mut self) {
        self.last_alive = Instant::now();
        self.spec.metrics.last_alive.set(0.0);
        self.state.send_if_modified(|state| {
            let probing = self.trouble.lock().is_probing();
            let slow = ConsumerState::Degraded(SLOWED.to_owned());
            match state {
                ConsumerState::Consuming if probing => *state = slow,
                _ if *state == slow && !probing => *state = ConsumerState::Consuming,
                _ => return false,
            }
            true
        });
    }

    fn show(&mut self, missing: Option<String>) {
        self.alive();
        self.state.send_replace(match missing {
            None => ConsumerState::Consuming,
            Some(missing) => ConsumerState::Degraded(missing),
        });
    }

    /// Waits, and goes on reaping handlers.
    async fn idle(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = self.drain.cancelled() => return,
                () = tokio::time::sleep_until(until) => return,
                Some(_) = self.handlers.join_next() => {}
            }
        }
    }

    /// Stops receiving, lets handlers finish, gives the rest back.
    async fn finish(&mut self, deliveries: Option<Box<dyn Deliveries>>) -> Drained {
        let deadline = Instant::now() + self.inner.config.drain_timeout;
        let mut drained = Drained::default();
        let Some(mut deliveries) = deliveries else {
            drained.abandoned = self.finish_handlers(deadline).await;
            return drained;
        };
        let held = self.intake.give_back();
        if self.spec.handling == Handling::Ordered {
            // The broker hands a queue over to the next consumer with the cancel, whatever is still
            // unacknowledged: so that comes last, and returns the rest in order.
            drained.handed_back = held.len() as u64;
            drained.abandoned = self.finish_handlers(deadline).await;
            deliveries.close().await;
            return drained;
        }
        if deliveries.cancel().await.is_ok() {
            for incoming in held {
                drained.handed_back += u64::from(incoming.settle.requeue().await.is_ok());
            }
            // What was delivered before the cancel comes out first, then the end.
            while let Ok(Some(Ok(incoming))) =
                tokio::time::timeout_at(deadline, deliveries.next()).await
            {
                drained.handed_back += u64::from(incoming.settle.requeue().await.is_ok());
            }
        }
        drained.abandoned = self.finish_handlers(deadline).await;
        deliveries.close().await;
        drained
    }

    async fn finish_handlers(&mut self, deadline: Instant) -> u64 {
        loop {
            match tokio::time::timeout_at(deadline, self.handlers.join_next()).await {
                Ok(Some(_)) => {}
                Ok(None) => return 0,
                Err(_) => break,
            }
        }
        let abandoned = self.handlers.len() as u64;
        tracing::warn!(
            queue = self.spec.queue,
            abandoned,
            "handlers did not finish within the drain timeout; their messages go back to the queue"
        );
        self.handlers.shutdown().await;
        abandoned
    }
}

async fn taken(
    slots: &mut Option<BoxFuture<'static, OwnedSemaphorePermit>>,
) -> OwnedSemaphorePermit {
    match slots {
        Some(slots) => slots.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The age of a message when it was delivered.
pub(crate) fn age(published_at: Option<SystemTime>) -> Option<Duration> {
    SystemTime::now().duration_since(published_at?).ok()
}

const SLOWED: &str = "what the handlers depend on is not there: probing with one message at a time";
const STABLE: Duration = Duration::from_secs(10);
const SLOW_RETRY: Duration = Duration::from_secs(15);
/// Every try costs the other consumers their connection.
const HARMFUL_RETRY: Duration = Duration::from_mins(1);
const ALIVE_EVERY: Duration = Duration::from_secs(1);
