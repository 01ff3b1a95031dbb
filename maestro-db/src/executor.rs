//! The executors of this crate: how each runs a statement, and sqlx's trait on top of that.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{Either, SqlStr};

use crate::client::Db;
use crate::error::is_stale_plan;
use crate::outlet::Outlet;
use crate::pool::{Holder, Lease, Pool, Request};
use crate::statement::Statement;

/// What is done with a request on the driver's connection.
pub(crate) type Work<T> =
    for<'c> fn(&'c mut PgConnection, Request) -> BoxFuture<'c, Result<T, sqlx::Error>>;

/// What sqlx's `Executor` comes down to; [`executor!`] makes it one.
pub(crate) trait Runs: Sized + Send {
    /// Runs a statement to the end of its answer.
    fn run<T: Send>(
        self,
        request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send;

    /// Hands the rows of a statement out as they come.
    fn pour(
        self,
        request: Request,
        outlet: Outlet<Either<PgQueryResult, PgRow>>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Asks the server something about a statement.
    fn ask<T: Send>(
        self,
        sql: SqlStr,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send;
}

/// `Executor` for a type that [`Runs`]. A macro, because Rust's orphan rule refuses the implementation
/// for all of them.
macro_rules! executor {
    ($(#[$about:meta])* $of:ty) => {
        $(#[$about])*
        impl<'c> sqlx::Executor<'c> for $of {
            type Database = sqlx::Postgres;

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::future::BoxFuture<'e, Result<sqlx::postgres::PgQueryResult, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                let request = $crate::pool::Request::take(query);
                Box::pin(async move {
                    let work: $crate::executor::Work<_> = |raw, request| sqlx::Executor::execute(raw, request);
                    $crate::executor::Runs::run(self, request?, |_| 0, work).await
                })
            }

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::stream::BoxStream<
                'e,
                Result<sqlx::Either<sqlx::postgres::PgQueryResult, sqlx::postgres::PgRow>, sqlx::Error>,
            >
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                let request = $crate::pool::Request::take(query);
                $crate::outlet::stream(move |outlet| async move {
                    $crate::executor::Runs::pour(self, request?, outlet).await
                })
            }

            fn fetch_all<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::future::BoxFuture<'e, Result<Vec<sqlx::postgres::PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                let request = $crate::pool::Request::take(query);
                Box::pin(async move {
                    let rows = |rows: &Vec<sqlx::postgres::PgRow>| rows.len() as u64;
                    let work: $crate::executor::Work<_> = |raw, request| sqlx::Executor::fetch_all(raw, request);
                    $crate::executor::Runs::run(self, request?, rows, work).await
                })
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::future::BoxFuture<'e, Result<Option<sqlx::postgres::PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                let request = $crate::pool::Request::take(query);
                Box::pin(async move {
                    let rows = |row: &Option<sqlx::postgres::PgRow>| u64::from(row.is_some());
                    let work: $crate::executor::Work<_> = |raw, request| sqlx::Executor::fetch_optional(raw, request);
                    $crate::executor::Runs::run(self, request?, rows, work).await
                })
            }

            fn prepare_with<'e>(
                self,
                sql: sqlx::SqlStr,
                parameters: &'e [sqlx::postgres::PgTypeInfo],
            ) -> futures_core::future::BoxFuture<'e, Result<sqlx::postgres::PgStatement, sqlx::Error>>
            where
                'c: 'e,
            {
                // Owned, so that the closure borrows nothing but the connection.
                let (text, parameters) = (sql.clone(), parameters.to_vec());
                Box::pin($crate::executor::Runs::ask(self, sql, |raw| {
                    Box::pin(async move { sqlx::Executor::prepare_with(raw, text, &parameters).await })
                }))
            }

            #[doc(hidden)]
            fn describe<'e>(
                self,
                sql: sqlx::SqlStr,
            ) -> futures_core::future::BoxFuture<'e, Result<sqlx::Describe<sqlx::Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                let text = sql.clone();
                Box::pin($crate::executor::Runs::ask(self, sql, |raw| {
                    sqlx::Executor::describe(raw, text)
                }))
            }
        }
    };
}
pub(crate) use executor;

executor! {
    /// Each statement runs on a connection of its own choice and is its own transaction; statements that
    /// control a transaction or change the session are refused with a hint.
    ///
    /// Dropping the future of a statement cancels it: its connection is closed, and the server ends the
    /// statement within a second. So does dropping a stream before its end; ask for fewer rows with
    /// `LIMIT` instead.
    &'c Db
}

impl Runs for &Db {
    async fn run<T: Send>(
        self,
        request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> Result<T, sqlx::Error> {
        once(self.pool(), request, rows, work).await
    }

    async fn pour(
        self,
        mut request: Request,
        outlet: Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        let (mut lease, statement) = lease_for(self.pool(), &mut request).await?;
        lease.stream(&statement, request, &outlet).await
    }

    async fn ask<T: Send>(
        self,
        sql: SqlStr,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, sqlx::Error> {
        let statement = self.pool().statements().look_up(sql.as_str());
        statement.allow_on_pool()?;
        let holder = Holder::Statement(Arc::clone(&statement));
        let mut lease = self.pool().acquire(holder).await?;
        lease.run(&statement, |_| 0, work).await
    }
}

pub(crate) async fn lease_for(
    pool: &Pool,
    request: &mut Request,
) -> Result<(Lease, Arc<Statement>), sqlx::Error> {
    let statement = pool.statements().look_up(request.text());
    statement.allow_on_pool()?;
    request.tag(&statement);
    if pool.rules().pooled {
        request.named();
    }
    let lease = pool
        .acquire(Holder::Statement(Arc::clone(&statement)))
        .await?;
    Ok((lease, statement))
}

/// One statement in autocommit; once more when a migration had made its plan stale, because it did
/// nothing the first time.
pub(crate) async fn once<T>(
    pool: &Pool,
    mut request: Request,
    rows: fn(&T) -> u64,
    work: Work<T>,
) -> Result<T, sqlx::Error> {
    let (mut lease, statement) = lease_for(pool, &mut request).await?;
    // Only a result can change its type under a plan; others save the copy of their arguments.
    let again = statement.returns_rows.then(|| request.clone());
    let result = lease.run(&statement, rows, |raw| work(raw, request)).await;
    match (result, again) {
        (Err(sqlx::Error::Database(error)), Some(request)) if is_stale_plan(error.as_ref()) => {
            lease.forget_statements().await?;
            lease.run(&statement, rows, |raw| work(raw, request)).await
        }
        (result, _) => result,
    }
}
