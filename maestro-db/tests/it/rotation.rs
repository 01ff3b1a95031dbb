//! Passwords in files that change while the service is at work.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use maestro_db::{Db, DbConfig, Error, ErrorKind};
use maestro_testkit::Sandbox;

use crate::support::{administer, eventually, read, sandbox};

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_mins(1);

/// The sandbox's settings, with the password in a file.
fn config(sandbox: &Sandbox, file: &Path, settings: &[(&str, &str)]) -> DbConfig {
    let file = file.display().to_string();
    let own = [settings, &[("PASSWORD_FILE", file.as_str())]].concat();
    read(sandbox.environment(), &own)
}

async fn on_the_server(db: &Db, password: &str) {
    let role = db.config().role();
    administer(format!("alter role \"{role}\" password '{password}'")).await;
}

/// As an agent does it: beside the file, then over it.
fn on_disk(file: &Path, password: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, password).unwrap();
    std::fs::rename(next, file).unwrap();
}

async fn before(directory: &tempfile::TempDir, settings: &[(&str, &str)]) -> (Sandbox, Db) {
    let sandbox = sandbox().await;
    let file = directory.path().join("password");
    on_disk(&file, "first");
    let db = Db::builder(config(&sandbox, &file, settings))
        .connect_lazy()
        .unwrap();
    on_the_server(&db, "first").await;
    (sandbox, db)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_rotated_under_load_fails_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let (_sandbox, db) = before(&directory, &[("POOL_MAX", "6"), ("ACQUIRE_TIMEOUT", "60s")]).await;
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (db, over, done) = (db.clone(), Arc::clone(&over), Arc::clone(&done));
        load.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let mut tx = db.begin().await?;
                // Closes the connection afterwards, so that logins happen all the time.
                tx.connection()?;
                sqlx::query("select 1").execute(&mut tx).await?;
                tx.commit().await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        });
    }
    let more = async |what: &str| {
        let before = done.load(Ordering::Relaxed);
        eventually(what, SOON, async || {
            done.load(Ordering::Relaxed) > before + 20
        })
        .await;
    };
    let file = directory.path().join("password");
    more("work is done with the first password").await;
    // The server first: what is on disk is refused until the agent has written it.
    on_the_server(&db, "second").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    on_disk(&file, "second");
    more("work is done with the second password").await;
    // The disk first: what is on it is refused until the server knows it.
    on_disk(&file, "third");
    more("work goes on with the second password").await;
    on_the_server(&db, "third").await;
    more("work is done with the third password").await;
    over.store(true, Ordering::Relaxed);
    while let Some(result) = load.join_next().await {
        result.unwrap().unwrap();
    }
}

#[tokio::test]
async fn connections_opened_with_the_old_password_are_replaced_though_nobody_uses_them() {
    let directory = tempfile::tempdir().unwrap();
    let (sandbox, db) = before(&directory, &[("POOL_MIN", "2"), ("POOL_MAX", "3")]).await;
    // Until then the pool may be refused: it knew the password before the server did.
    let mut old: Vec<i32> = Vec::new();
    eventually("two are open", SOON, async || {
        let sessions = "select pid from pg_stat_activity where usename = current_user";
        old = sqlx::query_scalar(sessions).fetch_all(&db).await.unwrap();
        old.len() >= 2
    })
    .await;
    on_the_server(&db, "second").await;
    let file = directory.path().join("password");
    on_disk(&file, "second");
    let other = Db::connect(config(&sandbox, &file, &[])).await.unwrap();
    // One by one over half a minute.
    eventually("they are replaced", Duration::from_mins(2), async || {
        let left: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where pid = any($1) and usename = current_user",
        )
        .bind(&old)
        .fetch_one(&other)
        .await
        .unwrap();
        left == 0
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_at_the_start_is_told_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    on_disk(&file, "nobody-knows-it");
    let sandbox = sandbox().await;
    let started = std::time::Instant::now();
    let error = Db::connect(config(&sandbox, &file, &[("ACQUIRE_TIMEOUT", "120s")]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.to_string().contains("MAESTRO_POSTGRES_PASSWORD"),
        "{error}"
    );
    assert!(!error.to_string().contains("nobody-knows-it"), "{error}");
    assert!(started.elapsed() < Duration::from_mins(1));
}
