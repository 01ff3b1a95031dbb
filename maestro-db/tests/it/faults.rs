//! Servers that are not there, die, hang, or are cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_db::{Db, Error, ErrorKind};
use sqlx::Connection as _;

use crate::support::{config, count, database, dedicated, eventually, migrator};

/// Longest wait for statements to work again, on a busy machine.
const RECOVERY: Duration = Duration::from_mins(1);

async fn works(db: &Db) -> bool {
    sqlx::query("select 1").execute(db).await.is_ok()
}

#[tokio::test]
async fn a_statement_over_its_limit_is_ended_by_the_server_and_its_connection_kept() {
    let it = database("", &[("STATEMENT_TIMEOUT", "2s"), ("POOL_MAX", "1")]).await;
    let pid = count(&it.db, "select pg_backend_pid()::bigint").await;
    let error = Error::from(
        sqlx::query("select pg_sleep(20)")
            .execute(&it.db)
            .await
            .unwrap_err(),
    );
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.sqlstate().as_deref(), Some("57014"));
    assert_eq!(count(&it.db, "select pg_backend_pid()::bigint").await, pid);
}

#[tokio::test]
async fn a_server_that_is_read_only_is_told_from_a_wrong_statement() {
    let (stack, sandbox) = dedicated().await;
    let db = Db::connect(config(&sandbox, &[("POOL_MAX", "1")]))
        .await
        .unwrap();
    db.migrate(&migrator(&["create table notes (text text)"]))
        .await
        .unwrap();
    let write = async || {
        let written = sqlx::query("insert into notes values ('x')").execute(&db);
        written.await.map_err(Error::from)
    };
    let expect = |error: Error, sqlstate| {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.is_transient(), "{error}");
        assert_eq!(error.sqlstate().as_deref(), Some(sqlstate), "{error}");
    };
    let url = stack.postgres().unwrap().admin_url();
    let mut admin = sqlx::PgConnection::connect(url.expose()).await.unwrap();
    for (writes, setting) in [(false, "on"), (true, "off")] {
        for sql in [
            format!("alter system set default_transaction_read_only = {setting}"),
            "select pg_reload_conf()".to_owned(),
        ] {
            let sql = sqlx::AssertSqlSafe(sql);
            sqlx::raw_sql(sql).execute(&mut admin).await.unwrap();
        }
        eventually("the server has read its settings", RECOVERY, async || {
            write().await.is_ok() == writes
        })
        .await;
        if !writes {
            expect(write().await.unwrap_err(), "25006");
            assert!(works(&db).await, "reading goes on");
        }
    }
}

/// The file of a table leads to `/dev/full`, on which every write fails for want of space.
#[tokio::test]
async fn a_disk_that_is_full_is_told_as_such_and_the_rest_of_the_service_goes_on() {
    let (stack, sandbox) = dedicated().await;
    let db = Db::connect(config(&sandbox, &[("POOL_MAX", "1")]))
        .await
        .unwrap();
    db.migrate(&migrator(&[
        "create table notes (text text); create table others (text text)",
    ]))
    .await
    .unwrap();
    let file: String = sqlx::query_scalar("select pg_relation_filepath('notes')")
        .fetch_one(&db)
        .await
        .unwrap();
    // Whoever has the file open keeps it: the server starts anew with the other one.
    let replaced = async |script: String| {
        let url = stack.postgres().unwrap().admin_url();
        let mut admin = sqlx::PgConnection::connect(url.expose()).await.unwrap();
        let sql = format!("checkpoint; copy (select) to program 'cat > /dev/null; {script}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut admin)
            .await
            .unwrap();
        admin.close().await.unwrap();
        let server = stack.postgres().unwrap();
        server.stop().await.unwrap();
        server.start().await.unwrap();
    };
    replaced(format!("mv {file} {file}.kept; ln -s /dev/full {file}")).await;
    let write = async |sql| sqlx::query(sql).execute(&db).await.map_err(Error::from);
    eventually("the service works", RECOVERY, || works(&db)).await;

    let error = write("insert into notes values ('x')").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.sqlstate().as_deref(), Some("53100"), "{error}");
    let said = error.to_string();
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.contains("Check free disk space"), "{said}");

    // In a transaction the commit says so too, and nothing of it is stored.
    let mut tx = db.begin().await.unwrap();
    sqlx::query("insert into others values ('x')")
        .execute(&mut tx)
        .await
        .unwrap();
    sqlx::query("insert into notes values ('x')")
        .execute(&mut tx)
        .await
        .unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
    assert_eq!(count(&db, "select count(*) from others").await, 0);
    write("insert into others values ('x')").await.unwrap();

    replaced(format!("rm {file}; mv {file}.kept {file}")).await;
    eventually("the service works", RECOVERY, || works(&db)).await;
    write("insert into notes values ('x')").await.unwrap();
    assert_eq!(count(&db, "select count(*) from notes").await, 1);
}

#[tokio::test]
async fn connecting_waits_for_the_server_and_then_says_why_it_gave_up() {
    let it = database("", &[("ACQUIRE_TIMEOUT", "2s")]).await;
    it.sandbox.postgres_link().cut().await.unwrap();
    let started = Instant::now();
    let error = Db::connect(it.db.config().clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        started.elapsed() > Duration::from_millis(200),
        "{:?}",
        started.elapsed()
    );
    assert!(
        error.to_string().contains("is the server running"),
        "{error}"
    );
    let waiting = Db::builder(it.db.config().clone())
        .wait_for_server(RECOVERY)
        .connect();
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        it.sandbox.postgres_link().restore().await.unwrap();
    };
    let (db, ()) = tokio::join!(waiting, later);
    assert!(works(&db.unwrap()).await);
}

#[tokio::test]
async fn a_service_that_starts_before_its_server_becomes_ready_by_itself() {
    let it = database("", &[("ACQUIRE_TIMEOUT", "2s")]).await;
    it.sandbox.postgres_link().cut().await.unwrap();
    let db = Db::builder(it.db.config().clone()).connect_lazy().unwrap();
    assert!(!works(&db).await);
    it.sandbox.postgres_link().restore().await.unwrap();
    eventually("it works", RECOVERY, || works(&db)).await;
}

#[tokio::test]
async fn connections_that_were_reset_cost_one_failure_each_at_most_and_none_later() {
    let it = database("", &[("POOL_MAX", "4")]).await;
    let open: Vec<_> = futures_util::future::join_all((0..4).map(|_| it.db.begin())).await;
    drop(open);
    eventually("all are back", RECOVERY, || async {
        it.db.pool_report().idle() == 4
    })
    .await;
    it.sandbox.postgres_link().reset().await.unwrap();
    let mut failures = 0;
    for _ in 0..20 {
        match sqlx::query("select 1").execute(&it.db).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(Error::from(error).kind(), ErrorKind::Unavailable);
                failures += 1;
            }
        }
    }
    // The first broken one makes the others be looked at before they are used.
    assert_eq!(failures, 1);
}

#[tokio::test]
async fn a_network_that_swallows_everything_ends_in_a_timeout() {
    let it = database(
        "",
        &[
            ("STATEMENT_TIMEOUT", "2s"),
            ("POOL_MAX", "1"),
            ("ACQUIRE_TIMEOUT", "2s"),
        ],
    )
    .await;
    it.sandbox.postgres_link().blackhole().await.unwrap();
    let started = Instant::now();
    let error = Error::from(sqlx::query("select 1").execute(&it.db).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // The limit and a grace of five seconds.
    assert!(
        started.elapsed() < Duration::from_mins(1),
        "{:?}",
        started.elapsed()
    );
    let error = it.db.begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    it.sandbox.postgres_link().restore().await.unwrap();
    eventually("it works", RECOVERY, || works(&it.db)).await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_unknown_and_not_a_success_or_a_failure() {
    let it = database(
        "create table notes (id int)",
        &[("STATEMENT_TIMEOUT", "2s")],
    )
    .await;
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("insert into notes values (1)")
        .execute(&mut tx)
        .await
        .unwrap();
    it.sandbox
        .postgres_link()
        .blackhole_replies()
        .await
        .unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
    assert!(!error.is_transient());
    it.sandbox.postgres_link().restore().await.unwrap();
    // This time the server had committed.
    eventually("it works", RECOVERY, || works(&it.db)).await;
    assert_eq!(count(&it.db, "select count(*) from notes").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_restarted_or_paused_for_thirty_seconds_is_used_again_by_every_caller()
 {
    let (stack, sandbox) = dedicated().await;
    let server = stack.postgres().unwrap();
    let settings = [("ACQUIRE_TIMEOUT", "2s"), ("STATEMENT_TIMEOUT", "2s")];
    let db = Db::builder(config(&sandbox, &settings))
        .wait_for_server(RECOVERY)
        .connect()
        .await
        .unwrap();

    let load = Load::start(&db);
    load.goes_on("at first").await;

    server.kill().await.unwrap();
    let error = loop {
        match sqlx::query("select 1").execute(&db).await {
            Ok(_) => {}
            Err(error) => break Error::from(error),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.start().await.unwrap();
    load.goes_on("after a kill").await;

    server.stop().await.unwrap();
    eventually("statements fail", RECOVERY, || async { !works(&db).await }).await;
    server.start().await.unwrap();
    load.goes_on("after a restart").await;

    server.pause().await.unwrap();
    let paused = Instant::now();
    let error = Error::from(sqlx::query("select 1").execute(&db).await.unwrap_err());
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Exhausted
        ),
        "{error}"
    );
    // Long beyond every limit: whoever comes now is told, and nobody waits for the end of it.
    tokio::time::sleep(PAUSE.saturating_sub(paused.elapsed())).await;
    let error = Error::from(sqlx::query("select 1").execute(&db).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.resume().await.unwrap();
    load.goes_on("after a pause").await;

    load.stop().await;
    assert!(db.pool_report().total() <= 10);
}

/// How long the server stands still.
const PAUSE: Duration = Duration::from_secs(30);

/// Callers that go on whatever happens.
struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    successes: Vec<Arc<AtomicU64>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(db: &Db) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        let successes: Vec<Arc<AtomicU64>> = (0..8).map(|_| Arc::default()).collect();
        for successes in &successes {
            let (db, stopped, successes) = (db.clone(), stopped.clone(), Arc::clone(successes));
            tasks.spawn(async move {
                while !*stopped.borrow() {
                    if works(&db).await {
                        successes.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        Self {
            stop,
            successes,
            tasks,
        }
    }

    /// Every caller succeeds again, ten times, within the time of recovery.
    async fn goes_on(&self, when: &str) {
        let before: Vec<_> = self
            .successes
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect();
        eventually(
            &format!("every caller succeeds {when}"),
            RECOVERY,
            || async {
                let now = self.successes.iter().map(|n| n.load(Ordering::Relaxed));
                now.zip(&before).all(|(now, before)| now >= before + 10)
            },
        )
        .await;
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.tasks.join_all().await;
    }
}
