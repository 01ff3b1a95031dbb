//! A transaction's connection while rows are copied on it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlStr;
use sqlx::postgres::{PgConnection, PgCopyIn};
use tracing::Instrument as _;

use super::Transaction;
use super::state::{Failure, State};
use crate::error::ends_session;
use crate::observe::Observation;
use crate::pool::{Conversation, within};
use crate::statement::Statement;

/// Bytes on their way to the server. The conversation is busy until [`finish`](Self::finish) has the
/// server's answer, so dropping it closes the connection.
pub(crate) struct CopyStream<'t> {
    copy: PgCopyIn<&'t mut PgConnection>,
    conversation: &'t mut Conversation,
    state: &'t mut State,
    statement: Arc<Statement>,
    observation: Observation<'t, Arc<Statement>>,
    limit: Option<Duration>,
}

impl Transaction {
    pub(crate) async fn copy_stream(&mut self, sql: &str) -> Result<CopyStream<'_>, sqlx::Error> {
        self.ready().await?;
        let Self { lease, state, .. } = self;
        let statement = lease.look_up(sql);
        let sql = statement.tagged.as_ref().map_or(sql, SqlStr::as_str);
        let parts = lease.parts()?;
        let mut observation = Observation::begin(Arc::clone(&statement), parts.metrics, parts.slow);
        *parts.conversation = Conversation::Busy { answered: false };
        let begun = within(parts.limit, parts.raw.copy_in_raw(sql))
            .instrument(observation.span())
            .await;
        match begun {
            Ok(copy) => Ok(CopyStream {
                copy,
                conversation: parts.conversation,
                state,
                statement,
                observation,
                limit: parts.limit,
            }),
            Err(error) => {
                observation.failed(&error);
                failed(parts.conversation, state, &statement, &error);
                Err(error)
            }
        }
    }
}

impl CopyStream<'_> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), sqlx::Error> {
        let result = within(self.limit, self.copy.send(bytes))
            .instrument(self.observation.span())
            .await;
        if let Err(error) = &result {
            self.observation.failed(error);
            *self.conversation = Conversation::Broken;
        }
        result.map(|_| ())
    }

    pub(crate) async fn finish(self) -> Result<u64, sqlx::Error> {
        let Self {
            copy,
            conversation,
            state,
            statement,
            mut observation,
            limit,
        } = self;
        let finished = within(limit, copy.finish())
            .instrument(observation.span())
            .await;
        match finished {
            Ok(rows) => {
                *conversation = Conversation::AtRest;
                observation.succeeded(rows);
                Ok(rows)
            }
            Err(error) => {
                observation.failed(&error);
                failed(conversation, state, &statement, &error);
                Err(error)
            }
        }
    }
}

/// At rest again after the server's refusal, whose end the driver has read; else of no use.
fn failed(
    conversation: &mut Conversation,
    state: &mut State,
    statement: &Arc<Statement>,
    error: &sqlx::Error,
) {
    match error {
        sqlx::Error::Database(refusal) if !ends_session(refusal.as_ref()) => {
            *conversation = Conversation::AtRest;
            state.fail(Failure::statement(Some(statement), error));
        }
        _ => {
            *conversation = Conversation::Broken;
            state.fail(Failure::lost_because(error));
        }
    }
}
