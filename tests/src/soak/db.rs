//! Futures of `maestro-db` dropped at random points; afterwards every connection of the pool must be as
//! if nothing had happened, and what was acknowledged must be there.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::TryStreamExt as _;
use futures_util::future::{poll_fn, try_join_all};
use maestro_config::Environment;
use maestro_db::{Db, DbConfig, Error, ErrorKind, TenantDb, TenantId, TenantModel};
use maestro_testkit::{Service, Stack};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use tokio_postgres::NoTls;

use super::Plan;

const TABLES: &str = "create table plain (n bigint primary key); \
     create table orders (tenant text, n bigint, primary key (tenant, n)); \
     select maestro.protect('orders')";

/// Connections of the pool, and tasks that share them.
const CONNECTIONS: usize = 4;
const TASKS: u64 = 8;

/// Longest wait until what was cancelled has ended on the server: it looks once a second.
const SETTLE: Duration = Duration::from_mins(1);

/// Drops at least so many futures, and goes on until the plan is over.
///
/// # Errors
/// When a connection was left dirty, an acknowledged row is missing, one that was rolled back is there,
/// or a tenant saw another's.
pub async fn run(plan: &Plan, futures: u64) -> Result<()> {
    let stack = Stack::builder()
        .only([Service::Postgres])
        .dedicated()
        .await?;
    let sandbox = stack.sandbox("soak").await?;
    let own = [
        (
            "MAESTRO_POSTGRES_POOL_MAX".to_owned(),
            CONNECTIONS.to_string(),
        ),
        (
            "MAESTRO_POSTGRES_ACQUIRE_TIMEOUT".to_owned(),
            "30s".to_owned(),
        ),
    ];
    let config: DbConfig =
        Environment::from_pairs(sandbox.environment().into_iter().chain(own)).read()?;
    let db = Db::builder(config)
        .tenants(TenantModel::Rows)
        .connect()
        .await?;
    db.migrate(&Migrator::with_migrations(vec![Migration::new(
        1,
        "tables".into(),
        MigrationType::Simple,
        sqlx::SqlSafeStr::into_sql_str(TABLES),
        false,
    )]))
    .await?;
    let tenants = [TenantId::parse("acme")?, TenantId::parse("globex")?];
    for id in &tenants {
        db.tenants()?.create(id, id.as_str()).await?;
    }
    // Outside the SDK, and past the policies.
    let mut admin: url::Url = stack.postgres()?.admin_url().expose().parse()?;
    admin.set_path(sandbox.resources().database());
    let (ledger, connection) = tokio_postgres::connect(admin.as_str(), NoTls).await?;
    let connection = tokio::spawn(connection);

    plan.step(format!(
        "{TASKS} tasks drop futures on {CONNECTIONS} connections"
    ));
    let next = AtomicI64::new(1);
    let tasks = (0..TASKS).map(|task| {
        let tenant = tenants[usize::from(task % 2 == 1)].clone();
        let (db, next) = (&db, &next);
        async move {
            let tenant = db.tenant(tenant);
            let mut dice = plan.dice(task);
            let mut done = Tally::default();
            while done.futures < futures / TASKS || !plan.is_over() {
                let work = Work {
                    db,
                    tenant: &tenant,
                    n: next.fetch_add(1, Ordering::Relaxed),
                    kind: dice.u8(0..8),
                };
                done.futures += 1;
                let n = work.n;
                // Some end, so that there are connections that the others are dropped on.
                let limit = match dice.u8(0..4) {
                    0 => Limit::None,
                    1 => Limit::Time(Duration::from_micros(1 << dice.u32(4..16))),
                    _ => Limit::Polls(dice.u32(0..40)),
                };
                match limited(limit, work.run()).await {
                    None => done.dropped += 1,
                    Some(Ok(Outcome::Stored)) => done.stored.push(n),
                    Some(Ok(Outcome::Undone)) => done.undone.push(n),
                    Some(Err(error)) => bail!("a future that was not dropped failed: {error:#}"),
                }
            }
            Ok(done)
        }
    });
    let tallies = try_join_all(tasks).await?;
    let sum = |pick: fn(&Tally) -> usize| tallies.iter().map(pick).sum::<usize>();
    let dropped: u64 = tallies.iter().map(|tally| tally.dropped).sum();
    plan.step(format!(
        "{} futures, {dropped} dropped, {} stored, {} undone",
        tallies.iter().map(|tally| tally.futures).sum::<u64>(),
        sum(|tally| tally.stored.len()),
        sum(|tally| tally.undone.len()),
    ));
    // A campaign in which all or none are dropped looks at nothing.
    ensure!(
        dropped > futures / 10 && sum(|tally| tally.stored.len()) as u64 > futures / 10,
        "the decisions do not fit the speed of this machine"
    );

    settled(&db, &ledger).await?;
    plan.step("no session of the pool is in a transaction");
    clean(&db, &ledger).await?;
    plan.step("every connection has its own settings, and what it writes is seen");
    balance(&ledger, &tallies).await?;
    plan.step("the ledger balances");
    let _ = db.close(Duration::from_secs(5)).await;
    drop(ledger);
    connection.await??;
    Ok(())
}

#[derive(Default)]
struct Tally {
    futures: u64,
    dropped: u64,
    stored: Vec<i64>,
    undone: Vec<i64>,
}

enum Limit {
    None,
    Polls(u32),
    Time(Duration),
}

/// Runs a future until it ends (`Some`) or is dropped (`None`).
async fn limited<T>(limit: Limit, work: impl Future<Output = T>) -> Option<T> {
    match limit {
        Limit::None => Some(work.await),
        Limit::Time(limit) => tokio::time::timeout(limit, work).await.ok(),
        Limit::Polls(polls) => {
            let mut work = pin!(work);
            let mut left = polls;
            poll_fn(|context| match work.as_mut().poll(context) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => {
                    left -= 1;
                    Poll::Pending
                }
            })
            .await
        }
    }
}

enum Outcome {
    /// The server acknowledged row `n`.
    Stored,
    /// There is no row `n`.
    Undone,
}

struct Work<'a> {
    db: &'a Db,
    tenant: &'a TenantDb,
    n: i64,
    kind: u8,
}

impl Work<'_> {
    async fn run(&self) -> Result<Outcome> {
        const PLAIN: &str = "insert into plain values ($1)";
        const SCOPED: &str = "insert into orders (n) values ($1)";
        let (db, tenant, n) = (self.db, self.tenant, self.n);
        match self.kind {
            0 => {
                sqlx::query(PLAIN).bind(n).execute(db).await?;
                Ok(Outcome::Stored)
            }
            1 => {
                let mut tx = db.begin().await?;
                sqlx::query(PLAIN).bind(n).execute(&mut tx).await?;
                tx.commit().await?;
                Ok(Outcome::Stored)
            }
            2 => {
                let mut rows = sqlx::query("select n from generate_series(1, 500) n").fetch(db);
                while rows.try_next().await?.is_some() {}
                Ok(Outcome::Undone)
            }
            3 => {
                sqlx::query(SCOPED).bind(n).execute(tenant).await?;
                Ok(Outcome::Stored)
            }
            4 => {
                let mut tx = tenant.begin().await?;
                sqlx::query(SCOPED).bind(n).execute(&mut tx).await?;
                let foreign: i64 = sqlx::query_scalar(
                    "select count(*) from orders where tenant <> maestro.tenant()",
                )
                .fetch_one(&mut tx)
                .await?;
                ensure!(foreign == 0, "{foreign} rows of another tenant were seen");
                tx.commit().await?;
                Ok(Outcome::Stored)
            }
            5 => {
                let mut tx = db.begin().await?;
                let mut part = tx.savepoint().await?;
                sqlx::query(PLAIN).bind(n).execute(&mut *part).await?;
                part.release().await?;
                tx.rollback().await?;
                Ok(Outcome::Undone)
            }
            6 => {
                let mut tx = tenant.begin().await?;
                sqlx::query(SCOPED).bind(n).execute(&mut tx).await?;
                let failed = sqlx::query("select 1 / 0").execute(&mut tx).await;
                ensure!(failed.is_err(), "a division by zero had a result");
                match tx.commit().await {
                    Err(error) if error.kind() == ErrorKind::Aborted => Ok(Outcome::Undone),
                    Err(error) => Err(error.into()),
                    Ok(()) => bail!("the commit of an aborted transaction was a success"),
                }
            }
            _ => {
                let mut tx = db.begin().await?;
                // Outlives a transaction, unless the connection is closed.
                sqlx::query("select set_config('maestro.left', 'behind', false)")
                    .execute(&mut tx)
                    .await?;
                sqlx::query(PLAIN).bind(n).execute(&mut tx).await?;
                let mut rows =
                    sqlx::query("select n from generate_series(1, 500) n").fetch(&mut tx);
                rows.try_next().await?;
                drop(rows);
                tx.commit().await?;
                Ok(Outcome::Stored)
            }
        }
    }
}

/// Until nothing is under way any more.
async fn settled(db: &Db, ledger: &tokio_postgres::Client) -> Result<()> {
    let started = Instant::now();
    loop {
        let busy: i64 = ledger
            .query_one(
                "select count(*) from pg_stat_activity where datname = current_database() \
                 and usename = $1 and state is distinct from 'idle'",
                &[&db.config().role()],
            )
            .await?
            .get(0);
        if busy == 0 && db.pool_report().active() == 0 {
            return Ok(());
        }
        ensure!(
            started.elapsed() < SETTLE,
            "{busy} sessions are still at work or in a transaction, {}",
            db.pool_report()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at every connection of the pool, all at once.
async fn clean(db: &Db, ledger: &tokio_postgres::Client) -> Result<()> {
    type Seen = (i32, Option<String>, Option<String>, String, String, i64);
    let started: String = ledger
        .query_one("select clock_timestamp()::text", &[])
        .await?
        .get(0);
    let look = || {
        sqlx::query_as::<_, Seen>(
            "select pg_backend_pid(), nullif(current_setting('maestro.tenant', true), ''), current_setting('maestro.left', true), \
               current_setting('search_path'), current_setting('statement_timeout'), \
               (select count(*) from pg_locks where pid = pg_backend_pid() and locktype not in ('virtualxid', 'relation')) \
             from pg_sleep(0.2) where now() >= $1::text::timestamptz",
        )
        .bind(&started)
        .fetch_one(db)
    };
    // On a slow machine one may be done before another has opened its connection: then again.
    let deadline = Instant::now() + SETTLE;
    let mut seen = BTreeMap::new();
    while seen.len() < CONNECTIONS {
        ensure!(
            Instant::now() < deadline,
            "only {} connections were looked at",
            seen.len()
        );
        let looks = try_join_all((0..CONNECTIONS).map(|_| look())).await;
        let looks = looks
            .map_err(Error::from)
            .context("a connection is of no use")?;
        seen.extend(looks.into_iter().map(|seen| (seen.0, seen)));
    }
    for (pid, tenant, left, path, timeout, locks) in seen.into_values() {
        ensure!(
            tenant.is_none() && left.is_none(),
            "{pid} is left with tenant {tenant:?} and {left:?}"
        );
        ensure!(
            path == "\"$user\", public" && timeout == "30s",
            "{pid} is left with {path} and {timeout}"
        );
        ensure!(locks == 0, "{pid} holds {locks} locks");
    }
    let inserts = (1..=CONNECTIONS * 5).map(|n| {
        sqlx::query("insert into plain values ($1)")
            .bind(-i64::try_from(n).unwrap_or_default())
            .execute(db)
    });
    try_join_all(inserts).await.map_err(Error::from)?;
    let visible: i64 = ledger
        .query_one("select count(*) from plain where n < 0", &[])
        .await?
        .get(0);
    ensure!(
        usize::try_from(visible)? == CONNECTIONS * 5,
        "{visible} of {} rows written in autocommit are seen by others",
        CONNECTIONS * 5
    );
    Ok(())
}

async fn balance(ledger: &tokio_postgres::Client, tallies: &[Tally]) -> Result<()> {
    let rows = ledger
        .query(
            "select n from plain where n > 0 union all select n from orders",
            &[],
        )
        .await?;
    let mut there: BTreeMap<i64, u32> = BTreeMap::new();
    for row in rows {
        *there.entry(row.get(0)).or_default() += 1;
    }
    for tally in tallies {
        for n in &tally.stored {
            ensure!(
                there.get(n) == Some(&1),
                "row {n} was acknowledged and is there {:?} times",
                there.get(n)
            );
        }
        for n in &tally.undone {
            ensure!(!there.contains_key(n), "row {n} was undone and is there");
        }
    }
    Ok(())
}
