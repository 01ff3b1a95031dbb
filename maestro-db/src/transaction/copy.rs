//! A transaction's connection while rows are copied on it.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgCopyIn};

use super::Transaction;
use super::state::{Failure, State};
use crate::error::ends_session;
use crate::metrics::PoolMetrics;
use crate::pool::{Conversation, within};
use crate::statement::Statement;
use std::sync::Arc;

/// Bytes on their way to the server. The conversation is busy until [`finish`](Self::finish) has the
/// server's answer, so dropping it closes the connection.
pub(crate) struct CopyStream<'t> {
    copy: PgCopyIn<&'t mut PgConnection>,
    conversation: &'t mut Conversation,
    state: &'t mut State,
    metrics: &'t PoolMetrics,
    statement: Arc<Statement>,
    limit: Option<Duration>,
}

impl Transaction {
    pub(crate) async fn copy_stream(&mut self, sql: &str) -> Result<CopyStream<'_>, sqlx::Error> {
        self.ready().await?;
        let Self { lease, state, .. } = self;
        let statement = lease.look_up(sql);
        let parts = lease.parts()?;
        *parts.conversation = Conversation::Busy { answered: false };
        match within(parts.limit, parts.raw.copy_in_raw(sql)).await {
            Ok(copy) => Ok(CopyStream {
                copy,
                conversation: parts.conversation,
                state,
                metrics: parts.metrics,
                statement,
                limit: parts.limit,
            }),
            Err(error) => {
                failed(parts.conversation, state, parts.metrics, &statement, &error);
                Err(error)
            }
        }
    }
}

impl CopyStream<'_> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), sqlx::Error> {
        let result = within(self.limit, self.copy.send(bytes)).await;
        if result.is_err() {
            *self.conversation = Conversation::Broken;
        }
        result.map(|_| ())
    }

    pub(crate) async fn finish(self, started: Instant) -> Result<u64, sqlx::Error> {
        let Self {
            copy,
            conversation,
            state,
            metrics,
            statement,
            limit,
        } = self;
        match within(limit, copy.finish()).await {
            Ok(rows) => {
                *conversation = Conversation::AtRest;
                metrics
                    .succeeded(&statement)
                    .observe_duration(started.elapsed());
                Ok(rows)
            }
            Err(error) => {
                failed(conversation, state, metrics, &statement, &error);
                Err(error)
            }
        }
    }
}

/// At rest again after the server's refusal, whose end the driver has read; else of no use.
fn failed(
    conversation: &mut Conversation,
    state: &mut State,
    metrics: &PoolMetrics,
    statement: &Arc<Statement>,
    error: &sqlx::Error,
) {
    let sqlstate = match error {
        sqlx::Error::Database(refusal) if !ends_session(refusal.as_ref()) => {
            *conversation = Conversation::AtRest;
            state.fail(Failure::statement(Some(statement), error));
            refusal.code()
        }
        _ => {
            *conversation = Conversation::Broken;
            state.fail(Failure::lost_because(error));
            None
        }
    };
    let kind = crate::error::classify(error).as_str();
    metrics.failed(statement, sqlstate.as_deref().unwrap_or_default(), kind);
}
