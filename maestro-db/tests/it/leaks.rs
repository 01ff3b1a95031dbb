//! Tenants forced onto the same sessions, with cancellations and panics: nobody sees another's row.
//!
//! Each test is a share of the campaign that `cargo xtask soak tenants` runs in full.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use maestro_db::{Db, Error, ErrorKind, TenantDb, TenantId};

use crate::tenants::tenants;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_on_one_connection_never_see_each_others_rows() {
    let (_sandbox, db) = tenants(&[("POOL_MAX", "1")]).await;
    campaign(&db, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_with_schemas_on_one_connection_never_see_each_others_rows() {
    let (_sandbox, db) = crate::schemas::tenants(&[("POOL_MAX", "1")]).await;
    campaign(&db, "tenant_acme.orders").await;
}

/// What `cargo xtask soak` builds this with in place of the share.
fn asked(value: Option<&str>, share: u64) -> u64 {
    value.map_or(share, |value| value.parse().unwrap())
}

/// Two tenants and callers without one, all at once, for so many transactions of the tenants.
#[expect(clippy::print_stdout, reason = "a campaign tells what it looked at")]
pub(crate) async fn campaign(db: &Db, table: &'static str) {
    let transactions = asked(option_env!("SOAK_TRANSACTIONS"), 1_600);
    let seed = asked(option_env!("SOAK_SEED"), 1);
    let started = Instant::now();
    // An empty table is not asked whose it is.
    for id in ["acme", "globex"] {
        sqlx::query("insert into orders (text) values ($1)")
            .bind(id)
            .execute(&db.tenant(TenantId::parse(id).unwrap()))
            .await
            .unwrap();
    }
    let tasks = ["acme", "globex", "acme", "globex"];
    let rounds = transactions.div_ceil(tasks.len() as u64);
    let mut work = tokio::task::JoinSet::new();
    for (task, id) in (1..).zip(tasks) {
        let tenant = db.tenant(TenantId::parse(id).unwrap());
        let random = fastrand::Rng::with_seed(seed * 1_000 + task);
        work.spawn(tenant_at_work(tenant, random, rounds));
    }
    let unscoped = db.clone();
    let without = tokio::spawn(async move {
        for _ in 0..rounds {
            let sql = sqlx::AssertSqlSafe(format!("select text from {table}"));
            let result = sqlx::query(sql).fetch_all(&unscoped).await;
            let error = Error::from(result.expect_err("rows were seen without a tenant"));
            assert_eq!(error.kind(), ErrorKind::Isolation, "{error}");
        }
    });
    let mut done = Tally::default();
    for tally in work.join_all().await {
        done.add(&tally);
    }
    without.await.unwrap();
    println!(
        "{done:?}, {rounds} statements without a tenant refused, {:.1?}",
        started.elapsed()
    );
    // Both happen, or it looks at nothing.
    assert!(done.completed > 0 && done.cancelled > 0, "{done:?}");
}

/// How transactions of tenants ended; none of them saw another's row.
#[derive(Debug, Default)]
struct Tally {
    completed: u64,
    cancelled: u64,
    panicked: u64,
    /// Looked at, of others' when the test failed.
    rows_seen: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.completed += other.completed;
        self.cancelled += other.cancelled;
        self.panicked += other.panicked;
        self.rows_seen += other.rows_seen;
    }
}

async fn tenant_at_work(tenant: TenantDb, mut random: fastrand::Rng, rounds: u64) -> Tally {
    let mut done = Tally::default();
    for _ in 0..rounds {
        let (what, patience, panics) = (
            random.u8(0..6),
            patience(&mut random),
            random.u8(0..20) == 0,
        );
        // A task of its own, so that its panic ends only itself.
        let round = tokio::spawn(tokio::time::timeout(
            patience,
            one_round(tenant.clone(), what, panics),
        ));
        match round.await {
            Ok(Ok(result)) => {
                done.completed += 1;
                done.rows_seen += result.unwrap();
            }
            Ok(Err(_)) => done.cancelled += 1,
            // A planned panic; an assertion's is passed on.
            Err(error) => match error.into_panic().downcast::<Planned>() {
                Ok(_) => done.panicked += 1,
                Err(other) => std::panic::resume_unwind(other),
            },
        }
    }
    done
}

/// How long a caller waits: most for less than a transaction takes or about as long, some until its
/// end, however slow the machine is.
fn patience(random: &mut fastrand::Rng) -> Duration {
    match random.u8(0..4) {
        0 => Duration::from_mins(5),
        _ => Duration::from_micros(random.u64(0..4_000)),
    }
}

struct Planned;

/// How many rows were seen.
async fn one_round(tenant: TenantDb, what: u8, panics: bool) -> Result<u64, Error> {
    let mut rows_seen = 0;
    let me = tenant.id().as_str();
    let foreign = |texts: &[String]| texts.iter().filter(|text| *text != me).count();
    match what {
        0 => {
            sqlx::query("insert into orders (text) values ($1)")
                .bind(me)
                .execute(&tenant)
                .await?;
        }
        1 => {
            let seen: Vec<String> = sqlx::query_scalar("select text from orders")
                .fetch_all(&tenant)
                .await?;
            assert_eq!(foreign(&seen), 0, "{me} saw another's rows");
            rows_seen += seen.len() as u64;
        }
        2 => {
            let mut tx = tenant.begin().await?;
            sqlx::query("insert into orders (text) values ($1)")
                .bind(me)
                .execute(&mut tx)
                .await?;
            if panics {
                // Without the message on standard error that `panic!` would print.
                std::panic::resume_unwind(Box::new(Planned));
            }
            let seen: Vec<String> = sqlx::query_scalar("select text from orders")
                .fetch_all(&mut tx)
                .await?;
            assert_eq!(foreign(&seen), 0, "{me} saw another's rows");
            rows_seen += seen.len() as u64;
            let whose: String = sqlx::query_scalar("select maestro.tenant()")
                .fetch_one(&mut tx)
                .await?;
            assert_eq!(whose, me);
            tx.commit().await?;
        }
        3 => {
            let mut tx = tenant.begin().await?;
            let mut rows =
                sqlx::query_scalar::<_, String>("select text from orders").fetch(&mut tx);
            if let Some(text) = rows.try_next().await? {
                assert_eq!(text, me);
                rows_seen += 1;
            }
            drop(rows);
            if panics {
                std::panic::resume_unwind(Box::new(Planned));
            }
            // Dropped without an end.
        }
        4 => {
            // Not all: an empty table is not asked whose it is.
            sqlx::query("delete from orders where id < (select max(id) - 50 from orders)")
                .execute(&tenant)
                .await?;
        }
        _ => {
            let mut tx = tenant.begin().await?;
            sqlx::query("select 1/0")
                .execute(&mut tx)
                .await
                .expect_err("divided by zero");
            tx.commit().await.expect_err("a lie");
        }
    }
    Ok(rows_seen)
}
