//! Migrations: applied once, whatever number of replicas start together.

mod apply;
mod plan;
mod tenants;

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::client::Db;
use crate::connect::{Connector, Purpose};
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;

use apply::Applier;
pub use plan::Drift;
use plan::{Applied, plan};
pub use tenants::{TenantMigrateOptions, TenantMigrationReport};

/// How migrations are run.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db, migrator: sqlx::migrate::Migrator) -> Result<(), maestro_db::Error> {
/// use std::time::Duration;
/// use maestro_db::MigrateOptions;
///
/// let plan = db.migrate_with(&migrator, MigrateOptions::new().dry_run()).await?;
/// println!("{} pending", plan.pending.len());
///
/// // A `create index concurrently` was interrupted, and what it left is dropped by now:
/// let options = MigrateOptions::new().wait(Duration::from_mins(2)).resume_interrupted();
/// println!("{}", db.migrate_with(&migrator, options).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct MigrateOptions {
    wait: Duration,
    resume: bool,
    dry_run: bool,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self {
            wait: WAIT,
            resume: false,
            dry_run: false,
        }
    }
}

impl MigrateOptions {
    /// Apply what is pending; wait up to ten minutes for the server and for another replica that
    /// is migrating.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for the server and for another replica that is migrating.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// Runs a migration again that was interrupted outside a transaction. Only after looking at
    /// what it left, and only when its statements can be repeated.
    pub fn resume_interrupted(mut self) -> Self {
        self.resume = true;
        self
    }

    /// Changes nothing and reports what is pending.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// What [`Db::migrate`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MigrationReport {
    /// Migrations that were applied, in order.
    pub applied: Vec<AppliedMigration>,
    /// Migrations that are pending; not empty after a dry run only.
    pub pending: Vec<(i64, String)>,
    /// Versions in the database that are newer than the newest one here: a newer release has
    /// migrated already.
    pub ahead: Vec<i64>,
}

/// One migration that was applied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AppliedMigration {
    /// Its version, the number its file name begins with.
    pub version: i64,
    /// The rest of its file name.
    pub description: String,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} migrations applied", self.applied.len())?;
        for migration in &self.applied {
            write!(
                f,
                ", {} {} in {:.1?}",
                migration.version, migration.description, migration.took
            )?;
        }
        if !self.pending.is_empty() {
            write!(f, "; {} pending", self.pending.len())?;
        }
        Ok(())
    }
}

/// Longest wait for the server and for another replica's migrations.
const WAIT: Duration = Duration::from_mins(10);

/// Longest wait for one answer of the bookkeeping; the migrations themselves have no limit.
const ANSWER: Duration = Duration::from_secs(30);

/// Key of the advisory lock, in the service's own database (`migrate` in ASCII).
const LOCK_KEY: i64 = 0x006d_6967_7261_7465;

impl Db {
    /// Applies the migrations that are pending, as the migrating role, once: replicas that start
    /// together wait for the one that is at work.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), Box<dyn std::error::Error>> {
    /// # let migrator = sqlx::migrate::Migrator::new(std::path::Path::new("migrations")).await?;
    /// // In a service: db.migrate(&sqlx::migrate!()).await?;
    /// let report = db.migrate(&migrator).await?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Migration`] when what is in the database is not what is in the files ([`Drift`]
    /// is the source), when a migration fails, or when an earlier one was interrupted.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection: a migration in a transaction is rolled back, one
    /// outside is reported as interrupted by the next start.
    pub async fn migrate(&self, migrator: &Migrator) -> Result<MigrationReport, Error> {
        self.migrate_with(migrator, MigrateOptions::new()).await
    }

    /// As [`migrate`](Self::migrate), with options.
    pub async fn migrate_with(
        &self,
        migrator: &Migrator,
        options: MigrateOptions,
    ) -> Result<MigrationReport, Error> {
        let deadline = Instant::now() + options.wait;
        let mut session = Session::open(self, deadline).await?;
        let result = async {
            if let Some(own) = self.inner().parts.migrations() {
                session.run(self, &own, options, deadline).await?;
            }
            session.run(self, migrator, options, deadline).await
        }
        .await;
        session.close().await;
        if result
            .as_ref()
            .is_ok_and(|report| !report.applied.is_empty())
        {
            self.pool().plans_are_stale();
        }
        result
    }
}

impl Db {
    pub(crate) async fn open_migration_session(&self) -> Result<PgConnection, Error> {
        Ok(Session::open(self, Instant::now() + WAIT).await?.connection)
    }
}

/// The connection of one run. Closing it releases the lock.
struct Session {
    connection: PgConnection,
    endpoint: String,
}

impl Session {
    async fn open(db: &Db, deadline: Instant) -> Result<Self, Error> {
        let config = db.config();
        let endpoint = &config.migration;
        let login = db.inner().login_to(endpoint);
        let connector = Connector::new(config, login, Purpose::Migration)?;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let error = match connector.open().await {
                Ok(connection) => {
                    let endpoint = endpoint.to_string();
                    let mut session = Self {
                        connection,
                        endpoint,
                    };
                    session.become_owner().await?;
                    return Ok(session);
                }
                Err(error) => error,
            };
            let pause = backoff.next();
            if !error.is_transient() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::info!(%error, "waiting for the database before migrating");
            tokio::time::sleep(pause).await;
        }
    }

    /// Objects must belong to the database's owner, whoever logs in to create them.
    async fn become_owner(&mut self) -> Result<(), Error> {
        let owner: Option<String> = self
            .ask(
                "finding the database's owner",
                sqlx::query_scalar(
                    "select r.rolname::text from pg_catalog.pg_database d \
                     join pg_catalog.pg_roles r on r.oid = d.datdba \
                     where d.datname = current_database() and r.rolname <> current_user \
                     and pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER') \
                     and not (select rolsuper from pg_catalog.pg_roles where rolname = session_user)",
                ),
            )
            .await?;
        if let Some(owner) = owner {
            let sql = format!("SET ROLE \"{}\"", owner.replace('"', "\"\""));
            self.tell("becoming the database's owner", &sql).await?;
        }
        Ok(())
    }

    async fn run(
        &mut self,
        db: &Db,
        migrator: &Migrator,
        options: MigrateOptions,
        deadline: Instant,
    ) -> Result<MigrationReport, Error> {
        // Without the lock: the usual start finds nothing to do.
        let known = self.applied(migrator).await?;
        if known.iter().all(|applied| applied.success) {
            let found = plan(migrator, &known).map_err(|drift| self.drifted(drift))?;
            if found.pending.is_empty() || options.dry_run {
                return Ok(found.report());
            }
        }
        if !options.dry_run {
            self.lock(deadline).await?;
            self.prepare(migrator).await?;
        }
        let known = self.applied(migrator).await?;
        let resumed = self.interrupted(migrator, &known, options).await?;
        let known: Vec<_> = known
            .into_iter()
            .filter(|applied| Some(applied.version) != resumed)
            .collect();
        let found = plan(migrator, &known).map_err(|drift| self.drifted(drift))?;
        let mut report = found.report();
        if options.dry_run {
            return Ok(report);
        }
        let applier = Applier::new(db, migrator);
        for migration in found.pending {
            let took = applier.apply(&mut self.connection, migration).await?;
            report.pending.remove(0);
            report.applied.push(AppliedMigration {
                version: migration.version,
                description: migration.description.to_string(),
                took,
            });
        }
        Ok(report)
    }

    /// Polls, because a session that blocks on a lock holds a snapshot that `CREATE INDEX
    /// CONCURRENTLY` of the session that has the lock would wait for.
    async fn lock(&mut self, deadline: Instant) -> Result<(), Error> {
        let started = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let mut told = false;
        loop {
            let locked: Option<bool> = self
                .ask(
                    "asking for the migration lock",
                    sqlx::query_scalar("select pg_catalog.pg_try_advisory_lock($1)").bind(LOCK_KEY),
                )
                .await?;
            if locked == Some(true) {
                return Ok(());
            }
            let pause = backoff.next();
            if Instant::now() + pause >= deadline {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "another session has been migrating {} for longer than {:.0?}: look for advisory lock {LOCK_KEY} in pg_locks",
                        self.endpoint,
                        started.elapsed()
                    ),
                ));
            }
            if !told {
                told = true;
                tracing::info!("another replica is migrating; waiting for it");
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn prepare(&mut self, migrator: &Migrator) -> Result<(), Error> {
        let what = "creating the table of migrations";
        for schema in &*migrator.create_schemas {
            self.bounded(what, |raw| raw.create_schema_if_not_exists(schema))
                .await?;
        }
        self.bounded(what, |raw| {
            raw.ensure_migrations_table(&migrator.table_name)
        })
        .await
    }

    /// What the database says was applied; nothing when it has no such table.
    async fn applied(&mut self, migrator: &Migrator) -> Result<Vec<Applied>, Error> {
        let what = "reading the applied migrations";
        let table: Option<bool> = self
            .ask(
                what,
                sqlx::query_scalar("select pg_catalog.to_regclass($1) is not null")
                    .bind(migrator.table_name.to_string()),
            )
            .await?;
        if table != Some(true) {
            return Ok(Vec::new());
        }
        // The table's name comes from the service's own code.
        let sql = format!(
            "select version, checksum, success from {} order by version",
            migrator.table_name
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut self.connection);
        let rows: Vec<(i64, Vec<u8>, bool)> = match tokio::time::timeout(ANSWER, query).await {
            Ok(rows) => rows.map_err(|error| Error::during(format!("{what} failed"), error))?,
            Err(_) => return Err(no_answer(what)),
        };
        Ok(rows
            .into_iter()
            .map(|(version, checksum, success)| Applied {
                version,
                checksum,
                success,
            })
            .collect())
    }

    /// A migration that began outside a transaction and did not end: an error, unless it is to be
    /// resumed; then it is pending again, and its version is returned.
    async fn interrupted(
        &mut self,
        migrator: &Migrator,
        known: &[Applied],
        options: MigrateOptions,
    ) -> Result<Option<i64>, Error> {
        let Some(interrupted) = known.iter().find(|applied| !applied.success) else {
            return Ok(None);
        };
        let version = interrupted.version;
        if options.resume {
            let sql = format!(
                "delete from {} where version = {version} and not success",
                migrator.table_name
            );
            if !options.dry_run {
                self.tell("forgetting an interrupted migration", &sql)
                    .await?;
            }
            return Ok(Some(version));
        }
        let invalid: Option<String> = self
            .ask(
                "looking for invalid indexes",
                sqlx::query_scalar(
                    "select string_agg(indexrelid::regclass::text, ', ') from pg_catalog.pg_index where not indisvalid",
                ),
            )
            .await?;
        let left = match invalid {
            Some(indexes) => format!("it left invalid indexes ({indexes}): drop them"),
            None => "look at what it has done so far".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Migration,
            format!(
                "migration {version} of {} was interrupted while it ran outside a transaction; {left}, then run it again with MigrateOptions::resume_interrupted",
                self.endpoint
            ),
        ))
    }

    fn drifted(&self, drift: Drift) -> Error {
        Error::new(
            ErrorKind::Migration,
            format!(
                "the migrations of {} are not those of this service",
                self.endpoint
            ),
        )
        .with_source(drift)
    }

    async fn ask<T>(
        &mut self,
        what: &'static str,
        query: sqlx::query::QueryScalar<'_, sqlx::Postgres, Option<T>, sqlx::postgres::PgArguments>,
    ) -> Result<Option<T>, Error>
    where
        Option<T>: Send + Unpin,
        (Option<T>,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    {
        match tokio::time::timeout(ANSWER, query.fetch_optional(&mut self.connection)).await {
            Ok(Ok(row)) => Ok(row.flatten()),
            Ok(Err(error)) => Err(Error::during(format!("{what} failed"), error)),
            Err(_) => Err(no_answer(what)),
        }
    }

    async fn tell(&mut self, what: &'static str, sql: &str) -> Result<(), Error> {
        let work = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection);
        match tokio::time::timeout(ANSWER, work).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::during(format!("{what} failed"), error)),
            Err(_) => Err(no_answer(what)),
        }
    }

    async fn bounded<'s>(
        &'s mut self,
        what: &'static str,
        work: impl FnOnce(
            &'s mut PgConnection,
        ) -> futures_core::future::BoxFuture<'s, Result<(), MigrateError>>,
    ) -> Result<(), Error> {
        match tokio::time::timeout(ANSWER, work(&mut self.connection)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(format!("{what} failed"), error)),
            Err(_) => Err(no_answer(what)),
        }
    }

    async fn close(self) {
        // A connection that does not take its good-bye is dropped; the server releases the lock
        // in both cases.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.close()).await;
    }
}

fn no_answer(what: &str) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("{what}: the server did not answer within {ANSWER:?}"),
    )
}

/// The driver's error under ours, without its wrapper where it only repeats the words.
fn failed(context: String, error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            let transient = Error::during(context.clone(), error);
            // What can be mended by waiting stays recognisable, all else is about migrations.
            if transient.is_transient() {
                transient
            } else {
                transient.of_kind(ErrorKind::Migration)
            }
        }
        other => Error::new(ErrorKind::Migration, context).with_source(other),
    }
}
