//! A part of a transaction that can be undone alone.

use std::ops::{Deref, DerefMut};

use super::Transaction;
use crate::error::{Error, ErrorKind};

/// A part of a transaction that can be undone alone.
///
/// It is used like the transaction itself: `&mut *savepoint` is a sqlx executor, and savepoints
/// nest. Dropping it undoes the part before the transaction's next statement.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// let mut tx = db.begin().await?;
/// let mut attempt = tx.savepoint().await?;
/// match sqlx::query("insert into once values (1)").execute(&mut *attempt).await {
///     Ok(_) => attempt.release().await?,
///     Err(_) => attempt.rollback().await?, // the transaction goes on as before the attempt
/// }
/// tx.commit().await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a savepoint that is dropped undoes what was done since it was set"]
pub struct Savepoint<'t> {
    transaction: &'t mut Transaction,
    depth: u32,
    ended: bool,
}

impl<'t> Savepoint<'t> {
    pub(super) fn new(transaction: &'t mut Transaction, depth: u32) -> Self {
        Self {
            transaction,
            depth,
            ended: false,
        }
    }

    /// Keeps what was done since, as far as the transaction will be committed.
    ///
    /// # Errors
    /// [`ErrorKind::Aborted`] when a statement since had failed; everything since the savepoint is
    /// undone then, and the transaction goes on.
    ///
    /// # Cancellation
    /// Dropping the future ends the transaction, as dropping any statement does.
    pub async fn release(mut self) -> Result<(), Error> {
        let depth = self.depth;
        // What failed since is undone when this handle is dropped.
        self.transaction.ready().await?;
        let sql = format!("RELEASE SAVEPOINT maestro_{depth}");
        let result = self.transaction.lease.control("RELEASE", sql).await;
        if let Err(error) = result {
            self.transaction.note(None, &error);
            return Err(Error::during("releasing a savepoint failed", error));
        }
        self.transaction.state.released(depth);
        self.ended = true;
        Ok(())
    }

    /// Undoes what was done since; the transaction goes on.
    ///
    /// # Errors
    /// [`ErrorKind::Aborted`] when the transaction cannot go on: its connection is lost, a statement
    /// was cancelled, or one had failed before the savepoint was set.
    ///
    /// # Cancellation
    /// Dropping the future ends the transaction, as dropping any statement does.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.ended = true;
        self.transaction.state.unwind(self.depth);
        match self.transaction.ready().await {
            Err(error) if error.kind() == ErrorKind::Aborted => Err(error),
            result => result,
        }
    }
}

impl Deref for Savepoint<'_> {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        self.transaction
    }
}

impl DerefMut for Savepoint<'_> {
    fn deref_mut(&mut self) -> &mut Transaction {
        self.transaction
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.transaction.state.unwind(self.depth);
        }
    }
}
