//! A subscription at work: one task that cannot end silently.
//!
//! It opens a channel, declares what the subscription needs, consumes, and starts over with
//! jittered backoff whenever that ends for any reason. Handlers run as tasks of their own, owned by
//! it across channels, so that a lost connection neither kills a handler nor lets more run than the
//! subscription allows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::amqp::{Deliveries, chain};
use crate::backoff::Backoff;
use crate::client::Inner;
use crate::delivery::{self, Work};
use crate::error::{Error, ErrorKind};
use crate::handler::ErasedHandler;
use crate::metrics::QueueMetrics;
use crate::subscription::{ConsumerState, Drained};
use crate::topology::{Binding, Topology};
use crate::transport::Incoming;
use crate::trouble::Trouble;

/// Everything a subscription is, valid once.
pub(crate) struct Spec {
    pub(crate) name: Arc<str>,
    pub(crate) queue: String,
    pub(crate) dead_letter_queue: String,
    pub(crate) topology: Topology,
    pub(crate) retired: Vec<Binding>,
    pub(crate) handlers: HashMap<&'static str, ErasedHandler>,
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
    handlers: JoinSet<()>,
    last_alive: Instant,
}

/// Why consuming on one channel ended.
enum End {
    Draining(Deliveries),
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
                    let slow = matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Denied);
                    let pause = backoff.next();
                    (reason, if slow { pause.max(SLOW_RETRY) } else { pause })
                }
            };
            tracing::warn!(
                queue = self.spec.queue,
                reason,
                "the consumer is interrupted; trying on"
            );
            self.state.send_replace(ConsumerState::Interrupted(reason));
            self.idle(pause).await;
        };
        self.state.send_replace(ConsumerState::Stopped);
        drained
    }

    async fn open(&mut self) -> Result<Deliveries, Error> {
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
    async fn consume(&mut self, mut deliveries: Deliveries) -> End {
        let mut foreign = Foreign::new(&self.inner, &self.spec);
        self.show(foreign.missing());
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        loop {
            let slots = take_slots(
                Arc::clone(&self.slots),
                Arc::clone(&self.trouble),
                self.spec.concurrency,
            );
            tokio::pin!(slots);
            // Until there is room for a handler, everything but deliveries is looked after.
            let permit = loop {
                tokio::select! {
                    biased;
                    () = self.drain.cancelled() => return End::Draining(deliveries),
                    permit = &mut slots => break permit,
                    Some(_) = self.handlers.join_next() => {}
                    missing = foreign.progress() => self.show(missing),
                    _ = alive.tick() => {
                        if !deliveries.is_alive() {
                            return End::Lost("its channel is gone".to_owned());
                        }
                        self.alive();
                    }
                }
            };
            let delivery = loop {
                tokio::select! {
                    biased;
                    () = self.drain.cancelled() => return End::Draining(deliveries),
                    delivery = deliveries.next() => break delivery,
                    Some(_) = self.handlers.join_next() => {}
                    missing = foreign.progress() => self.show(missing),
                    _ = alive.tick() => {
                        if !deliveries.is_alive() {
                            return End::Lost("its channel is gone".to_owned());
                        }
                        self.alive();
                        self.spec.metrics.lag.set(0.0);
                    }
                }
            };
            match delivery {
                Some(Ok(incoming)) => self.start(incoming, permit),
                Some(Err(error)) => return End::Lost(format!("{error}: {}", chain(&error))),
                None => {
                    return End::Lost(
                        "the broker ended it: its queue was deleted, or its channel or connection is gone".to_owned(),
                    );
                }
            }
        }
    }

    fn start(&mut self, incoming: Incoming, permit: OwnedSemaphorePermit) {
        self.spec.metrics.consumed.increment();
        // Handlers that have ended are reaped here too: under load no turn of the loop waits.
        while self.handlers.try_join_next().is_some() {}
        self.handlers.spawn(delivery::work(Work {
            inner: Arc::clone(&self.inner),
            spec: Arc::clone(&self.spec),
            trouble: Arc::clone(&self.trouble),
            drain: self.drain.clone(),
            incoming,
            permit,
        }));
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
    async fn finish(&mut self, deliveries: Option<Deliveries>) -> Drained {
        let deadline = Instant::now() + self.inner.config.drain_timeout;
        let mut drained = Drained::default();
        if let Some(mut deliveries) = deliveries {
            if deliveries.cancel().await.is_ok() {
                // What was delivered before the cancel comes out first, then the end.
                while let Ok(Some(Ok(incoming))) =
                    tokio::time::timeout_at(deadline, deliveries.next()).await
                {
                    if incoming.settle.requeue().await.is_ok() {
                        drained.handed_back += 1;
                    }
                }
            }
            drained.abandoned = self.finish_handlers(deadline).await;
            deliveries.close().await;
        } else {
            drained.abandoned = self.finish_handlers(deadline).await;
        }
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

/// Room for one handler. In trouble: after a pause, and only when no other handler runs.
async fn take_slots(
    slots: Arc<Semaphore>,
    trouble: Arc<Mutex<Trouble>>,
    concurrency: usize,
) -> OwnedSemaphorePermit {
    let pause = trouble.lock().pause();
    let wanted = match pause {
        None => 1,
        Some(pause) => {
            tokio::time::sleep(pause).await;
            u32::try_from(concurrency).unwrap_or(u32::MAX)
        }
    };
    match slots.acquire_many_owned(wanted).await {
        Ok(permit) => permit,
        // The semaphore is never closed.
        Err(_) => std::future::pending().await,
    }
}

/// Bindings to exchanges of services that may not be there yet, and bindings to take away.
struct Foreign {
    inner: Arc<Inner>,
    spec: Arc<Spec>,
    open: Vec<Binding>,
    retired: Vec<Binding>,
    backoff: Backoff,
    next: Instant,
}

impl Foreign {
    fn new(inner: &Arc<Inner>, spec: &Arc<Spec>) -> Self {
        Self {
            inner: Arc::clone(inner),
            spec: Arc::clone(spec),
            open: spec.topology.foreign.clone(),
            retired: spec.retired.clone(),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
            next: Instant::now(),
        }
    }

    fn missing(&self) -> Option<String> {
        let first = self.open.first()?;
        Some(format!(
            "waiting for exchange `{}` (is the service that publishes `{}` running?)",
            first.exchange, first.routing_key
        ))
    }

    /// Tries what is open; resolves when something changed. Dropping it loses nothing: binding
    /// twice is binding once.
    async fn progress(&mut self) -> Option<String> {
        loop {
            if self.open.is_empty() && self.retired.is_empty() {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(self.next).await;
            let before = self.open.len() + self.retired.len();
            let mut at = 0;
            while let Some(binding) = self.open.get(at) {
                match self.inner.broker.bind_foreign(binding).await {
                    Ok(()) => {
                        self.open.remove(at);
                    }
                    Err(error) => {
                        tracing::debug!(queue = self.spec.queue, error = %error, "a binding has to wait");
                        at += 1;
                    }
                }
            }
            at = 0;
            while let Some(binding) = self.retired.get(at) {
                match self.inner.broker.unbind(binding).await {
                    Ok(()) => {
                        self.retired.remove(at);
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.retired.remove(at);
                    }
                    Err(_) => at += 1,
                }
            }
            self.next = Instant::now() + self.backoff.next();
            if self.open.len() + self.retired.len() != before {
                return self.missing();
            }
        }
    }
}

/// The age of a message when it was delivered.
pub(crate) fn age(published_at: Option<SystemTime>) -> Option<Duration> {
    SystemTime::now().duration_since(published_at?).ok()
}

const SLOWED: &str = "what the handlers depend on is not there: probing with one message at a time";
const STABLE: Duration = Duration::from_secs(10);
const SLOW_RETRY: Duration = Duration::from_secs(15);
const ALIVE_EVERY: Duration = Duration::from_secs(1);
