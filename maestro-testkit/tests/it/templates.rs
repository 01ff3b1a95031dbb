use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use maestro_testkit::{Blank, Service, Stack, Template};

use crate::clients::{postgres, variable};

const MIGRATION: &str = "CREATE TABLE orders (id int PRIMARY KEY, note text NOT NULL);
    INSERT INTO orders VALUES (1, 'seeded');
    CREATE SCHEMA audit;
    CREATE TABLE audit.log (id int);
    CREATE SEQUENCE numbers;
    CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'";

async fn migrate(blank: Blank) -> Result<(), tokio_postgres::Error> {
    let environment = blank.environment();
    let url = environment
        .iter()
        .find(|(name, _)| name == "MAESTRO_POSTGRES_MIGRATION_URL");
    let client = postgres(&url.unwrap().1).await?;
    client.batch_execute(MIGRATION).await
}

/// A fingerprint that no earlier run on these servers has used.
fn fresh() -> String {
    let now = std::time::SystemTime::now();
    format!("{MIGRATION}{now:?}{:?}", std::thread::current().id())
}

async fn template(stack: &Stack, fingerprint: &str) -> Template {
    stack
        .template("orders", fingerprint, migrate)
        .await
        .unwrap()
}

async fn only_postgres() -> Stack {
    Stack::builder()
        .only([Service::Postgres])
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn twenty_tests_that_want_a_template_at_once_migrate_it_once() {
    let stack = only_postgres().await;
    let fingerprint = fresh();
    let migrations = AtomicUsize::new(0);
    let sandboxes = try_join_all((0..20).map(|_| async {
        let template = stack
            .template("orders", &fingerprint, |blank| {
                migrations.fetch_add(1, Ordering::Relaxed);
                migrate(blank)
            })
            .await?;
        template.sandbox().await
    }))
    .await
    .unwrap();
    assert_eq!(migrations.into_inner(), 1);
    for (index, sandbox) in (10..).zip(&sandboxes) {
        let client = postgres(&variable(sandbox, "MAESTRO_POSTGRES_URL"))
            .await
            .unwrap();
        client
            .execute("INSERT INTO orders VALUES ($1, 'own')", &[&index])
            .await
            .unwrap();
        let rows = client
            .query("SELECT id FROM orders ORDER BY id", &[])
            .await
            .unwrap();
        let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids, [1, index]);
    }
}

#[tokio::test]
async fn a_clone_belongs_to_its_sandbox_as_if_it_had_been_migrated_in_place() {
    let stack = only_postgres().await;
    let template = template(&stack, &fresh()).await;
    let sandbox = template.sandbox().await.unwrap();
    let other = template.sandbox().await.unwrap();
    let service = postgres(&variable(&sandbox, "MAESTRO_POSTGRES_URL"))
        .await
        .unwrap();
    service
        .batch_execute(
            "UPDATE orders SET note = 'mine'; INSERT INTO audit.log VALUES (1);
             SELECT nextval('numbers'), twice(2)",
        )
        .await
        .unwrap();
    service
        .batch_execute("ALTER TABLE orders ADD COLUMN x int")
        .await
        .unwrap_err();
    let migrator = postgres(&variable(&sandbox, "MAESTRO_POSTGRES_MIGRATION_URL"))
        .await
        .unwrap();
    migrator
        .batch_execute("ALTER TABLE orders ADD COLUMN x int; CREATE TABLE later (id int)")
        .await
        .unwrap();
    service
        .batch_execute("INSERT INTO later VALUES (1)")
        .await
        .unwrap();
    let url = variable(&sandbox, "MAESTRO_POSTGRES_URL");
    let foreign = crate::clients::with_path(&url, other.resources().database());
    let refused = postgres(&foreign)
        .await
        .err()
        .and_then(|e| e.code().cloned());
    assert_eq!(
        refused,
        Some(tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
    );
}

#[tokio::test]
async fn a_migration_that_fails_is_run_again_from_an_empty_database() {
    let stack = only_postgres().await;
    let fingerprint = fresh();
    let failed = stack
        .template("orders", &fingerprint, |blank| async move {
            migrate(blank).await?;
            Err::<(), Box<dyn std::error::Error + Send + Sync>>("the last step is wrong".into())
        })
        .await
        .unwrap_err();
    assert!(
        failed.to_string().contains("the last step is wrong"),
        "{failed}"
    );
    template(&stack, &fingerprint)
        .await
        .sandbox()
        .await
        .unwrap();
}
