//! The pool: exhaustion, fairness, minimum, lifetimes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_db::{Db, Error, ErrorKind, Transaction};
use maestro_metrics::{HealthState, Registry};
use maestro_testkit::{Origin, Service, Stack};

use crate::support::{administer, config, count, database, eventually, sandbox};

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// A transaction, where the limit of the test may be short for opening a connection.
async fn begun(db: &Db) -> Transaction {
    let started = Instant::now();
    loop {
        match db.begin().await {
            Ok(tx) => return tx,
            Err(error) => assert!(started.elapsed() < SOON, "{error}"),
        }
    }
}

#[tokio::test]
async fn an_exhausted_pool_names_its_longest_holder() {
    let it = database("", &[("POOL_MAX", "2"), ("ACQUIRE_TIMEOUT", "3s")]).await;
    let _first = begun(&it.db).await;
    let _second = begun(&it.db).await;
    let error = it.db.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.is_transient());
    let report = error.pool().unwrap();
    assert_eq!(
        (
            report.total(),
            report.active(),
            report.idle(),
            report.waiting()
        ),
        (2, 2, 0, 0)
    );
    let (held, holder) = report.longest_holder().unwrap();
    assert!(held >= Duration::from_secs(3), "{held:?}");
    assert!(holder.contains("pool.rs"), "{holder}");
    assert!(error.to_string().contains("pool.rs"), "{error}");

    // A statement gets the same error through sqlx.
    let error = sqlx::query("select 1").execute(&it.db).await.unwrap_err();
    assert_eq!(Error::from(error).kind(), ErrorKind::Exhausted);
}

#[tokio::test]
async fn a_statement_that_holds_the_pool_is_named_by_its_text() {
    let it = database("", &[("POOL_MAX", "1"), ("ACQUIRE_TIMEOUT", "200ms")]).await;
    let db = it.db.clone();
    let slow = tokio::spawn(async move { sqlx::query("select pg_sleep(30)").execute(&db).await });
    eventually("it runs", SOON, || async {
        it.db.pool_report().active() == 1
    })
    .await;
    let error = it.db.begin().await.unwrap_err();
    assert!(
        error
            .pool()
            .unwrap()
            .longest_holder()
            .unwrap()
            .1
            .contains("pg_sleep"),
        "{error}"
    );
    slow.abort();
}

/// Time is counted in answers to anybody: a machine that stands still for a second makes nobody wait
/// for more of them, and an unfair queue does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_on_ten_connections_finish_fairly() {
    let it = database("", &[("ACQUIRE_TIMEOUT", "120s")]).await;
    let answers = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (db, answers) = (it.db.clone(), Arc::clone(&answers));
        tasks.spawn(async move {
            let mut waits = Vec::new();
            for _ in 0..5 {
                let asked = answers.load(Ordering::Relaxed);
                sqlx::query("select pg_sleep(0.001)")
                    .execute(&db)
                    .await
                    .unwrap();
                waits.push(answers.fetch_add(1, Ordering::Relaxed) - asked);
            }
            waits
        });
    }
    let mut waits: Vec<u64> = tasks.join_all().await.concat();
    waits.sort_unstable();
    let (p50, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    assert!(p99 <= p50 * 5, "p50 {p50} answers, p99 {p99}");
    assert!(it.db.pool_report().total() <= 10);
}

#[tokio::test]
async fn the_minimum_is_opened_without_being_asked_and_kept() {
    let it = database("", &[("POOL_MIN", "3"), ("IDLE_TIMEOUT", "100ms")]).await;
    eventually("three are open", Duration::from_secs(30), || async {
        it.db.pool_report().total() == 3
    })
    .await;
    let busy: Vec<_> = futures_util::future::join_all((0..8).map(|_| it.db.begin())).await;
    // Two more when those that keep the minimum warm are still in the upkeep's hands.
    assert!(it.db.pool_report().total() >= 8, "{}", it.db.pool_report());
    drop(busy);
    eventually(
        "what is unused is closed",
        Duration::from_secs(30),
        || async { it.db.pool_report().total() == 3 },
    )
    .await;
}

#[tokio::test]
async fn an_old_connection_is_replaced() {
    let it = database("", &[("POOL_MAX", "1"), ("MAX_LIFETIME", "300ms")]).await;
    let pid = count(&it.db, "select pg_backend_pid()::bigint").await;
    eventually("another one answers", Duration::from_secs(30), || async {
        count(&it.db, "select pg_backend_pid()::bigint").await != pid
    })
    .await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_for_and_then_named() {
    let it = database("", &[]).await;
    let role = it.db.config().role().to_owned();
    let mut held = vec![it.db.begin().await.unwrap(), it.db.begin().await.unwrap()];
    administer(format!("alter role {role} connection limit 2")).await;

    // Long enough for one attempt on a busy machine.
    let other = Db::builder(config(&it.sandbox, &[("ACQUIRE_TIMEOUT", "5s")]))
        .connect_lazy()
        .unwrap();
    let error = other.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.sqlstate().as_deref(), Some("53300"), "{error}");
    assert!(error.to_string().contains("CONNECTION LIMIT"), "{error}");

    // One becomes free while a caller waits.
    let patient = Db::builder(config(&it.sandbox, &[("ACQUIRE_TIMEOUT", "60s")]))
        .connect_lazy()
        .unwrap();
    let free = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        held.clear();
        it.db.close(SOON).await.unwrap();
    };
    let (begun, ()) = tokio::join!(patient.begin(), free);
    begun.unwrap().rollback().await.unwrap();
}

#[tokio::test]
async fn wrong_credentials_and_a_foreign_database_are_told_apart_from_an_outage() {
    let it = database("", &[]).await;
    let stranger = it.sandbox.neighbour("billing").await.unwrap();
    let url = |of: &maestro_testkit::Sandbox, name: &str| {
        of.environment()
            .into_iter()
            .find(|(key, _)| key == name)
            .unwrap()
            .1
    };
    let own = url(&it.sandbox, "MAESTRO_POSTGRES_URL");
    let foreign = stranger.resources().database().to_owned();
    let at = own.rfind('/').unwrap();
    let mut refused = vec![
        (format!("{}/{foreign}", &own[..at]), "may not connect"),
        (format!("{}/nowhere", &own[..at]), "does not exist"),
    ];
    // Nobody closes the common databases of a server that is somebody else's.
    let stack = Stack::builder().only([Service::Postgres]).start().await;
    if stack.unwrap().postgres().unwrap().origin() != Origin::Explicit {
        refused.push((format!("{}/postgres", &own[..at]), "may not connect"));
        refused.push((format!("{}/template1", &own[..at]), "may not connect"));
    }
    for (url, expected) in refused {
        let config = config(&it.sandbox, &[("URL", &url)]);
        let error = Db::connect(config).await.expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = Db::connect(config(&it.sandbox, &[("PASSWORD", "canary-wrong")]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        !format!("{error} {error:?}").contains("canary"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_password_given_later_is_used_for_new_connections() {
    let sandbox = sandbox().await;
    let good = config(&sandbox, &[]);
    let url = sandbox
        .environment()
        .into_iter()
        .find(|(key, _)| key == "MAESTRO_POSTGRES_URL")
        .unwrap()
        .1;
    let password = url
        .split(':')
        .nth(2)
        .unwrap()
        .split('@')
        .next()
        .unwrap()
        .to_owned();
    let db = Db::builder(config(&sandbox, &[("PASSWORD", "old")]))
        .connect_lazy()
        .unwrap();
    db.begin().await.unwrap_err();
    db.rotate_password(maestro_config::Secret::new(password));
    db.begin().await.unwrap().rollback().await.unwrap();
    assert_eq!(db.config().role(), good.role());
}

#[tokio::test]
async fn pools_statements_and_failures_are_measured() {
    let sandbox = sandbox().await;
    let registry = Registry::detached();
    let db = Db::builder(config(&sandbox, &[]))
        .registry(&registry)
        .connect()
        .await
        .unwrap();
    sqlx::query("select 1 from pg_class")
        .fetch_all(&db)
        .await
        .unwrap();
    sqlx::query("select 1/0 from pg_class")
        .execute(&db)
        .await
        .unwrap_err();
    let tx = db.begin().await.unwrap();
    let text = registry.text();
    let pool = format!(
        "db_client_connection_pool_name=\"{}\"",
        db.config().database()
    );
    for expected in [
        format!("db_client_connections{{{pool},db_client_connection_state=\"used\"}} 1"),
        format!("db_client_connection_max{{{pool}}} 10"),
        "db_operation_name=\"SELECT\",db_collection_name=\"pg_class\",db_response_status_code=\"\",error_type=\"\"".to_owned(),
        "db_response_status_code=\"22012\",error_type=\"rejected\"".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected} is not in\n{text}");
    }
    tx.commit().await.unwrap();
    assert!(
        registry
            .text()
            .contains("maestro_db_transactions_total{outcome=\"committed\"} 1")
    );
}

#[tokio::test]
async fn the_health_check_tells_busy_from_gone() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let check = it.db.health_check();
    let becomes = async |state, when| {
        eventually(when, SOON, || async { check.run().await.state() == state }).await;
    };
    becomes(HealthState::Healthy, "healthy").await;
    let tx = it.db.begin().await.unwrap();
    becomes(HealthState::Degraded, "degraded while all are in use").await;
    tx.rollback().await.unwrap();
    it.sandbox.postgres_link().cut().await.unwrap();
    becomes(HealthState::Unhealthy, "unhealthy without the server").await;
    it.sandbox.postgres_link().restore().await.unwrap();
    becomes(HealthState::Healthy, "healthy again").await;
}

/// Both limits are one: whichever timer fires first, the reason is the pool's.
#[tokio::test]
async fn a_ping_of_a_busy_pool_is_always_told_from_one_of_a_dead_server() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let _busy = it.db.begin().await.unwrap();
    for round in 0..300 {
        let error = it.db.ping(Duration::from_millis(3)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "round {round}: {error}");
    }
}

#[tokio::test]
async fn closing_waits_for_what_is_in_use_and_then_lets_nobody_in() {
    let it = database("", &[]).await;
    let tx = it.db.begin().await.unwrap();
    assert_eq!(it.db.close(Duration::from_millis(100)).await, Err(1));
    tx.rollback().await.unwrap();
    let error = it.db.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("closed"), "{error}");
    assert_eq!(it.db.close(SOON).await, Ok(()));
}
