//! `&Db` as a sqlx executor: each statement on whichever connection is free, in autocommit.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, SqlStr};

use crate::client::Db;
use crate::error::is_stale_plan;
use crate::outlet;
use crate::pool::{Holder, Lease, Pool, Request};
use crate::statement::Statement;

/// Each statement runs on a connection of its own choice and is its own transaction; statements that
/// control a transaction or change the session are refused with a hint.
///
/// Dropping the future of a statement cancels it: its connection is closed, and the server ends the
/// statement within a second. So does dropping a stream before its end; ask for fewer rows with
/// `LIMIT` instead.
impl<'c> Executor<'c> for &'c Db {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(once(
            self.pool(),
            request,
            |_| 0,
            |raw, request| raw.execute(request),
        ))
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
        let pool = self.pool();
        outlet::stream(move |outlet| async move {
            let mut request = request?;
            let (mut lease, statement) = lease_for(pool, &mut request).await?;
            lease.stream(&statement, request, &outlet).await
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(once(
            self.pool(),
            request,
            |rows: &Vec<PgRow>| rows.len() as u64,
            |raw, request| raw.fetch_all(request),
        ))
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
        Box::pin(once(
            self.pool(),
            request,
            |row: &Option<PgRow>| u64::from(row.is_some()),
            |raw, request| raw.fetch_optional(request),
        ))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let statement = self.pool().statements().look_up(sql.as_str());
            statement.allow_on_pool()?;
            let mut lease = self
                .pool()
                .acquire(Holder::Statement(Arc::clone(&statement)))
                .await?;
            lease
                .run(
                    &statement,
                    |_| 0,
                    |raw| {
                        // Owned, so that the closure borrows nothing but the connection.
                        let parameters = parameters.to_vec();
                        Box::pin(async move { raw.prepare_with(sql, &parameters).await })
                    },
                )
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
        Box::pin(async move {
            let statement = self.pool().statements().look_up(sql.as_str());
            let mut lease = self
                .pool()
                .acquire(Holder::Statement(Arc::clone(&statement)))
                .await?;
            lease.run(&statement, |_| 0, |raw| raw.describe(sql)).await
        })
    }
}

async fn lease_for(
    pool: &Pool,
    request: &mut Request,
) -> Result<(Lease, Arc<Statement>), sqlx::Error> {
    let statement = pool.statements().look_up(request.text());
    statement.allow_on_pool()?;
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
async fn once<T>(
    pool: &Pool,
    request: Result<Request, sqlx::Error>,
    rows: fn(&T) -> u64,
    work: for<'c> fn(&'c mut PgConnection, Request) -> BoxFuture<'c, Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let mut request = request?;
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
