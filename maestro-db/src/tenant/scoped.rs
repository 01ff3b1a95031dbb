//! A database as one tenant sees it.

use std::fmt;
use std::panic::Location;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, SqlStr};

use super::{Scope, TenantId};
use crate::client::Db;
use crate::error::{Error, ErrorKind};
use crate::outlet;
use crate::pool::{Holder, Request};
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
///
/// let mut tx = acme.begin().await?;
/// sqlx::query("insert into orders (state) values ('open')").execute(&mut tx).await?;
/// tx.commit().await?;
/// # let _ = open;
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
}

impl Db {
    /// This database as one tenant sees it. Nothing is sent; whether the tenant exists shows at the
    /// first statement.
    pub fn tenant(&self, id: TenantId) -> TenantDb {
        TenantDb {
            db: self.clone(),
            id,
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
        let lease = self.db.pool().acquire(origin.clone()).await?;
        Transaction::begin(lease, options, Some(scope), origin).await
    }

    fn origin(&self, sql: &str) -> Holder {
        Holder::Statement(self.db.pool().statements().look_up(sql))
    }

    /// One statement as a transaction of its own.
    async fn once<T>(
        &self,
        sql: &str,
        work: impl for<'t> FnOnce(&'t mut Transaction) -> BoxFuture<'t, Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let mut tx = self
            .enter(TransactionOptions::new(), self.origin(sql))
            .await?;
        let value = work(&mut tx).await?;
        tx.commit().await?;
        Ok(value)
    }
}

impl fmt::Debug for TenantDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantDb")
            .field("tenant", &self.id)
            .field("db", &self.db)
            .finish()
    }
}

impl<'c> Executor<'c> for &'c TenantDb {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(async move {
            let request = request?;
            let sql = request.sql_text();
            self.once(sql.as_str(), |tx| tx.execute(request)).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        outlet::stream(move |outlet| async move {
            let request = request?;
            let origin = self.origin(request.text());
            let mut tx = self.enter(TransactionOptions::new(), origin).await?;
            tx.stream(request, &outlet).await?;
            tx.commit().await?;
            Ok(())
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(async move {
            let request = request?;
            let sql = request.sql_text();
            self.once(sql.as_str(), |tx| tx.fetch_all(request)).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(async move {
            let request = request?;
            let sql = request.sql_text();
            self.once(sql.as_str(), |tx| tx.fetch_optional(request))
                .await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        // Owned, so that the closure borrows nothing but the transaction.
        let (text, parameters) = (sql.clone(), parameters.to_vec());
        Box::pin(async move {
            self.once(text.as_str(), |tx| {
                Box::pin(async move { tx.prepare_with(sql, &parameters).await })
            })
            .await
        })
    }

    #[doc(hidden)]
    fn describe<'e>(
        self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        let text = sql.clone();
        Box::pin(async move { self.once(text.as_str(), |tx| tx.describe(sql)).await })
    }
}
