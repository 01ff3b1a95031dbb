//! Processes over several events, each in one state at a time, and how long they take.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Executor, PgExecutor, Postgres};

use crate::client::{Inner, Messaging};
use crate::error::Error;
use crate::outbox::answered;

/// The running instances of one kind of process, in the service's own database.
///
/// Every step is one statement in the transaction of what it does, and happens only from the state
/// it is meant for: of a payment and a timeout that come together, one wins. A relay of the outbox
/// exports the age of the oldest instance of each state, so that a process that hangs is seen while
/// it hangs.
///
/// ```no_run
/// # use maestro_messaging::{HandlerError, Messaging};
/// # async fn paid(messaging: Messaging, pool: sqlx::PgPool) -> Result<(), HandlerError> {
/// let checkout = messaging.saga("checkout");
/// let mut tx = pool.begin().await?;
/// checkout.begin(&mut *tx, "order-7", "awaiting-payment").await?;
/// tx.commit().await?;
///
/// // Later, in the handler of the payment:
/// let mut tx = pool.begin().await?;
/// if checkout.advance(&mut *tx, "order-7", "awaiting-payment", "packing").await? {
///     // … and here whatever happens when an order is paid
/// }
/// tx.commit().await?;
///
/// // In the handler of the timeout, a scheduled event; if it was paid in time, nothing happens:
/// let mut tx = pool.begin().await?;
/// if checkout.time_out(&mut *tx, "order-7", "awaiting-payment").await? {
///     // … the order is cancelled
/// }
/// tx.commit().await?;
///
/// // And when the parcel is gone:
/// checkout.finish(&pool, "order-7", "packing").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Saga {
    inner: Arc<Inner>,
    name: Arc<str>,
}

impl Saga {
    /// Begins an instance. False if one of this key is running.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) when the statement fails.
    pub async fn begin<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &str,
        state: &str,
    ) -> Result<bool, Error> {
        let begun = sqlx::query(
            "INSERT INTO maestro.saga (saga, key, state) VALUES ($1, $2, $3)
             ON CONFLICT DO NOTHING",
        )
        .bind(&*self.name)
        .bind(key)
        .bind(state)
        .execute(executor);
        let begun = answered("beginning a saga", begun).await?;
        Ok(begun.rows_affected() == 1)
    }

    /// Goes from one state to another. False if it is not in the first one: somebody else has
    /// decided.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) when the statement fails.
    pub async fn advance<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &str,
        from: &str,
        to: &str,
    ) -> Result<bool, Error> {
        let advanced = sqlx::query(
            "UPDATE maestro.saga SET state = $4 WHERE saga = $1 AND key = $2 AND state = $3",
        )
        .bind(&*self.name)
        .bind(key)
        .bind(from)
        .bind(to)
        .execute(executor);
        let advanced = answered("advancing a saga", advanced).await?;
        Ok(advanced.rows_affected() == 1)
    }

    /// Ends it. False if it is not in this state. Its duration is measured at this statement, and
    /// so again if the transaction is rolled back and tried again.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) when the statement fails.
    pub async fn finish<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &str,
        from: &str,
    ) -> Result<bool, Error> {
        self.end(executor, key, from).await
    }

    /// Ends it because its time is up. False if it is not in this state any more: it went on in
    /// time. Counted as a timeout.
    ///
    /// # Errors
    /// [`ErrorKind::Database`](crate::ErrorKind::Database) when the statement fails.
    pub async fn time_out<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &str,
        from: &str,
    ) -> Result<bool, Error> {
        let ended = self.end(executor, key, from).await?;
        if ended {
            let timeouts = &self.inner.metrics.sagas.timeouts;
            timeouts.with([&*self.name]).increment();
        }
        Ok(ended)
    }

    async fn end<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        key: &str,
        from: &str,
    ) -> Result<bool, Error> {
        let ended = sqlx::query_scalar::<_, f64>(
            "DELETE FROM maestro.saga WHERE saga = $1 AND key = $2 AND state = $3
             RETURNING extract(epoch FROM clock_timestamp() - began_at)::float8",
        )
        .bind(&*self.name)
        .bind(key)
        .bind(from)
        .fetch_optional(executor);
        let Some(seconds) = answered("ending a saga", ended).await? else {
            return Ok(false);
        };
        let durations = &self.inner.metrics.sagas.duration;
        durations
            .with([&*self.name])
            .observe_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        Ok(true)
    }
}

impl std::fmt::Debug for Saga {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saga")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Messaging {
    /// A kind of process over several events; the name is a label of its metrics.
    pub fn saga(&self, name: &str) -> Saga {
        Saga {
            inner: Arc::clone(self.inner()),
            name: name.into(),
        }
    }
}

/// Sets the gauges of outbox and sagas from the tables. What was seen before and is not there any
/// more becomes zero.
pub(crate) async fn look<D>(
    inner: &Inner,
    database: &D,
    seen: &mut HashSet<(String, String)>,
) -> Result<(), Error>
where
    D: Sync,
    for<'c> &'c D: Executor<'c, Database = Postgres>,
{
    let outbox = sqlx::query_as::<_, (i64, f64)>(
        "SELECT
            (SELECT count(*) FROM (
                SELECT FROM maestro.outbox WHERE not_before IS NULL LIMIT 100000) AS counted),
            coalesce((SELECT extract(epoch FROM now() - created_at)::float8 FROM maestro.outbox
                WHERE not_before IS NULL ORDER BY id LIMIT 1), 0)",
    )
    .fetch_one(database);
    let (depth, age) = answered("measuring the outbox", outbox).await?;
    inner.metrics.outbox_depth.set(depth as f64);
    inner.metrics.outbox_age.set(age.max(0.0));

    let sagas = sqlx::query_as::<_, (String, String, f64)>(
        "SELECT saga, state, extract(epoch FROM now() - min(began_at))::float8
         FROM maestro.saga GROUP BY saga, state",
    )
    .fetch_all(database);
    let running = answered("measuring the sagas", sagas).await?;
    let ages = &inner.metrics.sagas.oldest_age;
    let mut now = HashSet::with_capacity(running.len());
    for (saga, state, age) in running {
        ages.with([&saga, &state]).set(age.max(0.0));
        now.insert((saga, state));
    }
    for (saga, state) in seen.difference(&now) {
        ages.with([saga, state]).set(0.0);
    }
    *seen = now;
    Ok(())
}
