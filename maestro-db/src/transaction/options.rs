//! How a transaction begins.

/// Isolation level of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it began; the server's default.
    ReadCommitted,
    /// All statements see what was committed before the first; writes collide with others' (40001).
    RepeatableRead,
    /// As if transactions ran one after the other; collisions are 40001, so run it under
    /// [`Db::retry`](crate::Db::retry).
    Serializable,
}

/// Options of [`Db::begin_with`](crate::Db::begin_with).
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// use maestro_db::{Isolation, TransactionOptions};
///
/// // A long report: waits at the start, then sees one moment and never collides.
/// let options = TransactionOptions::new()
///     .isolation(Isolation::Serializable)
///     .read_only()
///     .deferrable();
/// let mut tx = db.begin_with(options).await?;
/// let total: i64 = sqlx::query_scalar("select count(*) from orders").fetch_one(&mut tx).await?;
/// tx.rollback().await
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct TransactionOptions {
    isolation: Option<Isolation>,
    read_only: bool,
    deferrable: bool,
}

impl TransactionOptions {
    /// The server's defaults: READ COMMITTED, read and write.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another isolation level.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Refuses writes.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// With SERIALIZABLE and read-only: waits at the start until it can run without ever colliding.
    pub fn deferrable(mut self) -> Self {
        self.deferrable = true;
        self
    }

    pub(crate) fn begin(self) -> String {
        let mut sql = String::from("BEGIN");
        match self.isolation {
            None => {}
            Some(Isolation::ReadCommitted) => sql.push_str(" ISOLATION LEVEL READ COMMITTED"),
            Some(Isolation::RepeatableRead) => sql.push_str(" ISOLATION LEVEL REPEATABLE READ"),
            Some(Isolation::Serializable) => sql.push_str(" ISOLATION LEVEL SERIALIZABLE"),
        }
        if self.read_only {
            sql.push_str(" READ ONLY");
        }
        if self.deferrable {
            sql.push_str(" DEFERRABLE");
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_one_begin_statement() {
        assert_eq!(TransactionOptions::new().begin(), "BEGIN");
        let options = TransactionOptions::new()
            .isolation(Isolation::Serializable)
            .read_only()
            .deferrable();
        assert_eq!(
            options.begin(),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE"
        );
    }
}
