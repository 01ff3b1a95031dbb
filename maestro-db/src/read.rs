//! Reads that may be a little old: on the standby while it is close behind, else on the primary.

use std::panic::Location;

use futures_core::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{Either, SqlStr};

use crate::client::Db;
use crate::error::{Error, ErrorKind};
use crate::executor::{Runs, Work, executor, lease_for, once};
use crate::outlet::Outlet;
use crate::pool::{Holder, Lease, Pool, Request};
use crate::replica::{Replica, primary_may};
use crate::tenant::Scope;
use crate::transaction::{Transaction, TransactionOptions};

/// A service's database for reads whose rows may be as old as `MAESTRO_POSTGRES_READ_MAX_LAG`. A clone
/// is the same.
///
/// They are answered by the standby in `MAESTRO_POSTGRES_READ_URL` while it is known to be no further
/// behind than that, and by the primary otherwise: without a standby, when it lags, when it stops (a
/// statement that meets this is run again on the primary), when it was promoted.
///
/// `&ReadDb` is a sqlx executor for statements that read; others are refused before they are sent.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// use maestro_db::{Isolation, TransactionOptions};
///
/// let (open,): (i64,) = sqlx::query_as("select count(*) from orders where state = 'open'")
///     .fetch_one(&db.read())
///     .await?;
///
/// // Several statements that see one moment:
/// let options = TransactionOptions::new().isolation(Isolation::RepeatableRead);
/// let mut tx = db.read().begin_with(options).await?;
/// let paid: i64 = sqlx::query_scalar("select count(*) from payments").fetch_one(&mut tx).await?;
/// let owed: i64 = sqlx::query_scalar("select count(*) from invoices").fetch_one(&mut tx).await?;
/// tx.rollback().await?;
/// # let _ = (open, paid, owed);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReadDb {
    db: Db,
}

impl Db {
    /// This database for reads that may be a little old.
    pub fn read(&self) -> ReadDb {
        ReadDb { db: self.clone() }
    }
}

impl ReadDb {
    /// Begins a read-only transaction.
    ///
    /// # Errors
    /// As [`Db::begin`].
    ///
    /// # Cancellation
    /// As [`Db::begin`].
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        self.begin_with(TransactionOptions::new())
    }

    /// Begins a transaction with options; it is read-only in any case. A standby knows no
    /// SERIALIZABLE.
    #[track_caller]
    pub fn begin_with(
        &self,
        options: TransactionOptions,
    ) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        let origin = Holder::Transaction(Location::caller());
        begin_reading(&self.db, options, None, origin)
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    fn replica(&self) -> Option<&Replica> {
        fresh_replica(&self.db)
    }

    async fn lease(
        &self,
        request: &mut Request,
    ) -> Result<(Lease, std::sync::Arc<crate::statement::Statement>), sqlx::Error> {
        if let Some(replica) = self.replica() {
            match lease_for(&replica.pool, request).await {
                Ok(leased) => {
                    replica.metrics.replica.increment();
                    return Ok(leased);
                }
                Err(error) => left(replica, error)?,
            }
        }
        count_primary(&self.db);
        lease_for(self.db.pool(), request).await
    }

    fn allow(&self, sql: &str) -> Result<(), Error> {
        let statement = self.db.pool().statements().look_up(sql);
        if READS.contains(&statement.operation) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Rejected,
            format!(
                "`{}` was not sent: `db.read()` may answer from a standby, which takes no writes (statement `{}`)",
                statement.operation, statement.summary
            ),
        ))
    }
}

const READS: &[&str] = &["SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN"];

/// Begins a read-only transaction where reads go.
pub(crate) async fn begin_reading(
    db: &Db,
    options: TransactionOptions,
    scope: Option<Scope>,
    origin: Holder,
) -> Result<Transaction, Error> {
    let begin = async |pool: &Pool| {
        let lease = pool.acquire(origin.clone()).await?;
        Transaction::begin(lease, options.read_only(), scope.clone(), origin.clone()).await
    };
    if let Some(replica) = fresh_replica(db) {
        match begin(&replica.pool).await {
            Ok(transaction) => {
                replica.metrics.replica.increment();
                return Ok(transaction);
            }
            Err(error) if primary_may(&error) => replica.stopped(),
            Err(error) => return Err(error),
        }
    }
    count_primary(db);
    begin(db.pool()).await
}

fn fresh_replica(db: &Db) -> Option<&Replica> {
    let replica = db.inner().replica.as_ref()?;
    replica.is_fresh().then_some(replica)
}

fn count_primary(db: &Db) {
    if let Some(replica) = &db.inner().replica {
        replica.metrics.primary.increment();
    }
}

/// The replica could not answer: nobody else is sent there, and the primary is asked. Anything else is
/// the statement's own error.
fn left(replica: &Replica, error: sqlx::Error) -> Result<(), sqlx::Error> {
    let error = Error::from(error);
    if !primary_may(&error) {
        return Err(error.into());
    }
    if error.kind() == ErrorKind::Unavailable {
        tracing::info!(%error, "the replica cannot answer; reads go to the primary");
        replica.stopped();
    }
    Ok(())
}

executor!(&'c ReadDb);

impl Runs for &ReadDb {
    /// On the standby, and on the primary when it cannot answer there.
    async fn run<T: Send>(
        self,
        request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> Result<T, sqlx::Error> {
        self.allow(request.text())?;
        if let Some(replica) = self.replica() {
            match once(&replica.pool, request.clone(), rows, work).await {
                Ok(value) => {
                    replica.metrics.replica.increment();
                    return Ok(value);
                }
                Err(error) => left(replica, error)?,
            }
        }
        count_primary(&self.db);
        once(self.db.pool(), request, rows, work).await
    }

    async fn pour(
        self,
        mut request: Request,
        outlet: Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        self.allow(request.text())?;
        let (mut lease, statement) = self.lease(&mut request).await?;
        lease.stream(&statement, request, &outlet).await
    }

    /// The same on both; the primary is there when anything is.
    async fn ask<T: Send>(
        self,
        sql: SqlStr,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, sqlx::Error> {
        (&self.db).ask(sql, work).await
    }
}
