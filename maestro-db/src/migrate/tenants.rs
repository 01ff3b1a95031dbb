//! Migrations that run once for each tenant: its schema, or its rows.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use sqlx::AssertSqlSafe;
use sqlx::Executor as _;
use sqlx::migrate::{Migration, Migrator};
use sqlx::postgres::PgConnection;

use super::{Session, WAIT, no_answer};
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::tenant::{TenantId, TenantModel, Tenants};

/// How migrations of tenants are run.
///
/// ```no_run
/// # async fn example(db: maestro_db::Db, migrator: sqlx::migrate::Migrator) -> Result<(), maestro_db::Error> {
/// use std::time::Duration;
/// use maestro_db::{TenantId, TenantMigrateOptions};
///
/// let plan = db.tenants()?.migrate_with(&migrator, TenantMigrateOptions::new().dry_run()).await?;
/// println!("{} tenants have something pending", plan.pending.len());
///
/// let options = TenantMigrateOptions::new()
///     .canary(TenantId::parse("acme")?)
///     .sessions(8)
///     .limit(Duration::from_mins(2));
/// let report = db.tenants()?.migrate_with(&migrator, options).await?;
/// for (tenant, version, why) in &report.failed {
///     println!("{tenant} stopped at {version}: {why}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TenantMigrateOptions {
    sessions: usize,
    canary: Option<TenantId>,
    dry_run: bool,
    limit: Duration,
}

impl Default for TenantMigrateOptions {
    fn default() -> Self {
        Self {
            // The migrating role may have ten connections.
            sessions: 4,
            canary: None,
            dry_run: false,
            limit: Duration::from_mins(10),
        }
    }
}

impl TenantMigrateOptions {
    /// Four tenants at a time, no canary, ten minutes for one tenant's migration.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tenants at a time, each on a connection of the migrating role; at least one.
    pub fn sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions.max(1);
        self
    }

    /// This tenant first; when its migrations fail, no other tenant is touched.
    pub fn canary(mut self, id: TenantId) -> Self {
        self.canary = Some(id);
        self
    }

    /// Changes nothing and reports which tenants have something pending.
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// Longest run of one migration for one tenant.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// What [`Tenants::migrate`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TenantMigrationReport {
    /// Tenants that had something pending and have nothing any more.
    pub migrated: Vec<TenantId>,
    /// Tenants whose migration failed, with its version and why; what came before it is kept.
    pub failed: Vec<(TenantId, i64, String)>,
    /// Tenants that were not touched: in a dry run, or after the canary failed.
    pub pending: Vec<TenantId>,
}

impl fmt::Display for TenantMigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            migrated,
            failed,
            pending,
        } = self;
        write!(
            f,
            "{} tenants migrated, {} failed, {} pending",
            migrated.len(),
            failed.len(),
            pending.len()
        )?;
        for (tenant, version, error) in failed {
            write!(f, "\n    {tenant}: migration {version}: {error}")?;
        }
        Ok(())
    }
}

/// Tenants that lack one of the files, or have one of another content. With nothing pending this is the
/// only query.
const PENDING: &str = "select t.id from maestro.tenants t \
     where t.state <> 'erasing' and (select count(*) from maestro.tenant_migrations m \
       join unnest($1::bigint[], $2::bytea[]) f (version, checksum) on f.version = m.version and f.checksum = m.checksum \
       where m.tenant = t.id and m.error is null) < cardinality($1::bigint[]) \
     order by t.id";

/// How often a migration that did not get its lock is tried again.
const ATTEMPTS: u32 = 5;

impl Tenants {
    /// Applies these migrations to every tenant that lacks them, several tenants at a time. With
    /// schemas, each runs with the tenant's schema in front of the search path (and makes the schema
    /// first), and its tables belong to that tenant alone; with rows, each sees the tenant's rows.
    ///
    /// A tenant that fails stops at what failed and does not keep the others; running this again goes
    /// on there. Replicas that start together wait for the one that is at work.
    ///
    /// # Errors
    /// [`ErrorKind::Migration`] when the files cannot be run for tenants at all; a tenant that failed
    /// is no error but in the report.
    ///
    /// # Cancellation
    /// Dropping the future rolls back what is under way; what is done is recorded.
    pub async fn migrate(&self, migrator: &Migrator) -> Result<TenantMigrationReport, Error> {
        self.migrate_with(migrator, TenantMigrateOptions::new())
            .await
    }

    /// As [`migrate`](Self::migrate), with options.
    pub async fn migrate_with(
        &self,
        migrator: &Migrator,
        options: TenantMigrateOptions,
    ) -> Result<TenantMigrationReport, Error> {
        if let Some(file) = migrator.iter().find(|file| file.no_tx) {
            return Err(Error::new(
                ErrorKind::Migration,
                format!(
                    "migration {} cannot run outside a transaction for tenants",
                    file.version
                ),
            ));
        }
        let mut report = TenantMigrationReport::default();
        let mut pending = self.pending(migrator).await?;
        if pending.is_empty() || options.dry_run {
            report.pending = pending;
            return Ok(report);
        }
        let deadline = Instant::now() + WAIT;
        let mut session = Session::open(&self.db, deadline).await?;
        session.lock(deadline).await?;
        // Others may have been at work until now.
        pending = self.pending(migrator).await?;
        if let Some(canary) = &options.canary
            && let Some(place) = pending.iter().position(|id| id == canary)
        {
            let id = pending.remove(place);
            self.work_off(migrator, &options, vec![id], &mut report)
                .await?;
            if !report.failed.is_empty() {
                report.pending = pending;
                session.close().await;
                return Ok(report);
            }
        }
        self.work_off(migrator, &options, pending, &mut report)
            .await?;
        session.close().await;
        self.db.pool().plans_are_stale();
        report.migrated.sort();
        report.failed.sort();
        Ok(report)
    }

    async fn pending(&self, migrator: &Migrator) -> Result<Vec<TenantId>, Error> {
        let (versions, checksums): (Vec<i64>, Vec<Vec<u8>>) = files(migrator)
            .map(|file| (file.version, file.checksum.to_vec()))
            .unzip();
        let ids: Vec<String> = sqlx::query_scalar(PENDING)
            .bind(versions)
            .bind(checksums)
            .fetch_all(&self.db)
            .await
            .map_err(|error| Error::during("looking for tenants to migrate failed", error))?;
        ids.iter().map(|id| TenantId::parse(id)).collect()
    }

    async fn work_off(
        &self,
        migrator: &Migrator,
        options: &TenantMigrateOptions,
        tenants: Vec<TenantId>,
        report: &mut TenantMigrationReport,
    ) -> Result<(), Error> {
        let sessions = options.sessions.min(tenants.len());
        let queue = parking_lot::Mutex::new(tenants.into_iter());
        let workers = (0..sessions).map(|_| async {
            let mut done = Vec::new();
            let mut session = Session::open(&self.db, Instant::now() + WAIT).await?;
            loop {
                let Some(id) = queue.lock().next() else { break };
                let outcome = self.migrate_one(&mut session, migrator, options, &id).await;
                done.push((id, outcome));
                if done.last().is_some_and(|(_, outcome)| outcome.is_err()) {
                    // Whatever it left on the connection.
                    session.close().await;
                    session = Session::open(&self.db, Instant::now() + WAIT).await?;
                }
            }
            session.close().await;
            Ok::<_, Error>(done)
        });
        let mut workers: futures_util::stream::FuturesUnordered<_> =
            workers.map(Box::pin).collect();
        let mut lost = None;
        while let Some(done) = workers.next().await {
            match done {
                Ok(done) => {
                    for (id, outcome) in done {
                        match outcome {
                            Ok(()) => report.migrated.push(id),
                            Err((version, error)) => {
                                tracing::warn!(tenant = %id, version, %error, "a migration failed for a tenant");
                                report.failed.push((id, version, error.to_string()));
                            }
                        }
                    }
                }
                Err(error) => lost = Some(error),
            }
        }
        lost.map_or(Ok(()), Err)
    }

    async fn migrate_one(
        &self,
        session: &mut Session,
        migrator: &Migrator,
        options: &TenantMigrateOptions,
        id: &TenantId,
    ) -> Result<(), (i64, Error)> {
        let raw = &mut session.connection;
        let known = applied(raw, id, options.limit)
            .await
            .map_err(|error| (0, error))?;
        for file in files(migrator) {
            match known.get(&file.version) {
                Some(checksum) if **checksum == *file.checksum => continue,
                Some(_) => {
                    let changed = "the file is not the one that was applied: restore it and add another migration";
                    return Err((file.version, Error::new(ErrorKind::Migration, changed)));
                }
                None => {}
            }
            let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
            let mut attempt = 1;
            loop {
                let work = self.apply(raw, file, id);
                let error = match tokio::time::timeout(options.limit, work).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => {
                        Error::during(format!("migration {} failed", file.version), error)
                    }
                    // The connection is in the middle of it.
                    Err(_) => return Err((file.version, no_answer("a tenant's migration"))),
                };
                let _ = tokio::time::timeout(super::ANSWER, raw.execute("ROLLBACK")).await;
                if attempt == ATTEMPTS
                    || !matches!(error.sqlstate().as_deref(), Some("55P03" | "40P01"))
                {
                    let noted = note_failure(raw, file, id, &error);
                    if let Ok(Err(why)) = tokio::time::timeout(super::ANSWER, noted).await {
                        tracing::warn!(tenant = %id, %why, "the failure could not be recorded");
                    }
                    return Err((file.version, error));
                }
                tokio::time::sleep(backoff.next()).await;
                attempt += 1;
            }
        }
        Ok(())
    }

    async fn apply(
        &self,
        raw: &mut PgConnection,
        file: &Migration,
        id: &TenantId,
    ) -> Result<(), sqlx::Error> {
        let schema = id.schema();
        let schemas = self.model == TenantModel::Schemas;
        let mut begin = format!("BEGIN; SET LOCAL maestro.tenant = '{id}'");
        if schemas {
            begin = format!(
                "{begin}; SET LOCAL client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS \"{schema}\"; SET LOCAL search_path = \"{schema}\", public"
            );
        }
        sqlx::raw_sql(AssertSqlSafe(begin))
            .execute(&mut *raw)
            .await?;
        sqlx::raw_sql(file.sql.clone()).execute(&mut *raw).await?;
        if schemas {
            sqlx::query("select maestro.protect_schema($1, $2)")
                .bind(&schema)
                .bind(id.as_str())
                .execute(&mut *raw)
                .await?;
        }
        record(raw, file, id, None).await?;
        sqlx::raw_sql("COMMIT").execute(raw).await?;
        Ok(())
    }

    /// As the owner: the schema of a tenant that is being erased.
    pub(crate) async fn drop_schema(&self, id: &TenantId) -> Result<(), Error> {
        let mut session = Session::open(&self.db, Instant::now() + WAIT).await?;
        let sql = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", id.schema());
        session.tell("dropping a tenant's schema", &sql).await?;
        session.close().await;
        Ok(())
    }
}

/// Those that go forward.
fn files(migrator: &Migrator) -> impl Iterator<Item = &Migration> {
    migrator
        .iter()
        .filter(|file| !file.migration_type.is_down_migration())
}

async fn applied(
    raw: &mut PgConnection,
    id: &TenantId,
    limit: Duration,
) -> Result<HashMap<i64, Vec<u8>>, Error> {
    let what = "reading a tenant's migrations";
    let rows = sqlx::query_as::<_, (i64, Vec<u8>)>(
        "select version, checksum from maestro.tenant_migrations where tenant = $1 and error is null",
    )
    .bind(id.as_str())
    .fetch_all(raw);
    match tokio::time::timeout(limit, rows).await {
        Ok(Ok(rows)) => Ok(rows.into_iter().collect()),
        Ok(Err(error)) => Err(Error::during(format!("{what} failed"), error)),
        Err(_) => Err(no_answer(what)),
    }
}

async fn note_failure(
    raw: &mut PgConnection,
    file: &Migration,
    id: &TenantId,
    error: &Error,
) -> Result<(), sqlx::Error> {
    record(raw, file, id, Some(error.to_string())).await
}

async fn record(
    raw: &mut PgConnection,
    file: &Migration,
    id: &TenantId,
    error: Option<String>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into maestro.tenant_migrations (tenant, version, description, checksum, error) values ($1, $2, $3, $4, $5) \
         on conflict (tenant, version) do update set description = excluded.description, \
           checksum = excluded.checksum, error = excluded.error, at = clock_timestamp()",
    )
    .bind(id.as_str())
    .bind(file.version)
    .bind(&*file.description)
    .bind(&*file.checksum)
    .bind(error)
    .execute(raw)
    .await?;
    Ok(())
}
