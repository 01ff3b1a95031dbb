//! The handle that services hold.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_config::Secret;
use maestro_metrics::{DrainPhase, DrainStep, Leftover};

use crate::builder::DbBuilder;
use crate::config::{DbConfig, Endpoint};
use crate::error::{Error, ErrorKind, is_serialization_failure};
use crate::login::{Given, Login};
use crate::pool::{Holder, Pool, PoolReport};
use crate::replica::Replica;
use crate::retry::{ATTEMPTS, Backoff};
use crate::schema::Parts;
use crate::tenant::{Entered, TenantModel};
use crate::transaction::{Transaction, TransactionOptions};

/// A service's database. A clone is the same database.
///
/// `&Db` is a sqlx executor for single statements; [`begin`](Db::begin) starts a transaction.
///
/// ```no_run
/// # async fn example(config: maestro_db::DbConfig) -> Result<(), maestro_db::Error> {
/// use maestro_db::Db;
///
/// let db = Db::connect(config).await?;
/// let (open,): (i64,) = sqlx::query_as("select count(*) from orders where state = $1")
///     .bind("open")
///     .fetch_one(&db)
///     .await?;
///
/// let mut tx = db.begin().await?;
/// sqlx::query("update orders set state = 'late' where state = 'open'").execute(&mut tx).await?;
/// tx.commit().await?; // an error if the server rolled back
/// # let _ = open;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Db {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: DbConfig,
    pub(crate) pool: Arc<Pool>,
    pub(crate) replica: Option<Replica>,
    /// The password that the service gave itself.
    pub(crate) given: Given,
    pub(crate) tenants: Option<TenantModel>,
    /// Which of this crate's own tables the database has.
    pub(crate) parts: Parts,
    pub(crate) entered: Entered,
}

impl Inner {
    /// How to log in to an endpoint: a password that was given belongs to the service's own role.
    pub(crate) fn login_to(&self, endpoint: &Endpoint) -> Login {
        let given = if endpoint.user == self.config.main.user {
            self.given.clone()
        } else {
            Given::default()
        };
        Login::new(endpoint.clone(), given)
    }
}

impl Db {
    /// Connects with the settings as they are; see [`DbBuilder::connect`].
    ///
    /// Waits for a server that is not up yet, for at most the acquire timeout, and says why it gave
    /// up. A service that must start before its server does uses [`DbBuilder::connect_lazy`].
    pub async fn connect(config: DbConfig) -> Result<Self, Error> {
        Self::builder(config).connect().await
    }

    /// Options that are code: the registry of metrics, how long to wait at the start.
    pub fn builder(config: DbConfig) -> DbBuilder {
        DbBuilder::new(config)
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The settings.
    pub fn config(&self) -> &DbConfig {
        &self.inner.config
    }

    /// Begins a transaction at the server's default isolation (READ COMMITTED).
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] when no connection became free, [`ErrorKind::Unavailable`] when the
    /// server cannot be reached.
    ///
    /// # Cancellation
    /// Dropping the future begins nothing: a connection on which `BEGIN` was under way is closed.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        self.begin_at(TransactionOptions::new(), Location::caller())
    }

    /// Begins a transaction with an isolation level, read-only or deferrable.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use maestro_db::{Isolation, TransactionOptions};
    ///
    /// let options = TransactionOptions::new().isolation(Isolation::Serializable).read_only();
    /// let mut tx = db.begin_with(options).await?;
    /// # tx.rollback().await
    /// # }
    /// ```
    #[track_caller]
    pub fn begin_with(
        &self,
        options: TransactionOptions,
    ) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        self.begin_at(options, Location::caller())
    }

    async fn begin_at(
        &self,
        options: TransactionOptions,
        location: &'static Location<'static>,
    ) -> Result<Transaction, Error> {
        let origin = Holder::Transaction(location);
        let lease = self.pool().acquire(origin.clone()).await?;
        Transaction::begin(lease, options, None, origin).await
    }

    /// Runs a whole transaction, and runs it again when it collided with another one: serialization
    /// failures (40001), deadlocks (40P01) and plans that a migration made stale. Ten runs at most,
    /// with growing, jittered pauses; then the error of the last.
    ///
    /// Everything that must be undone together belongs inside; what must not be repeated (a message
    /// sent, a request made) belongs after it.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use maestro_db::{Error, Isolation, TransactionOptions};
    ///
    /// let id = 17_i64;
    /// let left: i32 = db
    ///     .retry(|| async {
    ///         let options = TransactionOptions::new().isolation(Isolation::Serializable);
    ///         let mut tx = db.begin_with(options).await?;
    ///         let left = sqlx::query_scalar("update stock set left_over = left_over - 1 where id = $1 returning left_over")
    ///             .bind(id)
    ///             .fetch_one(&mut tx)
    ///             .await?;
    ///         tx.commit().await?;
    ///         Ok::<_, Error>(left)
    ///     })
    ///     .await?;
    /// # let _ = left;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancellation
    /// Dropping the future drops the run that is under way: its transaction is rolled back.
    pub async fn retry<T, E, F, Fut>(&self, mut run: F) -> Result<T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: std::error::Error + 'static,
    {
        let mut backoff = Backoff::collision();
        let mut attempt = 1;
        loop {
            let error = match run().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !is_serialization_failure(&error) {
                return Err(error);
            }
            let pause = backoff.next();
            tracing::debug!(attempt, ?pause, %error, "the transaction collided and is run again");
            self.pool().metrics().retries.increment();
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// What the pool holds now.
    ///
    /// ```no_run
    /// # fn example(db: &maestro_db::Db) {
    /// let pool = db.pool_report();
    /// println!("{} of {} in use, {} waiting", pool.active(), pool.max(), pool.waiting());
    /// # }
    /// ```
    pub fn pool_report(&self) -> PoolReport {
        self.pool().report()
    }

    /// Uses another password for every connection opened from now on; connections that are open
    /// are replaced within half a minute, one by one, as they become free.
    ///
    /// Not needed for a password in a file (`MAESTRO_POSTGRES_PASSWORD_FILE`,
    /// `MAESTRO_POSTGRES_URL_FILE`): those are followed. From the first call on, the password given
    /// here is used in their place.
    ///
    /// ```no_run
    /// # fn example(db: &maestro_db::Db, fetched: String) {
    /// use maestro_config::Secret;
    ///
    /// db.rotate_password(Secret::new(fetched)); // what a secret store handed out
    /// # }
    /// ```
    pub fn rotate_password(&self, password: Secret<String>) {
        if self.inner.given.replace(password) {
            tracing::info!("the database password changed; open connections are replaced");
            self.pool().retire_all();
            if let Some(replica) = &self.inner.replica {
                replica.pool.retire_all();
            }
        }
    }

    /// One round trip to the server, on a connection of the pool.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) {
    /// use std::time::Duration;
    ///
    /// if let Err(error) = db.ping(Duration::from_secs(1)).await {
    ///     println!("{error}"); // against what, after how long, and why
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] when the server does not answer within
    /// `limit`, [`ErrorKind::Exhausted`] when all connections are in use all the time.
    pub async fn ping(&self, limit: Duration) -> Result<(), Error> {
        let started = Instant::now();
        // Bounded by itself, with the pool's reason: a limit around it might end first.
        let mut lease = self
            .pool()
            .acquire_within(limit, Holder::Internal("ping"))
            .await?;
        let left = limit.saturating_sub(started.elapsed());
        let answer = lease.control("SELECT", "SELECT 1".to_owned());
        match tokio::time::timeout(left, answer).await {
            Ok(result) => result.map_err(|error| {
                let endpoint = self.pool().endpoint();
                Error::during(format!("a ping of {endpoint} failed"), error)
            }),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "{} did not answer a ping within {:.1?}",
                    self.pool().endpoint(),
                    started.elapsed()
                ),
            )),
        }
    }

    /// Lets nobody take a connection any more, waits for those in use for at most `limit`, then
    /// closes everything. `Err` holds the number of connections that were still in use.
    pub async fn close(&self, limit: Duration) -> Result<(), usize> {
        let closing = self.pool().close(limit);
        let Some(replica) = &self.inner.replica else {
            return closing.await;
        };
        match tokio::join!(closing, replica.pool.close(limit)) {
            (Ok(()), result) | (result, Ok(())) => result,
            (Err(one), Err(other)) => Err(one + other),
        }
    }

    /// The step that closes the pool when the service stops.
    ///
    /// ```no_run
    /// # async fn example(db: &maestro_db::Db) {
    /// use std::time::{Duration, Instant};
    ///
    /// // Who has no `maestro::Service` to do it:
    /// let ended = db.drain_step().run(Instant::now() + Duration::from_secs(10)).await;
    /// if !ended.left.is_none() {
    ///     eprintln!("{} was left with {}", ended.name, ended.left);
    /// }
    /// # }
    /// ```
    pub fn drain_step(&self) -> DrainStep {
        let db = self.clone();
        DrainStep::new("postgres", DrainPhase::Pools, move |deadline| async move {
            // A little earlier than the deadline, so that the count is still reported.
            let left = deadline
                .saturating_duration_since(Instant::now())
                .mul_f64(0.9);
            match db.close(left).await {
                Ok(()) => Leftover::none(),
                Err(count) => Leftover::of(count as u64, "connections in use"),
            }
        })
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("endpoint", self.pool().endpoint())
            .field("pool", &self.pool().report())
            .finish()
    }
}
