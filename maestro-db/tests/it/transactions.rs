//! Commits that cannot lie.

use futures_util::TryStreamExt as _;
use maestro_db::{Db, Error, ErrorKind, Isolation, Transaction, TransactionOptions};
use sqlx::Row as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Barrier;

use crate::support::{count, database, eventually};

const NOTES: &str = "create table notes (id int primary key, text text not null default '')";

async fn insert(tx: &mut Transaction, id: i32) -> Result<(), sqlx::Error> {
    sqlx::query("insert into notes (id) values ($1)")
        .bind(id)
        .execute(tx)
        .await
        .map(|_| ())
}

async fn notes(db: &Db) -> i64 {
    count(db, "select count(*) from notes").await
}

#[tokio::test]
async fn a_commit_is_seen_by_everybody_and_a_rollback_by_nobody() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    assert_eq!(notes(&it.db).await, 0);
    tx.commit().await.unwrap();
    assert_eq!(notes(&it.db).await, 1);

    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 2).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(notes(&it.db).await, 1);
}

#[tokio::test]
async fn committing_an_aborted_transaction_is_an_error_that_names_the_statement() {
    let it = database(NOTES, &[("POOL_MAX", "1")]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    let failed = insert(&mut tx, 1).await;
    assert!(failed.is_err());
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(error.to_string().contains("insert into notes"), "{error}");
    assert!(error.to_string().contains("transactions.rs"), "{error}");
    assert_eq!(notes(&it.db).await, 0);
}

#[tokio::test]
async fn after_a_failure_further_statements_are_refused_with_its_reason() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("select 1/0")
        .execute(&mut tx)
        .await
        .unwrap_err();
    let error = Error::from(insert(&mut tx, 1).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(error.to_string().contains("division by zero"), "{error}");
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn a_constraint_checked_at_commit_makes_the_commit_an_error() {
    let it = database(
        "create table parents (id int primary key); \
         create table children (parent int references parents deferrable initially deferred)",
        &[("POOL_MAX", "1")],
    )
    .await;
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("insert into children values (1)")
        .execute(&mut tx)
        .await
        .unwrap();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(count(&it.db, "select count(*) from children").await, 0);
}

#[tokio::test]
async fn a_dropped_transaction_is_rolled_back_and_its_connection_used_again() {
    let it = database(NOTES, &[("POOL_MAX", "1")]).await;
    let pid = count(&it.db, "select pg_backend_pid()::bigint").await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    drop(tx);
    assert_eq!(notes(&it.db).await, 0);
    assert_eq!(count(&it.db, "select pg_backend_pid()::bigint").await, pid);

    // Also when the last thing in it had failed.
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("select 1/0")
        .execute(&mut tx)
        .await
        .unwrap_err();
    drop(tx);
    assert_eq!(count(&it.db, "select pg_backend_pid()::bigint").await, pid);
}

#[tokio::test]
async fn a_savepoint_undoes_its_part_alone() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();

    let mut kept = tx.savepoint().await.unwrap();
    insert(&mut kept, 2).await.unwrap();
    kept.release().await.unwrap();

    let mut undone = tx.savepoint().await.unwrap();
    insert(&mut undone, 3).await.unwrap();
    insert(&mut undone, 3).await.unwrap_err();
    undone.rollback().await.unwrap();

    let mut outer = tx.savepoint().await.unwrap();
    insert(&mut outer, 4).await.unwrap();
    {
        let mut inner = outer.savepoint().await.unwrap();
        insert(&mut inner, 4).await.unwrap_err();
        // Dropped: undone before the next statement.
    }
    insert(&mut outer, 5).await.unwrap();
    outer.release().await.unwrap();

    let mut failed = tx.savepoint().await.unwrap();
    insert(&mut failed, 1).await.unwrap_err();
    let error = failed.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);

    tx.commit().await.unwrap();
    let ids: Vec<i32> = sqlx::query_scalar("select id from notes order by id")
        .fetch_all(&it.db)
        .await
        .unwrap();
    assert_eq!(ids, [1, 2, 4, 5]);
}

#[tokio::test]
async fn a_savepoint_dropped_right_before_the_commit_is_undone_by_it() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    let mut dropped = tx.savepoint().await.unwrap();
    insert(&mut dropped, 2).await.unwrap();
    drop(dropped);
    tx.commit().await.unwrap();
    assert_eq!(notes(&it.db).await, 1);
}

#[tokio::test]
async fn after_a_cancelled_statement_the_commit_is_an_error() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    let slow = sqlx::query("select pg_sleep(10)").execute(&mut tx);
    tokio::time::timeout(Duration::from_millis(50), slow)
        .await
        .unwrap_err();
    let error = Error::from(insert(&mut tx, 2).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Aborted);
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(error.to_string().contains("dropped"), "{error}");
    assert_eq!(notes(&it.db).await, 0);
    eventually("the cancelled statement has ended", Duration::from_secs(30), || async {
        count(&it.db, "select count(*) from pg_stat_activity where usename = current_user and query like 'select pg_sleep%'").await == 0
    })
    .await;
}

#[tokio::test]
async fn a_stream_dropped_half_way_does_not_end_the_transaction() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    let mut rows = sqlx::query("select n from generate_series(1, 100000) n").fetch(&mut tx);
    let first: i32 = rows.try_next().await.unwrap().unwrap().get(0);
    assert_eq!(first, 1);
    drop(rows);
    insert(&mut tx, 2).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&it.db).await, 2);
}

#[tokio::test]
async fn an_error_in_the_unread_rest_of_a_stream_makes_the_commit_an_error() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    let mut rows =
        sqlx::query("select 1 / (50000 - n) from generate_series(1, 100000) n").fetch(&mut tx);
    rows.try_next().await.unwrap();
    drop(rows);
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert_eq!(notes(&it.db).await, 0);
}

#[tokio::test]
async fn transaction_and_session_control_is_refused_and_does_not_end_the_transaction() {
    let it = database(NOTES, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    for sql in [
        "commit",
        "rollback",
        "savepoint a",
        "set search_path = x",
        "discard all",
    ] {
        let refused = sqlx::raw_sql(sql).execute(&mut tx).await.unwrap_err();
        assert_eq!(Error::from(refused).kind(), ErrorKind::Rejected, "{sql}");
    }
    sqlx::query("set local statement_timeout = '1s'")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&it.db).await, 1);
}

#[tokio::test]
async fn a_session_changed_by_a_function_is_not_handed_to_the_next_user() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("select set_config('maestro.left', 'behind', false)")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let left: Option<String> = sqlx::query_scalar("select current_setting('maestro.left', true)")
        .fetch_one(&it.db)
        .await
        .unwrap();
    assert_eq!(left, None);
}

#[tokio::test]
async fn a_commit_behind_our_back_is_found_out() {
    let it = database(NOTES, &[("POOL_MAX", "1")]).await;
    let mut tx = it.db.begin().await.unwrap();
    insert(&mut tx, 1).await.unwrap();
    sqlx::raw_sql("commit")
        .execute(tx.connection().unwrap())
        .await
        .unwrap();
    tx.commit().await.unwrap_err();

    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("select 1/0")
        .execute(tx.connection().unwrap())
        .await
        .unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");

    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("insert into notes (id) values (7)")
        .execute(tx.connection().unwrap())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&it.db).await, 2);
}

#[tokio::test]
async fn options_of_a_transaction_reach_the_server() {
    let it = database(NOTES, &[]).await;
    let options = TransactionOptions::new()
        .isolation(Isolation::RepeatableRead)
        .read_only();
    let mut tx = it.db.begin_with(options).await.unwrap();
    let level: String = sqlx::query_scalar("show transaction_isolation")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    assert_eq!(level, "repeatable read");
    let refused = Error::from(insert(&mut tx, 1).await.unwrap_err());
    assert_eq!(refused.sqlstate().as_deref(), Some("25006"));
}

/// All of them read before anybody writes, so all but one collide; and whoever collides again does so
/// with one that is done then, so that nobody needs more runs than there are of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colliding_transactions_are_run_again_until_each_has_had_its_turn() {
    const EACH: usize = 6;
    let it = database("create table counters (id int primary key, n int not null); insert into counters values (1, 0)", &[]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let all_have_read = Arc::new(Barrier::new(EACH));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..EACH {
        let (db, runs, all_have_read) =
            (it.db.clone(), Arc::clone(&runs), Arc::clone(&all_have_read));
        // Spawned, so this also shows that the future is `Send`.
        tasks.spawn(async move {
            let first = AtomicBool::new(true);
            db.retry(|| async {
                runs.fetch_add(1, Ordering::Relaxed);
                let options = TransactionOptions::new().isolation(Isolation::Serializable);
                let mut tx = db.begin_with(options).await?;
                let n: i32 = sqlx::query_scalar("select n from counters where id = 1")
                    .fetch_one(&mut tx)
                    .await?;
                if first.swap(false, Ordering::Relaxed) {
                    all_have_read.wait().await;
                }
                sqlx::query("update counters set n = $1 where id = 1")
                    .bind(n + 1)
                    .execute(&mut tx)
                    .await?;
                tx.commit().await
            })
            .await
            .unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(
        count(&it.db, "select n::bigint from counters").await,
        i64::try_from(EACH).unwrap()
    );
    assert!(runs.load(Ordering::Relaxed) >= 2 * EACH - 1, "{runs:?}");
}

#[tokio::test]
async fn an_error_that_is_no_collision_is_not_repeated() {
    let it = database(NOTES, &[]).await;
    let mut runs = 0;
    let result = it
        .db
        .retry(|| {
            runs += 1;
            let db = it.db.clone();
            async move { sqlx::query("select 1/0").execute(&db).await }
        })
        .await;
    assert!(result.is_err());
    assert_eq!(runs, 1);
}
