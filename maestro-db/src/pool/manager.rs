//! Opens connections for deadpool and decides, when one is handed out again, whether it is fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use futures_util::future::join_all;
use maestro_metrics::Histogram;
use parking_lot::Mutex;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::SETTLE;
use super::primary::{Primary, is_standby};
use super::roster::{Roster, Slot};
use crate::connect::Connector;
use crate::error::Error;

/// What the pool knows of its server, shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) roster: Roster,
    /// Raised when a connection broke: the others are pinged once before they are used again.
    suspicion: AtomicU64,
    /// Raised when a plan was found stale: the others forget their statements before use.
    plans: AtomicU64,
    /// Raised when a write was refused as read-only: the others are asked whether their server has
    /// become a standby.
    demotion: AtomicU64,
    /// Raised when connections should be replaced: a new password, a new primary.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    down_since: Option<Instant>,
    /// When connections were last asked to be replaced.
    retired_at: Option<Instant>,
    was_let_in: bool,
}

impl Health {
    /// A connection broke; the others may have too.
    pub(crate) fn suspect(&self) {
        self.suspicion.fetch_add(1, Ordering::Relaxed);
    }

    /// A server that should take writes refused one.
    pub(crate) fn maybe_demoted(&self) {
        self.demotion.fetch_add(1, Ordering::Relaxed);
    }

    /// A migration changed a table under a prepared statement.
    pub(crate) fn plans_are_stale(&self) {
        self.plans.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections should be replaced.
    pub(crate) fn retire(&self) {
        self.state.lock().retired_at = Some(Instant::now());
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn retired_at(&self) -> Option<Instant> {
        self.state.lock().retired_at
    }

    /// How long no connection could be opened.
    pub(crate) fn down_for(&self) -> Option<Duration> {
        self.state.lock().down_since.map(|since| since.elapsed())
    }

    /// True when the server accepted the role and its password at least once.
    pub(crate) fn was_let_in(&self) -> bool {
        self.state.lock().was_let_in
    }

    fn opened(&self, success: bool) {
        let mut state = self.state.lock();
        if success {
            state.down_since = None;
            state.was_let_in = true;
        } else if state.down_since.is_none() {
            state.down_since = Some(Instant::now());
        }
    }
}

/// deadpool's manager.
#[derive(Debug)]
pub(crate) struct Connections {
    primary: Primary,
    health: Arc<Health>,
    max_lifetime: Option<Duration>,
    create_time: Histogram,
}

/// One connection in the pool.
#[derive(Debug)]
pub(crate) struct Pooled {
    pub(crate) raw: PgConnection,
    pub(crate) slot: Arc<Slot>,
    /// When it was last handed back.
    pub(crate) returned: Instant,
    retire_at: Option<Instant>,
    /// From 0 to 1: when its turn comes among those that are replaced.
    turn: f64,
    suspicion: u64,
    plans: u64,
    demotion: u64,
    generation: u64,
}

/// After this long without use the other end may be gone without a word (a firewall forgets idle
/// flows, often after a few minutes), so one round trip is paid to find out.
const UNUSED: Duration = Duration::from_mins(1);

/// Connections that must be replaced go one by one over this time, not all at once.
const SPREAD: Duration = Duration::from_secs(30);

impl Connections {
    pub(super) fn new(
        connector: Connector,
        successor: Option<Connector>,
        health: Arc<Health>,
        max_lifetime: Option<Duration>,
        create_time: Histogram,
    ) -> Self {
        Self {
            primary: Primary::new(connector, successor),
            health,
            max_lifetime,
            create_time,
        }
    }

    pub(super) fn connector(&self) -> &Connector {
        self.primary.connector()
    }
}

impl Manager for Connections {
    type Type = Pooled;
    type Error = Error;

    async fn create(&self) -> Result<Pooled, Error> {
        let health = &self.health;
        let (suspicion, plans, demotion, generation) = (
            health.suspicion.load(Ordering::Relaxed),
            health.plans.load(Ordering::Relaxed),
            health.demotion.load(Ordering::Relaxed),
            health.generation.load(Ordering::Relaxed),
        );
        let started = Instant::now();
        let raw = self.open().await;
        health.opened(raw.is_ok());
        let now = Instant::now();
        self.create_time.observe_duration(now - started);
        Ok(Pooled {
            raw: raw?,
            slot: health.roster.slot(),
            returned: now,
            // Up to a tenth earlier, so that connections opened together do not end together.
            retire_at: self
                .max_lifetime
                .map(|limit| now + limit.mul_f64(1.0 - jitter() / 10.0)),
            turn: jitter(),
            suspicion,
            plans,
            demotion,
            generation,
        })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<Error> {
        let health = &self.health;
        let now = Instant::now();
        if pooled.is_over(now, health) {
            return Err(RecycleError::message("its time is over"));
        }
        let plans = health.plans.load(Ordering::Relaxed);
        if pooled.plans != plans {
            settle(pooled.raw.clear_cached_statements()).await?;
            pooled.plans = plans;
        }
        let demotion = health.demotion.load(Ordering::Relaxed);
        if pooled.demotion != demotion {
            // A read-only transaction of the service's own is refused writes as well.
            match is_standby(&mut pooled.raw).await {
                Ok(false) => pooled.demotion = demotion,
                Ok(true) => return Err(RecycleError::message("its server is a standby now")),
                Err(error) => return Err(RecycleError::Backend(error)),
            }
        }
        let suspicion = health.suspicion.load(Ordering::Relaxed);
        if pooled.suspicion != suspicion || now.duration_since(pooled.returned) > UNUSED {
            settle(pooled.raw.ping()).await?;
            pooled.suspicion = suspicion;
        }
        Ok(())
    }
}

impl Connections {
    /// A connection to the server that takes writes, as far as there is a choice.
    pub(super) async fn open(&self) -> Result<PgConnection, Error> {
        self.primary.open().await
    }
}

impl Pooled {
    /// True when it is to be closed instead of used: too old, or replaced since it was opened, be it
    /// that nobody has used it since.
    pub(super) fn is_over(&self, now: Instant, health: &Health) -> bool {
        self.retire_at.is_some_and(|end| end <= now)
            || (self.generation != health.generation.load(Ordering::Relaxed)
                && health
                    .retired_at()
                    .is_some_and(|since| since + SPREAD.mul_f64(self.turn) <= now))
    }
}

async fn settle(
    work: impl Future<Output = Result<(), sqlx::Error>>,
) -> Result<(), RecycleError<Error>> {
    match tokio::time::timeout(SETTLE, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(RecycleError::Backend(error.into())),
        Err(_) => Err(RecycleError::message("the server did not answer a ping")),
    }
}

/// Says good-bye to the server on each of these, for at most `limit` in all.
pub(super) async fn close_all(connections: Vec<Pooled>, limit: Duration) {
    let good_byes = connections.into_iter().map(|pooled| pooled.raw.close());
    // Whoever does not take the good-bye in time is dropped, which closes its socket.
    let _ = tokio::time::timeout(limit, join_all(good_byes)).await;
}

/// From 0 to 1.
fn jitter() -> f64 {
    fastrand::f64()
}
