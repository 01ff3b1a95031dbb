//! Futures dropped at any moment leave nothing behind.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures_util::{FutureExt as _, TryStreamExt as _};
use maestro_db::Db;

use crate::support::{Database, count, database, eventually};

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const NOTES: &str = "create table notes (id bigint generated always as identity, text text)";

#[tokio::test]
async fn after_eight_of_twenty_begins_were_cancelled_an_insert_is_visible_to_everybody() {
    let it = database(NOTES, &[("POOL_MAX", "4")]).await;
    let other = Db::connect(it.db.config().clone()).await.unwrap();
    // Each is cancelled after another number of polls; with the sleep the answer is there or not.
    let mut cancelled = 0;
    for round in 0..20 {
        let mut begin = Box::pin(it.db.begin());
        for _ in 0..round % 5 {
            if begin.as_mut().now_or_never().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        cancelled += 1;
        drop(begin);
        sqlx::query("insert into notes (text) values ('autocommit')")
            .execute(&it.db)
            .await
            .unwrap();
        assert_eq!(
            count(&other, "select count(*) from notes").await,
            round + 1,
            "after {cancelled} cancellations"
        );
    }
    assert_clean(&it).await;
}

/// Polls a future until it is done (true) or has waited so many times, and drops it.
async fn polled<T>(work: impl Future<Output = T>, waits: u32) -> bool {
    let mut work = std::pin::pin!(work);
    let mut left = waits;
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending if left == 0 => Poll::Ready(false),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn whichever_await_of_a_begin_a_statement_or_a_commit_is_the_last_the_next_caller_finds_it_clean()
 {
    let it = database(NOTES, &[("POOL_MAX", "1")]).await;
    let other = Db::connect(it.db.config().clone()).await.unwrap();
    let insert = || sqlx::query("insert into notes (text) values ('one')");
    let mut visible = 0;
    for what in ["begin", "execute", "commit"] {
        for waits in 0.. {
            let done = match what {
                "begin" => polled(it.db.begin(), waits).await,
                "execute" => polled(insert().execute(&it.db), waits).await,
                _ => {
                    let mut tx = it.db.begin().await.unwrap();
                    insert().execute(&mut tx).await.unwrap();
                    polled(tx.commit(), waits).await
                }
            };
            // Autocommit: seen by others at once, or the connection was inside a transaction.
            sqlx::query("insert into notes (text) values ('visible')")
                .execute(&it.db)
                .await
                .unwrap();
            visible += 1;
            let seen = count(&other, "select count(*) from notes where text = 'visible'").await;
            assert_eq!(seen, visible, "after {what}, dropped after {waits} waits");
            if done {
                break;
            }
        }
    }
    assert!(visible > 3, "nothing was dropped");
    assert_clean(&it).await;
}

#[tokio::test]
async fn a_cancelled_statement_ends_on_the_server_and_frees_its_place() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let other = Db::connect(it.db.config().clone()).await.unwrap();
    let at_work = async || {
        count(&other, "select count(*) from pg_stat_activity where usename = current_user and query like 'select pg_sleep%'").await
    };
    {
        let mut slow = std::pin::pin!(sqlx::query("select pg_sleep(120)").execute(&it.db));
        let seen = eventually("it runs", SOON, async || at_work().await == 1);
        tokio::select! {
            ended = &mut slow => panic!("{ended:?}"),
            () = seen => {}
        }
    }
    // The one place in the pool is free at once.
    assert_eq!(count(&it.db, "select 1::bigint").await, 1);
    eventually("the server ended the statement", SOON, async || {
        at_work().await == 0
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_wait_for_a_connection_gives_up_its_place_in_the_queue() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let holder = it.db.begin().await.unwrap();
    for _ in 0..50 {
        assert!(it.db.begin().now_or_never().is_none());
    }
    assert_eq!(it.db.pool_report().waiting(), 0);
    holder.rollback().await.unwrap();
    it.db.begin().await.unwrap().rollback().await.unwrap();
}

/// A share of the campaign that runs longer elsewhere: futures dropped at random moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_at_random_moments_leave_every_connection_clean() {
    let it = database(NOTES, &[("POOL_MAX", "4")]).await;
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..500 {
        let db = it.db.clone();
        let kind = random.u8(0..6);
        let patience = Duration::from_micros(random.u64(0..1_500));
        let work = async move {
            match kind {
                0 => {
                    let mut tx = db.begin().await?;
                    sqlx::query("insert into notes (text) values ('tx')")
                        .execute(&mut tx)
                        .await?;
                    tx.commit().await?;
                }
                1 => {
                    sqlx::query("insert into notes (text) values ('auto')")
                        .execute(&db)
                        .await?;
                }
                2 => {
                    let mut rows =
                        sqlx::query("select n from generate_series(1, 2000) n").fetch(&db);
                    while rows.try_next().await?.is_some() {}
                }
                3 => {
                    let mut tx = db.begin().await?;
                    let mut part = tx.savepoint().await?;
                    sqlx::query("insert into notes (text) values ('part')")
                        .execute(&mut *part)
                        .await?;
                    part.release().await?;
                    tx.rollback().await?;
                }
                4 => {
                    let mut tx = db.begin().await?;
                    let failed = sqlx::query("select 1/0").execute(&mut tx).await;
                    assert!(failed.is_err());
                    tx.commit().await.expect_err("a lie");
                }
                _ => {
                    let mut tx = db.begin().await?;
                    sqlx::query("select set_config('maestro.left', 'behind', false)")
                        .execute(&mut tx)
                        .await?;
                    let mut rows =
                        sqlx::query("select n from generate_series(1, 2000) n").fetch(&mut tx);
                    rows.try_next().await?;
                    drop(rows);
                    tx.commit().await?;
                }
            }
            Ok::<_, maestro_db::Error>(())
        };
        if let Ok(ended) = tokio::time::timeout(patience, work).await {
            ended.unwrap();
        }
    }
    assert_clean(&it).await;
}

/// Every pooled connection is idle, outside a transaction, with its own settings, and what others
/// write in autocommit is visible.
async fn assert_clean(it: &Database) {
    let other = Db::connect(it.db.config().clone()).await.unwrap();
    let max = it.db.pool_report().max();
    eventually("nothing is in use", SOON, || async {
        it.db.pool_report().active() == 0
    })
    .await;
    let started: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("select clock_timestamp()")
        .fetch_one(&other)
        .await
        .unwrap();
    // All at once, so that each connection of the pool answers.
    let answers = (0..max).map(|_| {
        sqlx::query_as::<_, (bool, Option<String>, i64)>(
            "select now() >= $1, current_setting('maestro.left', true), \
             (select count(*) from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid' and locktype <> 'relation') \
             from pg_sleep(0.05)",
        )
        .bind(started)
        .fetch_one(&it.db)
    });
    for answer in futures_util::future::join_all(answers).await {
        let (fresh, left, locks) = answer.unwrap();
        assert!(fresh, "a connection was inside an older transaction");
        assert_eq!(left, None);
        assert_eq!(locks, 0);
    }
    for _ in 0..max * 2 {
        sqlx::query("insert into notes (text) values ('clean')")
            .execute(&it.db)
            .await
            .unwrap();
    }
    // Statements that were cancelled may still be storing their own.
    assert_eq!(
        count(&other, "select count(*) from notes where text = 'clean'").await,
        i64::try_from(max * 2).unwrap()
    );
    // A connection that was closed under way ends within a second.
    eventually("no session is left in a transaction", SOON, || async {
        count(
            &other,
            "select count(*) from pg_stat_activity where usename = current_user and state like 'idle in transaction%'",
        )
        .await
            == 0
    })
    .await;
}
