//! A database as one tenant sees it.

use std::fmt;
use std::panic::Location;

use futures_core::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{Either, SqlStr};

use super::{Scope, TenantId};
use crate::client::Db;
use crate::error::{Error, ErrorKind, is_stale_plan};
use crate::executor::{Runs, Work, executor};
use crate::outlet::Outlet;
use crate::pool::{Holder, Request};
use crate::read::{ReadDb, begin_reading};
use crate::transaction::{Transaction, TransactionOptions};

/// A service's database as one tenant sees it. A clone is the same.
///
/// Everything on it runs in a transaction that the server knows to be the tenant's, from the message
/// that begins it to the one that ends it. `&TenantDb` is a sqlx executor: each statement is a
/// transaction of its own.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// use maestro_db::TenantId;
///
/// let acme = db.tenant(TenantId::parse("acme")?);
/// let (open,): (i64,) =
///     sqlx::query_as("select count(*) from orders where state = 'open'").fetch_one(&acme).await?;
/// println!("{} has {open} open orders", acme.id());
///
/// let mut tx = acme.begin().await?;
/// sqlx::query("insert into orders (state) values ('open')").execute(&mut tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such tenant, [`ErrorKind::Isolation`] when it is
/// suspended or when a statement would change whose transaction it is. A tenant that was suspended
/// a moment ago may be let in for five seconds more.
#[derive(Clone)]
pub struct TenantDb {
    db: Db,
    id: TenantId,
    /// Only reads, which may be a little old.
    reads: bool,
}

impl ReadDb {
    /// One tenant's rows, for reads that may be a little old: each transaction is read-only.
    pub fn tenant(&self, id: TenantId) -> TenantDb {
        TenantDb {
            reads: true,
            ..self.db().tenant(id)
        }
    }
}

impl Db {
    /// This database as one tenant sees it. Nothing is sent; whether the tenant exists shows at the
    /// first statement.
    pub fn tenant(&self, id: TenantId) -> TenantDb {
        TenantDb {
            db: self.clone(),
            id,
            reads: false,
        }
    }
}

impl TenantDb {
    /// The tenant.
    pub fn id(&self) -> &TenantId {
        &self.id
    }

    /// Begins a transaction of the tenant, as [`Db::begin`] does, in the same round trip.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        self.enter(
            TransactionOptions::new(),
            Holder::Transaction(Location::caller()),
        )
    }

    /// Begins a transaction with options, as [`Db::begin_with`] does.
    #[track_caller]
    pub fn begin_with(
        &self,
        options: TransactionOptions,
    ) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_> {
        self.enter(options, Holder::Transaction(Location::caller()))
    }

    /// Runs a whole transaction again when it collided, as [`Db::retry`] does.
    ///
    /// ```no_run
    /// # async fn example(acme: maestro_db::TenantDb) -> Result<(), maestro_db::Error> {
    /// use maestro_db::{Isolation, TransactionOptions};
    ///
    /// acme.retry(|| async {
    ///     let options = TransactionOptions::new().isolation(Isolation::Serializable);
    ///     let mut tx = acme.begin_with(options).await?;
    ///     sqlx::query("update budgets set spent = spent + 1 where month = 7").execute(&mut tx).await?;
    ///     tx.commit().await
    /// })
    /// .await
    /// # }
    /// ```
    pub async fn retry<T, E, F, Fut>(&self, run: F) -> Result<T, E>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: std::error::Error + 'static,
    {
        self.db.retry(run).await
    }

    async fn enter(
        &self,
        options: TransactionOptions,
        origin: Holder,
    ) -> Result<Transaction, Error> {
        let entered = &self.db.inner().entered;
        let fresh = entered.is_fresh(&self.id);
        let begun = self.scoped(!fresh, options, origin).await;
        match &begun {
            Ok(_) if !fresh => entered.remember(&self.id),
            // Whatever it was: ask again next time.
            Err(_) => entered.forget(&self.id),
            Ok(_) => {}
        }
        begun
    }

    /// `check`: refuse a tenant that is not there or may not be entered.
    pub(super) async fn scoped(
        &self,
        check: bool,
        options: TransactionOptions,
        origin: Holder,
    ) -> Result<Transaction, Error> {
        let Some(model) = self.db.inner().tenants else {
            return Err(Error::new(
                ErrorKind::Config,
                "this database has no tenants: choose a model with `Db::builder(config).tenants(…)`",
            ));
        };
        let scope = Scope::new(model, &self.id, check);
        if self.reads {
            return begin_reading(&self.db, options, Some(scope), origin).await;
        }
        let lease = self.db.pool().acquire(origin.clone()).await?;
        Transaction::begin(lease, options, Some(scope), origin).await
    }

    fn origin(&self, sql: &str) -> Holder {
        Holder::Statement(self.db.pool().statements().look_up(sql))
    }

    async fn attempt<T: Send>(
        &self,
        request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> Result<T, sqlx::Error> {
        let origin = self.origin(request.text());
        let mut tx = self.enter(TransactionOptions::new(), origin).await?;
        let value = tx.run(request, rows, work).await?;
        tx.commit().await?;
        Ok(value)
    }
}

impl fmt::Debug for TenantDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantDb")
            .field("tenant", &self.id)
            .field("reads", &self.reads)
            .field("db", &self.db)
            .finish()
    }
}

executor!(&'c TenantDb);

/// Each statement is a transaction of its own.
impl Runs for &TenantDb {
    /// Once more when a plan was stale, because it did nothing the first time. Where tenants have
    /// schemas, a statement meets that whenever it comes to a tenant whose tables a migration has not
    /// changed yet.
    async fn run<T: Send>(
        self,
        request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> Result<T, sqlx::Error> {
        let again = request.clone();
        match self.attempt(request, rows, work).await {
            Err(sqlx::Error::Database(error)) if is_stale_plan(error.as_ref()) => {
                self.attempt(again, rows, work).await
            }
            result => result,
        }
    }

    async fn pour(
        self,
        request: Request,
        outlet: Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        let origin = self.origin(request.text());
        let mut tx = self.enter(TransactionOptions::new(), origin).await?;
        tx.pour(request, outlet).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn ask<T: Send>(
        self,
        sql: SqlStr,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, sqlx::Error> {
        let origin = self.origin(sql.as_str());
        let mut tx = self.enter(TransactionOptions::new(), origin).await?;
        let value = tx.ask(sql, work).await?;
        tx.commit().await?;
        Ok(value)
    }
}
