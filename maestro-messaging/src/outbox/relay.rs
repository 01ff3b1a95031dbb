//! Publishes what is written down.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use maestro_metrics::{DrainPhase, DrainStep, Leftover};
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Executor, Postgres};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::amqp::chain;
use crate::backoff::Backoff;
use crate::chains::{Chains, Item, Waiting};
use crate::client::Inner;
use crate::envelope;
use crate::error::{Error, ErrorKind};
use crate::outbox::lease::Leases;
use crate::outbox::listen::listen;
use crate::outbox::saga;
use crate::outbox::standstill::Standstills;
use crate::outbox::store::{self, Outbox, Row};
use crate::outbox::{Inbox, answered};
use crate::publish;
use crate::transport::Outgoing;

/// A relay being built.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(messaging: maestro_messaging::Messaging, pool: sqlx::PgPool) {
/// let relay = messaging
///     .outbox()
///     .relay(pool)
///     .poll_every(Duration::from_millis(200))
///     .lease_term(Duration::from_secs(5)) // others take over sooner when this one dies
///     .inbox_retention(Duration::from_hours(30 * 24))
///     .start();
/// println!("{} published, {} in flight at the end", relay.published(), relay.drain().await);
/// # }
/// ```
#[must_use = "nothing is relayed until it is started"]
pub struct RelayBuilder<D> {
    inner: Arc<Inner>,
    database: D,
    listen: Option<PgConnectOptions>,
    poll: Duration,
    term: Duration,
    retention: Duration,
}

impl<D> RelayBuilder<D>
where
    D: Send + Sync + 'static,
    for<'c> &'c D: Executor<'c, Database = Postgres>,
{
    pub(crate) fn new(outbox: &Outbox, database: D) -> Self {
        Self {
            inner: Arc::clone(&outbox.inner),
            database,
            listen: None,
            poll: Duration::from_millis(500),
            term: Duration::from_secs(15),
            retention: Duration::from_hours(7 * 24),
        }
    }

    /// Is woken by NOTIFY over a connection of its own, so that events leave at once. It needs the
    /// server itself, not a pooler in transaction mode: the direct URL.
    pub fn listen(mut self, direct: PgConnectOptions) -> Self {
        self.listen = Some(direct);
        self
    }

    /// How often the table is looked at without being woken; 500 ms otherwise.
    pub fn poll_every(mut self, period: Duration) -> Self {
        self.poll = period.max(Duration::from_millis(10));
        self
    }

    /// How long a relay that died keeps its share of the buckets; 15 s otherwise, 2 s at least.
    pub fn lease_term(mut self, term: Duration) -> Self {
        self.term = term.max(Duration::from_secs(2));
        self
    }

    /// How long the inbox remembers; seven days otherwise. A message that comes again later than
    /// this (a replayed dead letter) is handled again.
    pub fn inbox_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Starts relaying in the background.
    pub fn start(self) -> Relay {
        let stop = self.inner.closing.child_token();
        let (progress, watching) = watch::channel(Progress::default());
        // A publish is answered within its own deadline.
        let standstills = Standstills::new(self.inner.config.confirm_timeout.saturating_mul(2));
        let task = Task {
            leases: Leases::new(self.term),
            inner: self.inner,
            database: self.database,
            listen: self.listen,
            poll: self.poll,
            retention: self.retention,
            stop: stop.clone(),
            progress,
            chains: Chains::new(),
            waiting: Waiting::new(),
            standstills,
            publishing: FuturesUnordered::new(),
            sent: Vec::new(),
            sagas: HashSet::new(),
        };
        Relay {
            stop,
            progress: watching,
            task: Arc::new(Mutex::new(Some(tokio::spawn(task.run())))),
        }
    }
}

impl<D> std::fmt::Debug for RelayBuilder<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayBuilder")
            .field("poll", &self.poll)
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}

/// A running relay. It ends with [`drain`](Self::drain) or with the client; dropping the handle
/// changes nothing.
#[derive(Clone, Debug)]
pub struct Relay {
    stop: CancellationToken,
    progress: watch::Receiver<Progress>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    published: u64,
    left: u64,
}

impl Relay {
    /// Events published by this relay so far.
    pub fn published(&self) -> u64 {
        self.progress.borrow().published
    }

    /// Finishes what is in flight, gives its share back to other relays, and ends. What is written
    /// down and not sent stays in the table. Returns how many events were in flight without an
    /// answer.
    pub async fn drain(&self) -> u64 {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // Its waits are bounded; a panic in it has been reported.
            let _ = task.await;
        }
        self.progress.borrow().left
    }

    /// The same as a step of the service's shutdown.
    pub fn drain_step(&self) -> DrainStep {
        let relay = self.clone();
        DrainStep::new("outbox relay", DrainPhase::Outbox, move |_| async move {
            Leftover::of(
                relay.drain().await,
                "events without an answer of the broker; they are published again",
            )
        })
    }
}

type Publishing = BoxFuture<'static, (Item<Arc<Outgoing>>, Result<(), Error>)>;

struct Task<D> {
    inner: Arc<Inner>,
    database: D,
    listen: Option<PgConnectOptions>,
    poll: Duration,
    retention: Duration,
    stop: CancellationToken,
    progress: watch::Sender<Progress>,
    leases: Leases,
    chains: Chains<Arc<Outgoing>>,
    waiting: Waiting<Arc<Outgoing>>,
    standstills: Standstills<Arc<Outgoing>>,
    publishing: FuturesUnordered<Publishing>,
    /// Confirmed, to be deleted.
    sent: Vec<i64>,
    /// Sagas and states that have a series.
    sagas: HashSet<(String, String)>,
}

impl<D> Task<D>
where
    D: Send + Sync + 'static,
    for<'c> &'c D: Executor<'c, Database = Postgres>,
{
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let (wake, mut woken) = watch::channel(());
        let listener = self.listen.take().map(|options| {
            let stop = self.stop.clone();
            tokio::spawn(listen(options, wake, stop))
        });
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            match self.relay(&mut woken).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(error = %error, cause = %chain(&error), "the outbox relay is interrupted; trying on");
                    let pause = backoff.next();
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    if self.delete_sent().await.is_ok() {
                        backoff.reset();
                    }
                }
            }
        }
        self.finish().await;
        if let Some(listener) = listener {
            let _ = listener.await;
        }
    }

    /// Relays until told to stop, or until the database fails.
    async fn relay(&mut self, woken: &mut watch::Receiver<()>) -> Result<(), Error> {
        let stop = self.stop.clone();
        let mut leases = tokio::time::interval(self.leases.period());
        leases.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut poll = tokio::time::interval(self.poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut clean = tokio::time::interval(CLEAN_EVERY);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut hungry = true;
        loop {
            if hungry && self.has_room() {
                hungry = self.fetch().await?;
            }
            self.publish();
            // Deleted in one go, as soon as there are many or nothing else is to be done.
            if self.sent.len() >= DELETE_BATCH
                || (self.publishing.is_empty() && !self.sent.is_empty())
            {
                self.delete_sent().await?;
                continue;
            }
            let again = [self.waiting.next(), self.standstills.next()];
            let again = again.into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = leases.tick() => {
                    self.leases.keep(&self.database).await?;
                    hungry = true;
                }
                Some((item, result)) = self.publishing.next() => self.answered(item, result),
                changed = woken.changed(), if woken.has_changed().is_ok() => {
                    if changed.is_ok() {
                        hungry = true;
                    }
                }
                _ = poll.tick() => {
                    self.promote().await?;
                    hungry = true;
                }
                () = sleep_until(again) => {
                    self.try_again(Instant::now());
                }
                _ = look.tick() => {
                    // A gauge that cannot be set is no reason to stop publishing.
                    if let Err(error) = saga::look(&self.inner, &self.database, &mut self.sagas).await {
                        tracing::warn!(error = %error, cause = %chain(&error), "the outbox and the sagas could not be measured");
                    }
                }
                _ = clean.tick() => {
                    Inbox.forget(&self.database, self.retention).await?;
                }
            }
        }
    }

    /// Reads rows that are not in memory yet. True if there may be more.
    async fn fetch(&mut self) -> Result<bool, Error> {
        let buckets = self.leases.buckets(Instant::now());
        if buckets.is_empty() {
            return Ok(false);
        }
        let known = self.chains.known();
        let rows = sqlx::query_as::<_, Row>(
            "SELECT id, bucket, message_id, event_type, key, metadata, body
             FROM maestro.outbox
             WHERE not_before IS NULL AND bucket = ANY ($1) AND id <> ALL ($2)
             ORDER BY id LIMIT $3",
        )
        .bind(&buckets)
        .bind(&known)
        .bind(i64::try_from(FETCH).unwrap_or(i64::MAX))
        .fetch_all(&self.database);
        let rows = answered("reading the outbox", rows).await?;
        let more = rows.len() >= FETCH;
        for row in rows {
            let (id, bucket, key) = (row.0, row.1, row.4.clone());
            match store::outgoing(&self.inner, row) {
                Ok(outgoing) => self.chains.add(id, bucket, key, Arc::new(outgoing)),
                // It was checked when it was added; only somebody else's hand makes such a row.
                Err(error) => {
                    tracing::error!(id, error = %error, "a row of the outbox cannot be published; it stays");
                    self.chains.skip(id);
                }
            }
        }
        Ok(more)
    }

    /// Whether more rows are to be read. What a queue does not take must not keep the others from
    /// being read, up to a bound on memory.
    fn has_room(&self) -> bool {
        let known = self.chains.len();
        known.saturating_sub(self.chains.blocked()) < LOW_WATER && known < MOST
    }

    /// Scheduled events that are due become pending.
    async fn promote(&mut self) -> Result<(), Error> {
        let promoted = sqlx::query(
            "UPDATE maestro.outbox SET not_before = NULL WHERE id = ANY (ARRAY(
                SELECT id FROM maestro.outbox WHERE not_before <= now()
                ORDER BY not_before LIMIT 1000 FOR UPDATE SKIP LOCKED
            ))",
        )
        .execute(&self.database);
        answered("looking for scheduled events that are due", promoted).await?;
        Ok(())
    }

    /// Begins publishes up to the window.
    fn publish(&mut self) {
        let window = self.inner.config.publish_window;
        let now = Instant::now();
        while self.publishing.len() < window {
            let leases = &self.leases;
            let Some(item) = self.chains.next(|bucket| leases.may_publish(bucket, now)) else {
                return;
            };
            let inner = Arc::clone(&self.inner);
            self.publishing.push(Box::pin(async move {
                let result = relay(&inner, &item.row).await;
                (item, result)
            }));
        }
    }

    fn answered(&mut self, item: Item<Arc<Outgoing>>, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                let event_type = item.row.routing_key.as_str();
                self.standstills.sent(event_type, item.id, Instant::now());
                self.chains.sent(item.key.as_deref());
                self.sent.push(item.id);
            }
            Err(error) => {
                tracing::warn!(
                    id = item.id,
                    failures = item.failures + 1,
                    error = %error,
                    "an event of the outbox was not published; its key waits"
                );
                if error.kind() == ErrorKind::Closed {
                    self.stop.cancel();
                }
                let now = Instant::now();
                let (id, bucket, failures) = (item.id, item.bucket, item.failures);
                let event_type = item.row.routing_key.clone();
                let held = self.chains.hold(item);
                let event_type = event_type.as_str();
                if error.may_be_stored() || self.standstills.is_trying(event_type, id) {
                    self.standstills.failed(event_type, id, bucket, held, now);
                } else {
                    // Not sent, so that trying costs nobody a copy.
                    let mut backoff =
                        Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
                    let pause = (0..=failures).fold(Duration::ZERO, |_, _| backoff.next());
                    self.waiting.add(now + pause, held);
                }
            }
        }
    }

    /// What failed and has waited long enough may go.
    fn try_again(&mut self, now: Instant) {
        let leases = &self.leases;
        let ours = |bucket| leases.may_publish(bucket, now);
        let due = self.standstills.due(now, ours);
        for held in self.waiting.due(now).into_iter().chain(due) {
            self.chains.retry(held);
        }
    }

    async fn delete_sent(&mut self) -> Result<(), Error> {
        if self.sent.is_empty() {
            return Ok(());
        }
        let deleted = sqlx::query("DELETE FROM maestro.outbox WHERE id = ANY ($1)")
            .bind(&self.sent)
            .execute(&self.database);
        answered("deleting what was published from the outbox", deleted).await?;
        self.chains.forget(&self.sent);
        let count = self.sent.len() as u64;
        self.progress
            .send_modify(|progress| progress.published += count);
        self.sent.clear();
        Ok(())
    }

    /// Lets what is in flight finish, notes it as sent, and gives the leases back.
    async fn finish(&mut self) {
        let deadline = Instant::now() + FINISH_DEADLINE;
        while let Ok(Some((item, result))) =
            tokio::time::timeout_at(deadline, self.publishing.next()).await
        {
            if result.is_ok() {
                self.sent.push(item.id);
            }
        }
        let left = self.publishing.len() as u64;
        self.progress.send_modify(|progress| progress.left = left);
        for (what, done) in [
            ("deleting", self.delete_sent().await),
            ("releasing", self.leases.release(&self.database).await),
        ] {
            if let Err(error) = done {
                // Others take over after the term, and publish again what could not be deleted.
                tracing::warn!(what, error = %error, "the outbox relay ended without the database");
            }
        }
    }
}

/// Publishes one event, in the trace of the transaction that wrote it down.
async fn relay(inner: &Inner, outgoing: &Arc<Outgoing>) -> Result<(), Error> {
    let event_type = outgoing.routing_key.as_str();
    let span = envelope::context(&outgoing.properties)
        .span(|| publish::span(outgoing.exchange.as_str(), event_type));
    let started = Instant::now();
    let deadline = started + inner.config.confirm_timeout;
    let result = match inner.broker.send(Arc::clone(outgoing), deadline).await {
        Ok(pending) => pending.await,
        Err(error) => Err(error),
    };
    let metrics = &inner.metrics;
    metrics.publish_ended(started.elapsed(), result.as_ref().err());
    match result {
        Ok(stored) => {
            if !stored.routed {
                metrics.unrouted.with([event_type]).increment();
            }
            Ok(())
        }
        Err(error) => {
            span.record("otel.status_code", "ERROR");
            Err(error)
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

const FETCH: usize = 1_000;
/// Fewer rows in memory than this that can go, and more are read.
const LOW_WATER: usize = 1_000;
/// Rows in memory, those that wait for a retry included; of a kibibyte each, ten megabytes.
const MOST: usize = 10_000;
const DELETE_BATCH: usize = 500;
/// As often as queues are counted.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const CLEAN_EVERY: Duration = Duration::from_mins(1);
const FINISH_DEADLINE: Duration = Duration::from_secs(10);
