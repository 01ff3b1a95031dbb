//! Tenants forced onto the same sessions, with cancellations and panics: nobody sees another's row.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use maestro_db::{Db, Error, ErrorKind, TenantDb, TenantId};

use crate::tenants::tenants;

/// Rounds of one tenant's work; a share of the campaign that runs longer elsewhere.
const ROUNDS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_on_one_connection_never_see_each_others_rows() {
    let (_sandbox, db) = tenants(&[("POOL_MAX", "1"), ("ACQUIRE_TIMEOUT", "30s")]).await;
    campaign(&db, ROUNDS, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tenants_with_schemas_on_one_connection_never_see_each_others_rows() {
    let (_sandbox, db) =
        crate::schemas::tenants(&[("POOL_MAX", "1"), ("ACQUIRE_TIMEOUT", "30s")]).await;
    campaign(&db, ROUNDS, "tenant_acme.orders").await;
}

/// Two tenants and callers without one, all at once, for so many rounds each.
pub(crate) async fn campaign(db: &Db, rounds: usize, table: &'static str) {
    // An empty table is not asked whose it is.
    for id in ["acme", "globex"] {
        sqlx::query("insert into orders (text) values ($1)")
            .bind(id)
            .execute(&db.tenant(TenantId::parse(id).unwrap()))
            .await
            .unwrap();
    }
    let mut work = tokio::task::JoinSet::new();
    for (seed, id) in [(1, "acme"), (2, "globex"), (3, "acme"), (4, "globex")] {
        let tenant = db.tenant(TenantId::parse(id).unwrap());
        work.spawn(tenant_at_work(
            tenant,
            fastrand::Rng::with_seed(seed),
            rounds,
        ));
    }
    let unscoped = db.clone();
    work.spawn(async move {
        for _ in 0..rounds {
            let sql = sqlx::AssertSqlSafe(format!("select text from {table}"));
            let result = sqlx::query(sql).fetch_all(&unscoped).await;
            let error = Error::from(result.expect_err("rows were seen without a tenant"));
            assert_eq!(error.kind(), ErrorKind::Isolation, "{error}");
        }
    });
    work.join_all().await;
}

async fn tenant_at_work(tenant: TenantDb, mut random: fastrand::Rng, rounds: usize) {
    for _ in 0..rounds {
        let (what, patience, panics) = (
            random.u8(0..5),
            Duration::from_micros(random.u64(0..4_000)),
            random.u8(0..20) == 0,
        );
        // A task of its own, so that its panic ends only itself.
        let round = tokio::spawn(tokio::time::timeout(
            patience,
            one_round(tenant.clone(), what, panics),
        ));
        match round.await {
            Ok(Ok(result)) => result.unwrap(),
            // Cancelled.
            Ok(Err(_)) => {}
            // A planned panic; an assertion's is passed on.
            Err(error) => match error.into_panic().downcast::<Planned>() {
                Ok(_) => {}
                Err(other) => std::panic::resume_unwind(other),
            },
        }
    }
}

struct Planned;

async fn one_round(tenant: TenantDb, what: u8, panics: bool) -> Result<(), Error> {
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
            }
            drop(rows);
            if panics {
                std::panic::resume_unwind(Box::new(Planned));
            }
            // Dropped without an end.
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
    Ok(())
}
