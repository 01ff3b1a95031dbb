//! Runs one migration and records it.

use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;

use super::{ANSWER, failed, no_answer};
use crate::client::Db;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::statement::split;

/// Applies migrations of one set, on whichever connection.
pub(super) struct Applier<'a> {
    db: &'a Db,
    migrator: &'a Migrator,
}

/// How often a migration that could not lock its table within five seconds is tried again: about
/// two minutes, over which the service's own statements get through between the attempts.
const LOCK_ATTEMPTS: u32 = 12;

/// How often a migration that runs is looked after.
const LOOK: Duration = Duration::from_secs(15);

/// A migration has no time limit of its own. This is how long the server may be out of reach before
/// it is given up.
const OUT_OF_REACH: Duration = Duration::from_mins(1);

impl<'a> Applier<'a> {
    pub(super) fn new(db: &'a Db, migrator: &'a Migrator) -> Self {
        Self { db, migrator }
    }

    pub(super) async fn apply(
        &self,
        connection: &mut PgConnection,
        migration: &Migration,
    ) -> Result<Duration, Error> {
        let (version, description) = (migration.version, &*migration.description);
        let pid = backend(connection).await?;
        tracing::info!(version, description, "applying a migration");
        let started = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let mut attempt = 1;
        loop {
            let work = async {
                if migration.no_tx {
                    self.outside(connection, migration).await
                } else {
                    connection
                        .apply(&self.migrator.table_name, migration)
                        .await
                        .map(|_| ())
                }
            };
            let error = tokio::select! {
                result = work => match result {
                    Ok(()) => break,
                    Err(error) => error,
                },
                error = self.look_after(pid, version) => return Err(error),
            };
            // Outside a transaction half of it may have been done: it is not repeated.
            if migration.no_tx || attempt == LOCK_ATTEMPTS || !is_lock_timeout(&error) {
                return Err(failed(
                    format!(
                        "migration {version} {description} failed after {:.1?}",
                        started.elapsed()
                    ),
                    error,
                ));
            }
            let pause = backoff.next();
            tracing::warn!(
                version,
                description,
                attempt,
                ?pause,
                "the migration did not get its lock and is tried again"
            );
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
        let took = started.elapsed();
        tracing::info!(version, description, ?took, "applied a migration");
        Ok(took)
    }

    /// Statement by statement, because several in one message are one transaction to the server.
    /// The row is written first, so that a migration that ends half-way is known to have begun.
    async fn outside(
        &self,
        connection: &mut PgConnection,
        migration: &Migration,
    ) -> Result<(), MigrateError> {
        let table = &self.migrator.table_name;
        let started = Instant::now();
        sqlx::query(AssertSqlSafe(format!(
            "insert into {table} (version, description, success, checksum, execution_time) values ($1, $2, false, $3, -1)"
        )))
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .execute(&mut *connection)
        .await?;
        for statement in split(migration.sql.as_str()) {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await
                .map_err(|error| MigrateError::ExecuteMigration(error, migration.version))?;
        }
        sqlx::query(AssertSqlSafe(format!(
            "update {table} set success = true, execution_time = $2 where version = $1"
        )))
        .bind(migration.version)
        .bind(i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX))
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// Ends with an error when the migration's session is gone or the server out of reach; says
    /// every now and then that it is still at work.
    async fn look_after(&self, pid: i32, version: i64) -> Error {
        let started = Instant::now();
        let mut seen = Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            // Any role sees that a session exists, if not what it does.
            let alive = sqlx::query_scalar::<_, bool>(
                "select exists (select from pg_catalog.pg_stat_activity where pid = $1)",
            )
            .bind(pid)
            .fetch_one(self.db)
            .await;
            match alive {
                Ok(true) => {
                    seen = Instant::now();
                    tracing::info!(version, elapsed = ?started.elapsed(), "the migration is still running");
                }
                Ok(false) => {
                    return Error::new(
                        ErrorKind::Migration,
                        format!("the session that ran migration {version} was ended by the server"),
                    );
                }
                Err(error) if seen.elapsed() > OUT_OF_REACH => {
                    return Error::during(
                        format!(
                            "migration {version} was given up: the server was out of reach for {OUT_OF_REACH:?}"
                        ),
                        error,
                    );
                }
                Err(_) => {}
            }
        }
    }
}

async fn backend(connection: &mut PgConnection) -> Result<i32, Error> {
    let what = "asking for the session's number";
    let query = sqlx::query_scalar("select pg_catalog.pg_backend_pid()").fetch_one(connection);
    match tokio::time::timeout(ANSWER, query).await {
        Ok(pid) => pid.map_err(|error| Error::during(format!("{what} failed"), error)),
        Err(_) => Err(no_answer(what)),
    }
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    // A deadlock is undone as a whole, too.
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}
