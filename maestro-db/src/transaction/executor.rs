//! `&mut Transaction` as a sqlx executor: every statement is looked at before and after.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{Either, SqlStr};

use super::Transaction;
use crate::executor::{Runs, Work, executor};
use crate::outlet::Outlet;
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

    /// Remembers how a statement ended.
    fn left<T>(
        &mut self,
        statement: &Arc<Statement>,
        result: Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        if let Err(error) = &result {
            self.note(Some(statement), error);
        }
        result
    }
}

executor!(&'c mut Transaction);

impl Runs for &mut Transaction {
    async fn run<T: Send>(
        self,
        mut request: Request,
        rows: fn(&T) -> u64,
        work: Work<T>,
    ) -> Result<T, sqlx::Error> {
        let statement = self.enter(request.text()).await?;
        request.tag(&statement);
        let result = self
            .lease
            .run(&statement, rows, |raw| work(raw, request))
            .await;
        self.left(&statement, result)
    }

    async fn pour(
        self,
        mut request: Request,
        outlet: Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        let statement = self.enter(request.text()).await?;
        request.tag(&statement);
        let result = self.lease.stream(&statement, request, &outlet).await;
        self.left(&statement, result)
    }

    async fn ask<T: Send>(
        self,
        sql: SqlStr,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> + Send,
    ) -> Result<T, sqlx::Error> {
        let statement = self.enter(sql.as_str()).await?;
        let result = self.lease.run(&statement, |_| 0, work).await;
        self.left(&statement, result)
    }
}
