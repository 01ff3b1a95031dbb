//! Who relays which bucket.
//!
//! The 64 buckets are shared evenly among the relays that are alive. A lease has a term, counted
//! from before the statement that took it, and a fencing token that grows with every owner. A relay
//! that cannot renew stops publishing before its term is over; its buckets go to others.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{Executor, Postgres};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Error;
use crate::outbox::answered;

/// Buckets of an outbox: enough that dozens of replicas share evenly, few enough that a relay asks
/// for all of its own in one statement.
pub(crate) const BUCKETS: u64 = 64;

/// The buckets one relay owns.
#[derive(Debug)]
pub(crate) struct Leases {
    owner: Uuid,
    term: Duration,
    owned: HashMap<i16, Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    token: i64,
    until: Instant,
}

impl Leases {
    pub(crate) fn new(term: Duration) -> Self {
        Self {
            owner: Uuid::now_v7(),
            term,
            owned: HashMap::new(),
        }
    }

    /// How often to call [`keep`](Self::keep).
    pub(crate) fn period(&self) -> Duration {
        self.term / 5
    }

    /// Whether a publish may begin now: its bucket is owned for long enough.
    pub(crate) fn may_publish(&self, bucket: i16, now: Instant) -> bool {
        self.owned
            .get(&bucket)
            .is_some_and(|held| held.until > now + self.term / 4)
    }

    /// The buckets to ask for.
    pub(crate) fn buckets(&self, now: Instant) -> Vec<i16> {
        self.owned
            .keys()
            .copied()
            .filter(|bucket| self.may_publish(*bucket, now))
            .collect()
    }

    /// Renews, takes what is free up to a fair share, gives up what is beyond it.
    pub(crate) async fn keep<D>(&mut self, database: &D) -> Result<(), Error>
    where
        D: Sync,
        for<'c> &'c D: Executor<'c, Database = Postgres>,
    {
        let term = self.term.as_secs_f64();
        // Before the statement: the term can only be shorter here than in the database.
        let now = Instant::now();
        let renewed = sqlx::query_as::<_, (i16, i64)>(
            "UPDATE maestro.outbox_lease SET expires_at = now() + make_interval(secs => $2)
             WHERE owner = $1 AND expires_at > now() RETURNING bucket, token",
        )
        .bind(self.owner)
        .bind(term)
        .fetch_all(database);
        let renewed = answered("renewing the outbox leases", renewed).await?;
        self.owned = self.held(renewed, now);

        let alive = sqlx::query_scalar::<_, i64>(
            "WITH gone AS (
                DELETE FROM maestro.outbox_relay WHERE expires_at <= now() AND id <> $1
            ), me AS (
                INSERT INTO maestro.outbox_relay (id, expires_at)
                VALUES ($1, now() + make_interval(secs => $2))
                ON CONFLICT (id) DO UPDATE SET expires_at = EXCLUDED.expires_at
            )
            SELECT count(*) FROM maestro.outbox_relay WHERE expires_at > now() AND id <> $1",
        )
        .bind(self.owner)
        .bind(term)
        .fetch_one(database);
        let others = answered("counting the outbox relays", alive).await?;
        let share = fair_share(u64::try_from(others).unwrap_or_default() + 1);

        let owned = self.owned.len() as u64;
        if owned > share {
            let surplus: Vec<i16> = self
                .owned
                .keys()
                .copied()
                .take(usize::try_from(owned - share).unwrap_or_default())
                .collect();
            self.give_up(database, &surplus).await?;
        } else if owned < share {
            let now = Instant::now();
            let taken = sqlx::query_as::<_, (i16, i64)>(
                "UPDATE maestro.outbox_lease
                 SET owner = $1, token = token + 1, expires_at = now() + make_interval(secs => $2)
                 WHERE bucket IN (
                    SELECT bucket FROM maestro.outbox_lease WHERE expires_at <= now()
                    ORDER BY random() LIMIT $3 FOR UPDATE SKIP LOCKED
                 )
                 RETURNING bucket, token",
            )
            .bind(self.owner)
            .bind(term)
            .bind(i64::try_from(share - owned).unwrap_or_default())
            .fetch_all(database);
            let taken = answered("taking outbox leases", taken).await?;
            let taken = self.held(taken, now);
            self.owned.extend(taken);
        }
        Ok(())
    }

    /// Gives everything back, so that others need not wait for the term to end.
    pub(crate) async fn release<D>(&mut self, database: &D) -> Result<(), Error>
    where
        D: Sync,
        for<'c> &'c D: Executor<'c, Database = Postgres>,
    {
        let all: Vec<i16> = self.owned.keys().copied().collect();
        self.give_up(database, &all).await?;
        let gone = sqlx::query("DELETE FROM maestro.outbox_relay WHERE id = $1")
            .bind(self.owner)
            .execute(database);
        answered("leaving the outbox relays", gone).await?;
        Ok(())
    }

    async fn give_up<D>(&mut self, database: &D, buckets: &[i16]) -> Result<(), Error>
    where
        D: Sync,
        for<'c> &'c D: Executor<'c, Database = Postgres>,
    {
        let mut tokens = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            // From here on nothing of it is begun, whatever the database answers.
            if let Some(held) = self.owned.remove(bucket) {
                tokens.push(held.token);
            }
        }
        let released = sqlx::query(
            "UPDATE maestro.outbox_lease l SET expires_at = '-infinity'
             FROM unnest($2::smallint[], $3::bigint[]) AS mine (bucket, token)
             WHERE l.bucket = mine.bucket AND l.token = mine.token AND l.owner = $1",
        )
        .bind(self.owner)
        .bind(buckets)
        .bind(&tokens)
        .execute(database);
        answered("giving outbox leases back", released).await?;
        Ok(())
    }

    fn held(&self, rows: Vec<(i16, i64)>, now: Instant) -> HashMap<i16, Held> {
        let until = now + self.term;
        rows.into_iter()
            .map(|(bucket, token)| (bucket, Held { token, until }))
            .collect()
    }
}

/// Buckets for each of so many relays; the last one may get fewer.
fn fair_share(relays: u64) -> u64 {
    BUCKETS.div_ceil(relays.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_all_buckets_and_differ_by_little() {
        for relays in 1..=64 {
            assert!(fair_share(relays) * relays >= BUCKETS);
            assert!(fair_share(relays) * relays < BUCKETS + relays);
        }
        assert_eq!(fair_share(100), 1);
    }

    #[test]
    fn nothing_begins_near_the_end_of_a_term() {
        let mut leases = Leases::new(Duration::from_secs(20));
        let now = Instant::now();
        leases.owned = leases.held(vec![(3, 1)], now);
        assert!(leases.may_publish(3, now + Duration::from_secs(14)));
        assert!(!leases.may_publish(3, now + Duration::from_secs(15)));
        assert!(!leases.may_publish(4, now));
    }
}
