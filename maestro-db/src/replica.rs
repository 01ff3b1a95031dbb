//! How far a standby is behind, and so whether it may answer reads.
//!
//! Measured from end to end and on this process's clock alone: where the primary's log stood at a moment
//! is remembered, and the standby has everything up to the newest such moment whose place it has
//! reached. It needs no rights, no table and no clock of a server, and it is right when nothing is
//! written for hours, where the time of the last replayed transaction would look like lag.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maestro_metrics::Registry;
use parking_lot::RwLock;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};

use crate::config::DbConfig;
use crate::error::{Error, ErrorKind};
use crate::login::Login;
use crate::metrics::ReadMetrics;
use crate::pool::{Pool, Servers, Task};

/// The standby's connections, and what is known of it.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: ReadMetrics,
    freshness: Arc<Freshness>,
    _watch: Task,
}

/// Until when the standby is known to have everything.
#[derive(Debug)]
struct Freshness {
    bound: Duration,
    has_all_until: RwLock<Option<Instant>>,
}

impl Freshness {
    fn is_fresh(&self) -> bool {
        self.has_all_until
            .read()
            .is_some_and(|at| at.elapsed() <= self.bound)
    }
}

impl Replica {
    pub(crate) fn new(
        config: &DbConfig,
        login: Login,
        registry: &Registry,
        primary: &Arc<Pool>,
    ) -> Result<Self, Error> {
        let servers = Servers {
            login,
            successor: None,
            patient: false,
        };
        let name = format!("{} read", config.database());
        let pool = Arc::new(Pool::new(config, servers, registry, &name)?);
        let freshness = Arc::new(Freshness {
            bound: config.read_max_lag,
            has_all_until: RwLock::new(None),
        });
        let seen = Arc::downgrade(&freshness);
        let metrics = ReadMetrics::new(registry, move || {
            let at = (*seen.upgrade()?.has_all_until.read())?;
            Some(at.elapsed().as_secs_f64())
        });
        let watch = Watch {
            primary: Arc::downgrade(primary),
            replica: Arc::downgrade(&pool),
            freshness: Arc::clone(&freshness),
            marks: VecDeque::new(),
        };
        Ok(Self {
            pool,
            metrics,
            freshness,
            _watch: Task::spawn(watch.run()),
        })
    }

    /// Whether it may answer a read now.
    pub(crate) fn is_fresh(&self) -> bool {
        self.freshness.is_fresh()
    }

    /// It failed a read: nobody is sent there before it was looked at again.
    pub(crate) fn stopped(&self) {
        *self.freshness.has_all_until.write() = None;
    }
}

/// Where the primary's log stood, and when at the latest.
struct Mark {
    at: Instant,
    place: i64,
}

struct Watch {
    /// Weak, so that the task never keeps a pool alive that nobody uses.
    primary: Weak<Pool>,
    replica: Weak<Pool>,
    freshness: Arc<Freshness>,
    /// The newest last.
    marks: VecDeque<Mark>,
}

/// How often the two servers are asked; a lag bound below a few of these cannot be kept.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Marks older than the bound are of no use; this many cover it at the rate above.
const MARKS: usize = 64;

impl Watch {
    async fn run(mut self) {
        let mut tick = tokio::time::interval((self.freshness.bound / 5).clamp(SHORTEST, LONGEST));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut primary, mut replica) = (None, None);
        loop {
            tick.tick().await;
            let (Some(primary_pool), Some(replica_pool)) =
                (self.primary.upgrade(), self.replica.upgrade())
            else {
                return;
            };
            // Before the question: whatever was committed by then is before the place in the answer.
            let at = Instant::now();
            let (written, replayed) = tokio::join!(
                place(&primary_pool, &mut primary, WRITTEN),
                place(&replica_pool, &mut replica, REPLAYED),
            );
            if let Some(place) = written {
                if self.marks.len() == MARKS {
                    self.marks.pop_front();
                }
                self.marks.push_back(Mark { at, place });
            }
            if let Some(until) = replayed.and_then(|place| self.reached(place)) {
                let mut known = self.freshness.has_all_until.write();
                *known = Some(known.map_or(until, |before| before.max(until)));
            }
        }
    }

    /// The latest moment of which the standby has everything.
    fn reached(&self, place: i64) -> Option<Instant> {
        let newest = self.marks.iter().rev().find(|mark| mark.place <= place);
        newest.map(|mark| mark.at)
    }
}

const WRITTEN: &str =
    "select (pg_catalog.pg_current_wal_lsn() - '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8";
/// Nothing when it is no standby (any more): reads go to the primary then.
const REPLAYED: &str = "select case when pg_catalog.pg_is_in_recovery() then \
     (pg_catalog.pg_last_wal_replay_lsn() - '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8 end";

/// Asks on a connection of its own, so that neither a busy pool nor the answer of the pool's other
/// users matters; opens it when there is none.
async fn place(
    pool: &Pool,
    connection: &mut Option<PgConnection>,
    sql: &'static str,
) -> Option<i64> {
    let mut raw = match connection.take() {
        Some(raw) => raw,
        None => match pool.open_apart().await {
            Ok(raw) => raw,
            Err(error) => {
                tracing::debug!(%error, "how far the replica is behind cannot be found out");
                return None;
            }
        },
    };
    let question = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut raw);
    let row: PgRow = tokio::time::timeout(ANSWER, question).await.ok()?.ok()?;
    // A server that changed its part is looked for anew.
    let place: Option<i64> = sqlx::Row::try_get(&row, 0).ok()?;
    if place.is_some() {
        *connection = Some(raw);
    }
    place
}

/// What the replica could not do and the primary may: it is gone, it ended the statement because
/// replay needed its rows, or it is starting.
pub(crate) fn primary_may(error: &Error) -> bool {
    error.sqlstate().as_deref() != Some("25006")
        && matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Serialization
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_has_everything_up_to_the_newest_mark_it_has_reached() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let watch = Watch {
            primary: Weak::new(),
            replica: Weak::new(),
            freshness: Arc::new(Freshness {
                bound: Duration::from_secs(5),
                has_all_until: RwLock::new(None),
            }),
            marks: [(0, 100), (1, 200), (2, 200), (3, 300)]
                .into_iter()
                .map(|(seconds, place)| Mark {
                    at: at(seconds),
                    place,
                })
                .collect(),
        };
        assert_eq!(watch.reached(99), None);
        assert_eq!(watch.reached(100), Some(at(0)));
        // Nothing was written in between, so it was complete at the later moment too.
        assert_eq!(watch.reached(299), Some(at(2)));
        assert_eq!(watch.reached(1_000), Some(at(3)));
    }
}
