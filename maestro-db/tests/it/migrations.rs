//! Migrations on a real server.

use std::time::Duration;

use maestro_db::{Db, Drift, ErrorKind, MigrateOptions};
use sqlx::migrate::Migrator;

use crate::support::{config, count, database, eventually, file, migrator, sandbox};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_replicas_that_start_together_apply_each_migration_once() {
    let sandbox = sandbox().await;
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let config = config(&sandbox, &[("POOL_MAX", "2")]);
        replicas.spawn(async move {
            let db = Db::connect(config).await.unwrap();
            let report = db
                .migrate(&migrator(&[
                    "create table steps (n int)",
                    "insert into steps values (1); select pg_sleep(0.3)",
                    "insert into steps values (2)",
                ]))
                .await
                .unwrap();
            // Whoever comes later finds everything there.
            assert_eq!(count(&db, "select count(*) from steps").await, 2);
            report.applied.len()
        });
    }
    let applied: Vec<usize> = replicas.join_all().await;
    assert_eq!(applied.iter().sum::<usize>(), 3, "{applied:?}");
}

#[tokio::test]
async fn objects_belong_to_the_owner_and_the_service_may_use_but_not_change_them() {
    let it = database("create table notes (id int)", &[]).await;
    let owner: String =
        sqlx::query_scalar("select tableowner::text from pg_tables where tablename = 'notes'")
            .fetch_one(&it.db)
            .await
            .unwrap();
    assert_eq!(owner, it.sandbox.resources().owner_role());
    sqlx::query("insert into notes values (1)")
        .execute(&it.db)
        .await
        .unwrap();
    let refused = sqlx::query("drop table notes")
        .execute(&it.db)
        .await
        .unwrap_err();
    assert_eq!(
        maestro_db::Error::from(refused).sqlstate().as_deref(),
        Some("42501")
    );
}

#[tokio::test]
async fn a_changed_file_and_a_missing_one_are_reported_together() {
    let it = database("", &[]).await;
    it.db
        .migrate(&migrator(&["select 1", "select 2", "select 3"]))
        .await
        .unwrap();
    let other = Migrator::with_migrations(vec![
        file(1, "select 10", false),
        file(3, "select 3", false),
    ]);
    let error = it.db.migrate(&other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Migration);
    let source = std::error::Error::source(&error).unwrap();
    let drift = source.downcast_ref::<Drift>().unwrap();
    assert_eq!(
        (drift.changed.as_slice(), drift.missing.as_slice()),
        ([1].as_slice(), [2].as_slice())
    );
}

#[tokio::test]
async fn an_older_release_starts_on_a_database_that_a_newer_one_migrated() {
    let it = database("", &[]).await;
    it.db
        .migrate(&migrator(&["select 1", "select 2"]))
        .await
        .unwrap();
    let report = it.db.migrate(&migrator(&["select 1"])).await.unwrap();
    assert_eq!(report.ahead, [2]);
    assert!(report.applied.is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_lists_what_is_pending() {
    let it = database("", &[]).await;
    let files = migrator(&["create table notes (id int)"]);
    let report = it
        .db
        .migrate_with(&files, MigrateOptions::new().dry_run())
        .await
        .unwrap();
    assert_eq!(report.pending, [(1, "step 1".to_owned())]);
    assert_eq!(
        count(
            &it.db,
            "select count(*) from pg_class where relname in ('notes', '_sqlx_migrations')"
        )
        .await,
        0
    );
}

#[tokio::test]
async fn a_failing_migration_is_undone_and_named_and_the_next_start_goes_on() {
    let it = database("", &[]).await;
    let error = it
        .db
        .migrate(&migrator(&[
            "create table a (id int)",
            "create table b (id int); select 1/0",
        ]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Migration);
    assert!(error.to_string().contains("migration 2 step 2"), "{error}");
    assert!(error.to_string().contains("division by zero"), "{error}");
    assert_eq!(
        count(
            &it.db,
            "select count(*) from pg_class where relname in ('a', 'b')"
        )
        .await,
        1
    );
    let report = it
        .db
        .migrate(&migrator(&[
            "create table a (id int)",
            "create table b (id int)",
        ]))
        .await
        .unwrap();
    assert_eq!(report.applied.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_created_concurrently_while_replicas_wait_and_the_service_works() {
    let it = database(
        "create table big (id int); insert into big select generate_series(1, 50000)",
        &[],
    )
    .await;
    let files = || {
        Migrator::with_migrations(vec![
            file(
                1,
                "create table big (id int); insert into big select generate_series(1, 50000)",
                false,
            ),
            file(
                2,
                "drop index if exists big_id; create index concurrently big_id on big (id)",
                true,
            ),
        ])
    };
    let mut replicas = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let db = it.db.clone();
        replicas.spawn(async move { db.migrate(&files()).await.unwrap().applied.len() });
    }
    let mut applied = 0;
    while !replicas.is_empty() {
        tokio::select! {
            Some(replica) = replicas.join_next() => applied += replica.unwrap(),
            written = sqlx::query("insert into big values (0)").execute(&it.db) => {
                written.unwrap();
            }
        }
    }
    assert_eq!(applied, 1);
    let valid: bool =
        sqlx::query_scalar("select indisvalid from pg_index where indexrelid = 'big_id'::regclass")
            .fetch_one(&it.db)
            .await
            .unwrap();
    assert!(valid);
}

const UNIQUE: &str = "create unique index concurrently big_id on big (id)";
const MENDED: &str =
    "drop index concurrently if exists big_id; create index concurrently big_id on big (id)";

#[tokio::test]
async fn a_migration_interrupted_outside_a_transaction_is_reported_and_can_be_resumed() {
    let it = database(
        "create table big (id int); insert into big values (1), (1)",
        &[],
    )
    .await;
    let files = |second: &'static str| {
        Migrator::with_migrations(vec![
            file(
                1,
                "create table big (id int); insert into big values (1), (1)",
                false,
            ),
            file(2, second, true),
        ])
    };
    // Fails on the duplicate and leaves an invalid index.
    let error = it.db.migrate(&files(UNIQUE)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Migration, "{error}");
    let error = it.db.migrate(&files(UNIQUE)).await.unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    assert!(error.to_string().contains("big_id"), "{error}");

    let options = MigrateOptions::new().resume_interrupted();
    let report = it.db.migrate_with(&files(MENDED), options).await.unwrap();
    assert_eq!(report.applied.len(), 1);
    assert!(
        it.db
            .migrate(&files(MENDED))
            .await
            .unwrap()
            .applied
            .is_empty()
    );
}

#[tokio::test]
async fn a_migration_killed_half_way_outside_a_transaction_is_reported_and_resumed() {
    let it = database("", &[]).await;
    let file = |sql| Migrator::with_migrations(vec![file(1, sql, true)]);
    let slow =
        file("create table half (id int); select pg_sleep(600); create table whole (id int)");
    // Gone as a process that is killed is: its sockets are closed.
    tokio::select! {
        ended = it.db.migrate(&slow) => panic!("{ended:?}"),
        () = eventually("half of it is done", Duration::from_mins(1), async || {
            count(&it.db, "select count(*) from pg_class where relname = 'half'").await == 1
        }) => {}
    }
    // Once the server has noticed, nobody holds the lock.
    let patient = MigrateOptions::new().wait(Duration::from_mins(1));
    let error = it.db.migrate_with(&slow, patient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Migration, "{error}");
    assert!(error.to_string().contains("interrupted"), "{error}");
    let mended = file("create table if not exists half (id int); create table whole (id int)");
    let report = it
        .db
        .migrate_with(&mended, patient.resume_interrupted())
        .await
        .unwrap();
    assert_eq!(report.applied.len(), 1);
    assert_eq!(count(&it.db, "select count(*) from whole").await, 0);
}

#[tokio::test]
async fn a_cancelled_migration_leaves_nothing_and_no_lock() {
    let it = database("create table notes (id int)", &[]).await;
    let slow = migrator(&[
        "create table notes (id int)",
        "insert into notes values (1); select pg_sleep(20)",
    ]);
    let cancelled = tokio::time::timeout(Duration::from_millis(500), it.db.migrate(&slow)).await;
    assert!(cancelled.is_err());
    let quick = migrator(&[
        "create table notes (id int)",
        "insert into notes values (2)",
    ]);
    let options = MigrateOptions::new().wait(Duration::from_mins(1));
    it.db.migrate_with(&quick, options).await.unwrap();
    assert_eq!(count(&it.db, "select sum(id) from notes").await, 2);
}

#[tokio::test]
async fn a_migration_that_cannot_lock_its_table_lets_others_pass_and_is_tried_again() {
    let it = database("create table notes (id int)", &[]).await;
    let mut holder = it.db.begin().await.unwrap();
    sqlx::query("insert into notes values (1)")
        .execute(&mut holder)
        .await
        .unwrap();
    let db = it.db.clone();
    let migrating = tokio::spawn(async move {
        db.migrate(&migrator(&[
            "create table notes (id int)",
            "alter table notes add column text text",
        ]))
        .await
    });
    // Longer than the lock timeout of a migration.
    tokio::time::sleep(Duration::from_secs(6)).await;
    holder.commit().await.unwrap();
    let report = migrating.await.unwrap().unwrap();
    assert_eq!(report.applied.len(), 1);
}
