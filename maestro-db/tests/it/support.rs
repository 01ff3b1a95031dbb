//! What every test needs: a database of its own with a table or two.

use std::time::Duration;

use maestro_config::Environment;
use maestro_db::{Db, DbConfig};
use maestro_testkit::{DevServicesConfig, Sandbox, Service, Source, Stack};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection as _, SqlSafeStr as _};

/// A service's database on the shared server, dropped with the value.
pub(crate) struct Database {
    pub(crate) sandbox: Sandbox,
    pub(crate) db: Db,
}

/// A migrated database with the given tables, and settings beyond the defaults.
pub(crate) async fn database(schema: &'static str, settings: &[(&str, &str)]) -> Database {
    let sandbox = sandbox().await;
    // Whatever limits the test sets itself, servers of a busy machine are waited for.
    let db = Db::builder(config(&sandbox, settings))
        .wait_for_server(Duration::from_secs(30))
        .connect()
        .await
        .unwrap();
    if !schema.is_empty() {
        db.migrate(&migrator(&[schema])).await.unwrap();
    }
    Database { sandbox, db }
}

pub(crate) async fn sandbox() -> Sandbox {
    let stack = Stack::builder()
        .only([Service::Postgres])
        .start()
        .await
        .unwrap();
    stack.sandbox("orders").await.unwrap()
}

/// A stack of this test alone, to be killed and paused.
pub(crate) async fn dedicated() -> (Stack, Sandbox) {
    let stack = Stack::builder()
        .only([Service::Postgres])
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    (stack, sandbox)
}

/// The same as a program of this machine, wherever other tests have theirs: a standby is made beside
/// it with the tools of the same installation.
pub(crate) async fn on_this_machine() -> (Stack, Sandbox) {
    let mut config = DevServicesConfig::default();
    config.source = Source::Local;
    let stack = Stack::builder()
        .only([Service::Postgres])
        .config(config)
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    (stack, sandbox)
}

/// The sandbox's settings and the test's own, over a busy machine's limits; see [`read`].
pub(crate) fn config(sandbox: &Sandbox, own: &[(&str, &str)]) -> DbConfig {
    read(sandbox.environment(), own)
}

/// The test's own settings over what is given. Without them a busy machine has time: only a test of
/// what is slow sets a limit that it means to reach.
pub(crate) fn read(given: Vec<(String, String)>, own: &[(&str, &str)]) -> DbConfig {
    let patient = [("ACQUIRE_TIMEOUT", "30s"), ("CONNECT_TIMEOUT", "30s")];
    let named =
        |(name, value): &(&str, &str)| (format!("MAESTRO_POSTGRES_{name}"), (*value).to_owned());
    let patient = patient.iter().map(named);
    let pairs = patient.chain(given).chain(own.iter().map(named));
    Environment::from_pairs(pairs).read().unwrap()
}

/// Migrations from texts, with versions 1, 2, …
pub(crate) fn migrator(texts: &[&'static str]) -> Migrator {
    Migrator::with_migrations(
        texts
            .iter()
            .zip(1..)
            .map(|(text, version)| file(version, text, false))
            .collect(),
    )
}

pub(crate) fn file(version: i64, sql: &'static str, no_tx: bool) -> Migration {
    let sql = sql.into_sql_str();
    Migration::new(
        version,
        format!("step {version}").into(),
        MigrationType::Simple,
        sql,
        no_tx,
    )
}

/// Runs a statement as the server's administrator.
pub(crate) async fn administer(sql: String) {
    let stack = Stack::builder()
        .only([Service::Postgres])
        .start()
        .await
        .unwrap();
    let url = stack.postgres().unwrap().admin_url();
    let mut admin = sqlx::PgConnection::connect(url.expose()).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut admin)
        .await
        .unwrap();
    admin.close().await.unwrap();
}

/// A port that nobody has, of those that the kernel gives to no client: it may be let go and taken
/// again. Another test may be quicker, so whoever starts a server there looks whether it lives.
pub(crate) fn spare_port() -> u16 {
    loop {
        // Beside the ports of the testkit's own servers.
        let port = fastrand::u16(25_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits for a condition, with a deadline.
pub(crate) async fn eventually(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Around the condition too: it may be what never answers.
    let held = tokio::time::timeout(limit, wait).await;
    assert!(held.is_ok(), "not within {limit:?}: {what}");
}

pub(crate) async fn count(db: &Db, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}
