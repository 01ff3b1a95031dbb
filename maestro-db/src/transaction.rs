//! A transaction that knows what happened in it, so that its commit cannot lie.

mod copy;
mod executor;
mod options;
mod savepoint;
mod state;

use std::fmt;
use std::sync::Arc;

use sqlx::postgres::PgConnection;

use crate::error::{Error, ErrorKind, ends_session};
use crate::pool::{Conversation, Holder, Lease};
use crate::statement::Statement;
use crate::tenant::Scope;

pub(crate) use copy::CopyStream;
pub use options::{Isolation, TransactionOptions};
pub use savepoint::Savepoint;

use state::{Failure, State};

/// A transaction. `&mut Transaction` is a sqlx executor.
///
/// Every statement passes through it, so it knows whether one failed or was cancelled: then
/// [`commit`](Self::commit) rolls back and is an error, where a plain `COMMIT` would be answered
/// with success and store nothing.
///
/// Dropping it rolls back: the connection goes to a task of the pool that sends `ROLLBACK` and hands
/// it back once the server has acknowledged. When a statement was under way, the connection is
/// closed instead, which ends the statement and the transaction within a second.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db, month: i32) -> Result<(), maestro_db::Error> {
/// let mut tx = db.begin().await?;
/// tx.advisory_lock("close the month").await?; // free when the transaction ends
/// let closed = sqlx::query("update months set closed = true where month = $1 and not closed")
///     .bind(month)
///     .execute(&mut tx)
///     .await?;
/// if closed.rows_affected() == 0 {
///     return tx.rollback().await; // somebody else was first
/// }
/// tx.commit().await
/// # }
/// ```
#[must_use = "a transaction that is dropped is rolled back"]
pub struct Transaction {
    lease: Lease,
    state: State,
    /// Whose it is, for the messages of errors.
    origin: Holder,
    /// The transaction is a tenant's.
    scoped: bool,
}

impl Transaction {
    pub(crate) async fn begin(
        mut lease: Lease,
        options: TransactionOptions,
        scope: Option<Scope>,
        origin: Holder,
    ) -> Result<Self, Error> {
        let begin = options.begin();
        let sql = match &scope {
            Some(scope) => scope.begin(&begin),
            None => begin,
        };
        // Also when the message fails after its BEGIN.
        lease.in_transaction = true;
        lease
            .control("BEGIN", sql)
            .await
            .map_err(|error| Error::during(format!("beginning the {origin} failed"), error))?;
        Ok(Self {
            lease,
            state: State::default(),
            origin,
            scoped: scope.is_some(),
        })
    }

    /// Makes everything permanent. `Ok` means that the server has acknowledged it.
    ///
    /// # Errors
    /// - [`ErrorKind::Aborted`]: a statement had failed or was cancelled; everything is rolled back.
    /// - [`ErrorKind::Serialization`]: it collided with another transaction; run it again
    ///   ([`Db::retry`](crate::Db::retry)).
    /// - [`ErrorKind::Conflict`]: a deferred constraint does not hold; rolled back.
    /// - [`ErrorKind::Unknown`]: the connection was lost before the answer came; the server may have
    ///   committed or not.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection; whether the server committed is unknown.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.catch_up().await;
        if let Some(failure) = self.state.failure() {
            let error = self.aborted(failure);
            self.end_aborted().await;
            return Err(error);
        }
        // Through the driver's own connection anything may have been sent, also a COMMIT. A
        // savepoint can only be made inside a transaction that is sound, so this one message fails
        // unless the COMMIT in it commits what this handle stands for.
        let sql = if self.state.escaped() {
            "SAVEPOINT maestro_commit; COMMIT"
        } else if self.scoped {
            Scope::commit()
        } else {
            "COMMIT"
        };
        let result = self.lease.control("COMMIT", sql.to_owned()).await;
        let metrics = self.lease.metrics();
        match result {
            Ok(()) => {
                metrics.committed.increment();
                self.finish();
                Ok(())
            }
            // The server answered that it did not commit, and has rolled back.
            Err(sqlx::Error::Database(error)) if !ends_session(error.as_ref()) => {
                metrics.rolled_back.increment();
                if self.state.escaped() {
                    // Refused before the COMMIT: the connection is closed, and that rolls back.
                    self.lease.tainted = true;
                } else {
                    self.finish();
                }
                Err(Error::during(
                    format!("committing the {} failed, it was rolled back", self.origin),
                    sqlx::Error::Database(error),
                ))
            }
            Err(error) => {
                metrics.unknown.increment();
                Err(Error::new(
                    ErrorKind::Unknown,
                    format!(
                        "the connection was lost while the {} was being committed: whether it was is unknown",
                        self.origin
                    ),
                )
                .with_source(error))
            }
        }
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// When the server did not acknowledge it. Nothing is stored then either: the connection is
    /// closed, which rolls back.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection, which rolls back.
    pub async fn rollback(mut self) -> Result<(), Error> {
        if matches!(
            self.lease.conversation(),
            Conversation::Busy { answered: true }
        ) {
            // An error in the rest of the answer changes nothing any more.
            let _ = self.lease.drain().await;
        }
        if self.lease.conversation() != Conversation::AtRest {
            // A statement was cancelled: closing the connection rolls back.
            return Ok(());
        }
        let result = self.lease.control("ROLLBACK", "ROLLBACK".to_owned()).await;
        self.lease.metrics().rolled_back.increment();
        match result {
            Ok(()) => {
                self.finish();
                Ok(())
            }
            Err(error) => Err(Error::during(
                format!("rolling back the {} was not acknowledged", self.origin),
                error,
            )),
        }
    }

    /// Begins a part that can be undone alone.
    ///
    /// # Cancellation
    /// Dropping the future ends the transaction, as dropping any statement does.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, Error> {
        self.ready().await?;
        let depth = self.state.depth() + 1;
        let result = self
            .lease
            .control("SAVEPOINT", format!("SAVEPOINT maestro_{depth}"))
            .await;
        if let Err(error) = &result {
            self.note(None, error);
        }
        result.map_err(|error| Error::during("setting a savepoint failed", error))?;
        self.state.push();
        Ok(Savepoint::new(self, depth))
    }

    /// The driver's own connection, for what this crate has no method for.
    ///
    /// What is done on it is not seen here: the commit is checked by the server at the price of one
    /// more statement in its message, and the connection is closed afterwards. Do not begin or end
    /// transactions on it.
    ///
    /// ```no_run
    /// # async fn import(connection: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> { Ok(()) }
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// let mut tx = db.begin().await?;
    /// import(tx.connection()?).await?; // of a library that takes sqlx's own type
    /// tx.commit().await
    /// # }
    /// ```
    pub fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        self.state.escape();
        self.lease.tainted = true;
        Ok(self.lease.raw()?)
    }

    /// Runs a statement of this crate, which services may not send.
    pub(crate) async fn internal(
        &mut self,
        name: &'static str,
        sql: String,
    ) -> Result<(), sqlx::Error> {
        self.ready().await?;
        let result = self.lease.control(name, sql).await;
        if let Err(error) = &result {
            self.note(None, error);
        }
        result
    }

    /// Brings the connection to where another statement can be sent, or says why none can.
    async fn ready(&mut self) -> Result<(), Error> {
        self.catch_up().await;
        match self.state.failure() {
            Some(failure) => Err(self.aborted(failure)),
            None => Ok(()),
        }
    }

    /// Learns the end of what was begun and not awaited: streams dropped half-way, statements
    /// cancelled, savepoints dropped.
    async fn catch_up(&mut self) {
        match self.lease.conversation() {
            Conversation::AtRest => {}
            // The statement was sent as a whole, so the rest of its answer can be read; it may hold
            // an error.
            Conversation::Busy { answered: true } => {
                if let Err(error) = self.lease.drain().await {
                    self.note(None, &error);
                }
            }
            Conversation::Busy { answered: false } => self.state.fail(Failure::cancelled()),
            Conversation::Broken => self.state.fail(Failure::lost()),
        }
        if let Some(depth) = self.state.take_unwind() {
            let sql =
                format!("ROLLBACK TO SAVEPOINT maestro_{depth}; RELEASE SAVEPOINT maestro_{depth}");
            match self.lease.control("ROLLBACK", sql).await {
                Ok(()) => self.state.unwound(depth),
                Err(error) => self.note(None, &error),
            }
        }
    }

    /// Remembers that a statement failed.
    fn note(&mut self, statement: Option<&Arc<Statement>>, error: &sqlx::Error) {
        let failure = match error {
            // The server's refusal aborts the transaction; the driver's own do not reach it.
            sqlx::Error::Database(_) => Failure::statement(statement, error),
            _ if self.lease.conversation() == Conversation::AtRest => return,
            _ => Failure::lost_because(error),
        };
        self.state.fail(failure);
    }

    fn aborted(&self, failure: &Failure) -> Error {
        Error::new(
            ErrorKind::Aborted,
            format!(
                "the {} cannot go on and stores nothing: {failure}",
                self.origin
            ),
        )
    }

    /// Rolls back what can no longer be committed; the caller gets the reason and not how this went.
    async fn end_aborted(&mut self) {
        self.lease.metrics().aborted.increment();
        if self.lease.conversation() == Conversation::AtRest
            && self
                .lease
                .control("ROLLBACK", "ROLLBACK".to_owned())
                .await
                .is_ok()
        {
            self.finish();
        }
    }

    /// The server has acknowledged the end.
    fn finish(&mut self) {
        self.lease.in_transaction = false;
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("origin", &format_args!("{}", self.origin))
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
