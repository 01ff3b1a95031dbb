//! The pool: deadpool's queue over sqlx's connections, last in first out, no ping per acquire.

mod lease;
mod manager;
mod primary;
mod report;
mod roster;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deadpool::managed::{Object, PoolError, QueueMode};
use maestro_metrics::Registry;
use sqlx::postgres::PgConnection;
use tokio::sync::mpsc;

use crate::config::{DbConfig, Endpoint, Pooler};
use crate::connect::{Connector, Purpose, refused_login};
use crate::error::{Error, ErrorKind};
use crate::login::Login;
use crate::metrics::{PoolCounts, PoolMetrics};
use crate::retry::Backoff;
use crate::statement::Statements;

pub(crate) use lease::{Conversation, Lease, Request, within};
pub use report::PoolReport;
pub(crate) use roster::Holder;

use manager::{Connections, Health};
pub(crate) use upkeep::Task;
use upkeep::Upkeep;

/// Connections to one endpoint, and everything that keeps them in order.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// They end with the pool.
    _tasks: [Task; 2],
}

/// What the pool and its leases both need.
#[derive(Debug)]
pub(crate) struct Shared {
    connections: deadpool::managed::Pool<Connections>,
    pub(crate) health: Arc<Health>,
    pub(crate) statements: Statements,
    pub(crate) rules: Rules,
    pub(crate) metrics: PoolMetrics,
    waiting: AtomicUsize,
    rollbacks: mpsc::Sender<Lease>,
}

/// Where a pool connects to.
pub(crate) struct Servers {
    pub(crate) login: Login,
    /// Takes the place of the first one when it is promoted.
    pub(crate) successor: Option<Login>,
    /// See [`Rules::patient`].
    pub(crate) patient: bool,
}

/// The limits a lease applies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) acquire: Duration,
    /// Longest wait of the client for one answer: the server's own limit and a grace for the way.
    pub(crate) answer: Option<Duration>,
    pub(crate) slow: Option<Duration>,
    /// Callers wait for a server that is not there; else they are told at once.
    pub(crate) patient: bool,
    /// A pooler hands each statement outside a transaction to whichever session is free.
    pub(crate) pooled: bool,
}

/// The server ends a statement at its limit and says so; the client gives up only if that answer
/// does not come.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Longest wait for the rest of an answer whose error was read, for a ROLLBACK or for a ping.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

impl Pool {
    /// A pool without a connection yet. Must be called in a tokio runtime.
    pub(crate) fn new(
        config: &DbConfig,
        servers: Servers,
        registry: &Registry,
        name: &str,
    ) -> Result<Self, Error> {
        let Servers {
            login,
            successor,
            patient,
        } = servers;
        let connector = Connector::new(config, login, Purpose::Service)?;
        let successor = successor
            .map(|login| Connector::new(config, login, Purpose::Service))
            .transpose()?;
        let timeouts = &config.timeouts;
        let health = Arc::new(Health::default());
        let metrics = PoolMetrics::new(registry, connector.endpoint(), name);
        let create_time = metrics.create_time.clone();
        let manager = Connections::new(
            connector,
            successor,
            Arc::clone(&health),
            timeouts.max_lifetime,
            create_time,
        );
        let connections = deadpool::managed::Pool::builder(manager)
            .max_size(config.pool_max)
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Config, "building the pool failed").with_source(error)
            })?;
        // At most as many rollbacks as connections can be waiting.
        let (rollbacks, dropped) = mpsc::channel(config.pool_max);
        let shared = Arc::new(Shared {
            connections,
            health,
            statements: Statements::new(config.statement_tags.clone()),
            rules: Rules {
                acquire: timeouts.acquire,
                answer: timeouts.statement.map(|limit| limit + ANSWER_GRACE),
                slow: timeouts.slow_query,
                patient,
                pooled: config.pooler != Pooler::None,
            },
            metrics,
            waiting: AtomicUsize::new(0),
            rollbacks,
        });
        let weak = Arc::downgrade(&shared);
        let min = config.pool_min;
        shared.metrics.expose(registry, move || {
            weak.upgrade().map(|shared| shared.counts(min))
        });
        let upkeep = Upkeep {
            shared: Arc::downgrade(&shared),
            idle: timeouts.idle,
            min: config.pool_min,
        };
        let tasks = [
            Task::spawn(upkeep.run()),
            Task::spawn(upkeep::roll_back_dropped(dropped)),
        ];
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }

    pub(crate) fn statements(&self) -> &Statements {
        &self.shared.statements
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.shared.rules
    }

    pub(crate) fn metrics(&self) -> &PoolMetrics {
        &self.shared.metrics
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.shared.connections.manager().connector().endpoint()
    }

    /// A connection of one's own until the lease is dropped.
    ///
    /// Dropping the future gives the place in the queue up and leaves nothing behind.
    pub(crate) async fn acquire(&self, holder: Holder) -> Result<Lease, Error> {
        self.acquire_within(self.shared.rules.acquire, holder).await
    }

    pub(crate) async fn acquire_within(
        &self,
        limit: Duration,
        holder: Holder,
    ) -> Result<Lease, Error> {
        let started = Instant::now();
        let object = self.object(limit).await.inspect_err(|error| {
            if error.kind() == ErrorKind::Exhausted {
                self.shared.metrics.timeouts.increment();
            }
        })?;
        self.shared
            .metrics
            .wait_time
            .observe_duration(started.elapsed());
        Ok(Lease::new(object, Arc::clone(&self.shared), holder))
    }

    async fn object(&self, limit: Duration) -> Result<Object<Connections>, Error> {
        let shared = &*self.shared;
        let started = Instant::now();
        let _waiting = Waiting::new(&shared.waiting);
        let mut backoff = Backoff::connecting();
        let mut last = None;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let error = match tokio::time::timeout(left, shared.connections.get()).await {
                Ok(Ok(object)) => return Ok(object),
                Ok(Err(PoolError::Backend(error))) => error,
                Ok(Err(PoolError::Closed)) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("the pool to {} was closed", self.endpoint()),
                    ));
                }
                // deadpool's own timeouts and hooks are not used.
                Ok(Err(error)) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "acquiring a connection failed",
                    )
                    .with_source(error));
                }
                // An attempt that failed says more than the one that was cut short.
                Err(_) => return Err(last.unwrap_or_else(|| self.timed_out(limit))),
            };
            // A server that restarts, or has no connection left for a moment, is waited for; one
            // that has been away for longer than a caller waits is not, so that an outage costs
            // each caller one refused attempt and not the whole timeout.
            // A login that was accepted before is refused while its password is being rotated.
            let patient = shared.rules.patient
                && (error.kind() == ErrorKind::Unavailable
                    || shared.health.was_let_in() && refused_login(&error))
                && shared.health.down_for().is_none_or(|down| down < limit);
            let pause = backoff.next();
            if !patient || started.elapsed() + pause >= limit {
                return Err(error.with_pool(shared.report(1)));
            }
            last = Some(error.with_pool(shared.report(1)));
            tokio::time::sleep(pause).await;
        }
    }

    fn timed_out(&self, limit: Duration) -> Error {
        // The caller itself waits no more.
        let report = self.shared.report(1);
        let endpoint = self.endpoint();
        if report.active() >= report.max() {
            return Error::new(
                ErrorKind::Exhausted,
                format!(
                    "no connection to {endpoint} became free within {limit:?} (MAESTRO_POSTGRES_ACQUIRE_TIMEOUT): the longest holder is the one to look at"
                ),
            )
            .with_pool(report);
        }
        Error::new(
            ErrorKind::Unavailable,
            format!("no connection to {endpoint} could be opened within {limit:?}: the server does not answer"),
        )
        .with_pool(report)
    }

    /// A connection beside the pool's, as they are opened.
    pub(crate) async fn open_apart(&self) -> Result<PgConnection, Error> {
        self.shared.connections.manager().open().await
    }

    /// What the pool holds now.
    pub(crate) fn report(&self) -> PoolReport {
        self.shared.report(0)
    }

    /// A migration was applied: connections forget their prepared statements before their next use.
    pub(crate) fn plans_are_stale(&self) {
        self.shared.health.plans_are_stale();
    }

    /// Connections opened before now are replaced within half a minute as they become free, each at
    /// its own moment.
    pub(crate) fn retire_all(&self) {
        self.shared.health.retire();
    }

    /// Lets nobody in any more, waits until the connections in use are back, closes them all.
    /// `Err` holds how many were still in use at the deadline.
    pub(crate) async fn close(&self, limit: Duration) -> Result<(), usize> {
        let deadline = Instant::now() + limit;
        let shared = &*self.shared;
        let mut pause = Duration::from_millis(1);
        while shared.health.roster.active() > 0 && Instant::now() + pause < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        let idle = shared.connections.retain(|_, _| false).removed;
        shared.connections.close();
        let left = deadline.saturating_duration_since(Instant::now());
        manager::close_all(idle, left.max(Duration::from_millis(100))).await;
        match shared.health.roster.active() {
            0 => Ok(()),
            active => Err(active),
        }
    }
}

impl Shared {
    fn counts(&self, min: usize) -> PoolCounts {
        let report = self.report(0);
        PoolCounts {
            idle: report.idle(),
            used: report.active(),
            max: report.max(),
            min,
            waiting: report.waiting(),
        }
    }

    fn report(&self, less: usize) -> PoolReport {
        let status = self.connections.status();
        PoolReport::new(
            status.max_size,
            status.size,
            self.waiting.load(Ordering::Relaxed).saturating_sub(less),
            &self.health.roster,
        )
    }
}

/// Counts a caller as waiting for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
