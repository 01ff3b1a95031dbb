//! A connection on loan: knows whether the conversation with the server is at rest, and hands the
//! connection back only then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::managed::Object;
use futures_core::future::BoxFuture;
use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, Postgres};
use sqlx::{AssertSqlSafe, Connection as _, Either, Execute, Executor as _, SqlStr};
use tracing::Instrument as _;

use super::manager::Connections;
use super::{Holder, SETTLE, Shared};
use crate::error::{Error, ErrorKind, ends_session, is_stale_plan};
use crate::metrics::PoolMetrics;
use crate::observe::Observation;
use crate::outlet::Outlet;
use crate::statement::Statement;

/// A statement as sqlx hands it to an executor, taken apart.
#[derive(Clone)]
pub(crate) struct Request {
    sql: SqlStr,
    arguments: Option<PgArguments>,
    statement: Option<PgStatement>,
    persistent: bool,
}

impl Request {
    /// Fails when an argument could not be encoded; nothing was sent then.
    pub(crate) fn take<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, sqlx::Error> {
        let statement = query.statement().cloned();
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let persistent = query.persistent();
        Ok(Self {
            sql: query.sql(),
            arguments,
            statement,
            persistent,
        })
    }

    /// Behind a pooler an unnamed statement is prepared on one session and run on another, where an
    /// unnamed statement of somebody else answers: it gets a name, which the pooler keeps track of.
    pub(crate) fn named(&mut self) {
        self.persistent = true;
    }

    /// The text becomes the one that is sent.
    pub(crate) fn tag(&mut self, statement: &Statement) {
        if let Some(tagged) = &statement.tagged {
            self.sql = tagged.clone();
        }
    }

    pub(crate) fn text(&self) -> &str {
        self.sql.as_str()
    }
}

impl Execute<'_, Postgres> for Request {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// Where the conversation with the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conversation {
    /// The server waits for us.
    AtRest,
    /// A statement was begun and its answer is not read to the end; `answered` when some of it was.
    Busy { answered: bool },
    /// The connection is of no use any more.
    Broken,
}

/// A connection on loan.
///
/// Dropping it hands the connection back when the conversation is at rest, rolls a transaction back
/// first when one is open, and closes the connection otherwise: closing it is what cancels a
/// statement that is still running.
#[derive(Debug)]
pub(crate) struct Lease {
    object: Option<Object<Connections>>,
    shared: Arc<Shared>,
    conversation: Conversation,
    /// A transaction is open.
    pub(crate) in_transaction: bool,
    /// The session may have been changed: close the connection instead of handing it back.
    pub(crate) tainted: bool,
}

impl Lease {
    pub(super) fn new(object: Object<Connections>, shared: Arc<Shared>, holder: Holder) -> Self {
        object.slot.take(holder);
        Self {
            object: Some(object),
            shared,
            conversation: Conversation::AtRest,
            in_transaction: false,
            tainted: false,
        }
    }

    pub(crate) fn conversation(&self) -> Conversation {
        self.conversation
    }

    pub(crate) fn metrics(&self) -> &PoolMetrics {
        &self.shared.metrics
    }

    /// The driver's connection.
    pub(crate) fn raw(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.object {
            Some(object) if self.conversation != Conversation::Broken => Ok(&mut object.raw),
            _ => Err(lost().into()),
        }
    }

    /// The driver's connection for one statement; nobody else's may be under way.
    fn speak(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match &mut self.object {
            Some(object) if self.conversation == Conversation::AtRest => {
                self.conversation = Conversation::Busy { answered: false };
                Ok(&mut object.raw)
            }
            _ => Err(lost().into()),
        }
    }

    /// Everything a conversation of another kind needs, apart from each other.
    pub(crate) fn parts(&mut self) -> Result<Parts<'_>, sqlx::Error> {
        match &mut self.object {
            Some(object) if self.conversation == Conversation::AtRest => Ok(Parts {
                raw: &mut object.raw,
                conversation: &mut self.conversation,
                metrics: &self.shared.metrics,
                limit: self.shared.rules.answer,
                slow: self.shared.rules.slow,
            }),
            _ => Err(lost().into()),
        }
    }

    /// What is known of a text.
    pub(crate) fn look_up(&self, sql: &str) -> Arc<Statement> {
        self.shared.statements.look_up(sql)
    }

    /// Runs one statement to the end of its answer.
    pub(crate) async fn run<T>(
        &mut self,
        statement: &Statement,
        rows: fn(&T) -> u64,
        work: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let limit = self.shared.rules.answer;
        let shared = Arc::clone(&self.shared);
        let mut observation = Observation::begin(statement, &shared.metrics, shared.rules.slow);
        let span = observation.span();
        let result = async {
            let result = within(limit, work(self.speak()?)).await;
            self.settle(result.as_ref().err()).await;
            result
        }
        .instrument(span)
        .await;
        match &result {
            Ok(value) => observation.succeeded(rows(value)),
            Err(error) => observation.failed(error),
        }
        result
    }

    /// Runs one statement and hands its rows out as they come.
    pub(crate) async fn stream(
        &mut self,
        statement: &Statement,
        request: Request,
        outlet: &Outlet<Either<PgQueryResult, PgRow>>,
    ) -> Result<(), sqlx::Error> {
        let limit = self.shared.rules.answer;
        let shared = Arc::clone(&self.shared);
        let mut observation = Observation::begin(statement, &shared.metrics, shared.rules.slow);
        let span = observation.span();
        let mut rows = 0;
        let result = async {
            let Self {
                object,
                conversation,
                ..
            } = self;
            let (Some(object), Conversation::AtRest) = (object, *conversation) else {
                return Err(lost().into());
            };
            *conversation = Conversation::Busy { answered: false };
            let mut items = object.raw.fetch_many(request);
            let end = loop {
                match within(limit, items.try_next()).await {
                    Ok(Some(item)) => {
                        *conversation = Conversation::Busy { answered: true };
                        rows += u64::from(item.is_right());
                        outlet.put(item).await;
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            drop(items);
            self.settle(end.as_ref().err()).await;
            end
        }
        .instrument(span)
        .await;
        match &result {
            Ok(()) => observation.succeeded(rows),
            Err(error) => observation.failed(error),
        }
        result
    }

    /// Runs statements of this crate in one message: `BEGIN`, `COMMIT`, `SAVEPOINT …`.
    pub(crate) async fn control(
        &mut self,
        name: &'static str,
        sql: String,
    ) -> Result<(), sqlx::Error> {
        let statement = self.look_up(name);
        self.run(
            &statement,
            |()| 0,
            |raw| Box::pin(async move { raw.execute(AssertSqlSafe(sql)).await.map(|_| ()) }),
        )
        .await
    }

    /// Reads the rest of an answer whose stream was dropped after it had begun.
    pub(crate) async fn drain(&mut self) -> Result<(), sqlx::Error> {
        let limit = self.shared.rules.answer;
        let raw = self.raw()?;
        let result = within(limit, raw.flush()).await;
        self.settle(result.as_ref().err()).await;
        result
    }

    /// Brings the conversation to rest after an answer, or finds that it cannot be.
    async fn settle(&mut self, error: Option<&sqlx::Error>) {
        self.conversation = match error {
            None => Conversation::AtRest,
            Some(error) if self.survives(error) => {
                // sqlx stops reading at an error; the end of the answer is still to come, and in
                // practice it has arrived with it.
                match &mut self.object {
                    Some(object) => match tokio::time::timeout(SETTLE, object.raw.flush()).await {
                        Ok(Ok(())) => Conversation::AtRest,
                        _ => Conversation::Broken,
                    },
                    None => Conversation::Broken,
                }
            }
            Some(_) => Conversation::Broken,
        };
        if self.conversation == Conversation::Broken {
            self.shared.health.suspect();
        }
    }

    /// Whether the connection is of use after this error.
    fn survives(&self, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::Database(error) => {
                if is_stale_plan(error.as_ref()) {
                    self.shared.health.plans_are_stale();
                }
                if error.code().as_deref() == Some(READ_ONLY) {
                    self.shared.health.maybe_demoted();
                }
                !ends_session(error.as_ref())
            }
            // Found by the driver before or after it spoke to the server, never in between.
            sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::Encode(_)
            | sqlx::Error::RowNotFound => true,
            _ => false,
        }
    }

    /// Forgets prepared statements that a migration made stale.
    pub(crate) async fn forget_statements(&mut self) -> Result<(), sqlx::Error> {
        let raw = self.raw()?;
        let result = within(Some(SETTLE), raw.clear_cached_statements()).await;
        if result.is_err() {
            self.conversation = Conversation::Broken;
        }
        result
    }

    /// Ends an open transaction whose handle was dropped.
    pub(super) async fn roll_back(mut self) {
        let rolled_back =
            tokio::time::timeout(SETTLE, self.control("ROLLBACK", "ROLLBACK".to_owned())).await;
        if matches!(rolled_back, Ok(Ok(()))) {
            self.in_transaction = false;
        } else {
            self.tainted = true;
        }
    }
}

/// See [`Lease::parts`].
pub(crate) struct Parts<'l> {
    pub(crate) raw: &'l mut PgConnection,
    pub(crate) conversation: &'l mut Conversation,
    pub(crate) metrics: &'l PoolMetrics,
    pub(crate) limit: Option<Duration>,
    pub(crate) slow: Option<Duration>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut object) = self.object.take() else {
            return;
        };
        let at_rest = self.conversation == Conversation::AtRest && !self.tainted;
        if at_rest && self.in_transaction {
            self.shared.metrics.dropped.increment();
            object
                .slot
                .take(Holder::Internal("rollback of a dropped transaction"));
            let rest = Self {
                object: Some(object),
                shared: Arc::clone(&self.shared),
                conversation: Conversation::AtRest,
                in_transaction: true,
                tainted: false,
            };
            if let Err(refused) = self.shared.rollbacks.try_send(rest) {
                // The pool is gone: closing the connection rolls back as well.
                refused.into_inner().tainted = true;
            }
            return;
        }
        let metrics = &self.shared.metrics;
        if let Some(held) = object.slot.release() {
            metrics.use_time.observe_duration(held);
        }
        if at_rest {
            object.returned = Instant::now();
            return;
        }
        match self.conversation {
            Conversation::AtRest => metrics.session.increment(),
            Conversation::Busy { .. } => metrics.cancelled.increment(),
            Conversation::Broken => metrics.broken.increment(),
        }
        drop(Object::take(object));
    }
}

/// SQLSTATE `read_only_sql_transaction`: the server became a standby, or the transaction is read-only.
const READ_ONLY: &str = "25006";

/// Waits for the server's answer, for at most `limit`.
pub(crate) async fn within<T>(
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(limit) = limit else {
        return work.await;
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "the server did not answer within {limit:?}, which is MAESTRO_POSTGRES_STATEMENT_TIMEOUT and a grace: it hangs or the network does; the connection was closed"
            ),
        )
        .into()),
    }
}

fn lost() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the connection was lost earlier in this transaction: begin another one",
    )
}
