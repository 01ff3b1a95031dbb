//! Everything that is declared is measured, and nothing else is.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use maestro_db::{CATALOGUE, Db};
use maestro_metrics::{Registry, coverage};
use url::Url;

use crate::replica::{Standby, config, reads_go_to};
use crate::support::on_this_machine;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_declared_is_emitted_and_what_is_emitted_is_declared() {
    let (stack, sandbox) = on_this_machine().await;
    let admin: Url = stack
        .postgres()
        .unwrap()
        .admin_url()
        .expose()
        .parse()
        .unwrap();
    let standby = Standby::of(&stack).await;
    let settings = [
        ("POOL_MAX", "1"),
        ("ACQUIRE_TIMEOUT", "2s"),
        ("SLOW_QUERY", "10ms"),
    ];
    let config = config(
        &sandbox,
        admin.port().unwrap(),
        Some(standby.port),
        &settings,
    );
    let registry = Registry::detached();
    let db = Db::builder(config)
        .registry(&registry)
        .wait_for_server(Duration::from_mins(1))
        .connect()
        .await
        .unwrap();

    let tx = db.begin().await.unwrap();
    let nobody_waits_longer = sqlx::query("select 1").execute(&db).await;
    nobody_waits_longer.unwrap_err();
    tx.commit().await.unwrap();

    sqlx::query("select pg_sleep(0.02)")
        .execute(&db)
        .await
        .unwrap();

    let runs = AtomicU32::new(0);
    let collides_once = || async {
        if runs.fetch_add(1, Ordering::Relaxed) == 0 {
            let collision = "do $$ begin raise exception using errcode = '40001'; end $$";
            sqlx::query(collision).execute(&db).await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    db.retry(collides_once).await.unwrap();

    let mut tx = db.begin().await.unwrap();
    sqlx::query("select pg_terminate_backend(pg_backend_pid())")
        .execute(&mut tx)
        .await
        .unwrap_err();
    drop(tx);

    reads_go_to(&db, standby.port, "reads go to the standby").await;

    let text = registry.text();
    assert_eq!(coverage::undeclared(&[&CATALOGUE], &text), [""; 0]);
    assert_eq!(coverage::unmoved(&[&CATALOGUE], &text), [""; 0], "{text}");
}
