//! Advisory locks: a name of the service's, held by one transaction or by one session.

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::client::Db;
use crate::connect::{Connector, Purpose};
use crate::error::{Error, ErrorKind};
use crate::pool::within;
use crate::retry::Backoff;
use crate::transaction::Transaction;

impl Transaction {
    /// Takes the lock of a name until the transaction ends, waiting for whoever has it, for at most
    /// the lock timeout. Works through a pooler.
    ///
    /// Names are the service's own: the lock is that of this database. Two names share a lock once in
    /// 2⁶⁴ pairs.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the wait exceeds `MAESTRO_POSTGRES_LOCK_TIMEOUT`; the transaction is
    /// aborted then.
    pub async fn advisory_lock(&mut self, name: &str) -> Result<(), Error> {
        let sql = format!("SELECT pg_catalog.pg_advisory_xact_lock({})", key(name));
        self.internal("SELECT", sql).await.map_err(|error| {
            Error::during(format!("taking the advisory lock `{name}` failed"), error)
        })
    }
}

/// A lock held by a session of its own, for as long as this lives.
///
/// It is gone when the session is: the connection lost, the server restarted. Work that must not
/// overlap asks [`check`](Self::check) before each step that counts, or carries a fencing token
/// ([`Db::elect`](crate::Db::elect)).
#[must_use = "the lock is released when this is dropped"]
pub struct AdvisoryLock {
    connection: PgConnection,
    name: String,
    limit: Duration,
}

impl Db {
    /// Takes the lock of a name for longer than a transaction, on a connection of its own to the
    /// server itself; waits for whoever has it for at most `wait`.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use std::time::Duration;
    ///
    /// if let Some(mut lock) = db.advisory_lock("nightly report", Duration::ZERO).await? {
    ///     // … the work of minutes …
    ///     lock.check().await?;
    ///     lock.release().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `None` when somebody else had it all the time.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection, and with it goes whatever it had.
    pub async fn advisory_lock(
        &self,
        name: &str,
        wait: Duration,
    ) -> Result<Option<AdvisoryLock>, Error> {
        let config = self.config();
        let login = self.inner().login_to(&config.direct);
        let connector = Connector::new(config, login, Purpose::Direct)?;
        let mut lock = AdvisoryLock {
            connection: connector.open().await?,
            name: name.to_owned(),
            limit: config.timeouts.connect,
        };
        let started = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
        // Polled: a wait in the server would be cut by the lock timeout and hold a snapshot.
        loop {
            if lock.ask("pg_try_advisory_lock").await? {
                return Ok(Some(lock));
            }
            let pause = backoff.next();
            if started.elapsed() + pause > wait {
                lock.close().await;
                return Ok(None);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

impl AdvisoryLock {
    /// Asks the server whether the lock is still held.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] when the session is gone or does not
    /// answer: then it may be somebody else's already.
    pub async fn check(&mut self) -> Result<(), Error> {
        // The session's answer is enough: it has the lock for as long as it lives.
        match tokio::time::timeout(self.limit, self.connection.ping()).await {
            Ok(result) => result.map_err(|error| {
                Error::during(
                    format!("the session that holds the lock `{}` is gone", self.name),
                    error,
                )
            }),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "the session that holds the lock `{}` did not answer within {:?}",
                    self.name, self.limit
                ),
            )),
        }
    }

    /// Gives it back, and says whether it was still held until now.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn release(mut self) -> Result<(), Error> {
        let held = self.ask("pg_advisory_unlock").await?;
        let name = self.name.clone();
        self.close().await;
        if held {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the lock `{name}` was not held any more"),
        ))
    }

    async fn ask(&mut self, function: &'static str) -> Result<bool, Error> {
        let sql = format!("SELECT pg_catalog.{function}({})", key(&self.name));
        let question = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut self.connection);
        within(Some(self.limit), question)
            .await
            .and_then(|row| row.try_get_unchecked::<bool, _>(0))
            .map_err(|error| {
                Error::during(format!("asking for the lock `{}` failed", self.name), error)
            })
    }

    async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.close()).await;
    }
}

impl fmt::Debug for AdvisoryLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdvisoryLock")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The number of a name, as an expression: 64 bits of the server's own hash.
fn key(name: &str) -> String {
    // `standard_conforming_strings` cannot change what a doubled quote means, and a backslash makes
    // it an escape string, in which it is doubled.
    let quoted = name.replace('\'', "''");
    let literal = if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    };
    // A NUL cannot be sent in a statement, and is not part of any sensible name.
    format!(
        "pg_catalog.hashtextextended({}, 0)",
        literal.replace('\0', "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_ends_the_literal_it_is_in() {
        assert_eq!(key("a'b"), "pg_catalog.hashtextextended('a''b', 0)");
        assert_eq!(key(r"a\'b"), r"pg_catalog.hashtextextended(E'a\\''b', 0)");
    }
}
