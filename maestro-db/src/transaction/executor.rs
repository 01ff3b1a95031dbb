//! `&mut Transaction` as a sqlx executor: every statement is looked at before and after.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, SqlStr};

use super::Transaction;
use crate::outlet::{self, Outlet};
use crate::pool::Request;
use crate::statement::Statement;

impl Transaction {
    /// Checks a statement before it is sent.
    async fn enter(&mut self, sql: &str) -> Result<Arc<Statement>, sqlx::Error> {
        let statement = self.lease.look_up(sql);
        statement.allow_in_transaction(self.scoped)?;
        self.ready().await?;
        if statement.touches_session() {
            self.lease.tainted = true;
        }
        Ok(statement)
    }

    /// Hands a statement's rows out as they come.
    pub(crate) async fn stream(
        &mut self,
        request: Request,
        outlet: &Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        let statement = self.enter(request.text()).await?;
        let result = self.lease.stream(&statement, request, outlet).await;
        if let Err(error) = &result {
            self.note(Some(&statement), error);
        }
        result
    }

    async fn one<T>(
        &mut self,
        request: Result<Request, sqlx::Error>,
        rows: fn(&T) -> u64,
        work: for<'c> fn(&'c mut PgConnection, Request) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let request = request?;
        let statement = self.enter(request.text()).await?;
        let result = self
            .lease
            .run(&statement, rows, |raw| work(raw, request))
            .await;
        if let Err(error) = &result {
            self.note(Some(&statement), error);
        }
        result
    }
}

impl<'c> Executor<'c> for &'c mut Transaction {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(self.one(request, |_| 0, |raw, request| raw.execute(request)))
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
            self.stream(request, &outlet).await
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let request = Request::take(query);
        Box::pin(self.one(
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
        Box::pin(self.one(
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
            let statement = self.enter(sql.as_str()).await?;
            let parameters = parameters.to_vec();
            let result = self
                .lease
                .run(
                    &statement,
                    |_| 0,
                    |raw| Box::pin(async move { raw.prepare_with(sql, &parameters).await }),
                )
                .await;
            if let Err(error) = &result {
                self.note(Some(&statement), error);
            }
            result
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
            let statement = self.enter(sql.as_str()).await?;
            let result = self
                .lease
                .run(&statement, |_| 0, |raw| raw.describe(sql))
                .await;
            if let Err(error) = &result {
                self.note(Some(&statement), error);
            }
            result
        })
    }
}
