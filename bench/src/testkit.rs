//! From warm servers to a migrated database that answers: a sandbox of `maestro-testkit`, cloned from a
//! template, beside the way of `#[sqlx::test]`.

use std::path::Path;
use std::time::Instant;

use maestro_config::Secret;
use maestro_testkit::Stack;
use sqlx::migrate::Migrator;
use sqlx::testing::{TestArgs, TestSupport};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Postgres};

use crate::harness::{Comparison, Result, Row, Target, Unit, versioned};

/// The administrator's URL of the PostgreSQL to compare on; `sqlx::test` takes it from its
/// environment, so this bench runs in a process that was started with it.
pub async fn url() -> Result<String> {
    let environment = Stack::start().await?.test_environment();
    environment
        .into_iter()
        .find(|(name, _)| name == "MAESTRO_TEST_POSTGRES_URL")
        .map(|(_, url): (_, Secret<String>)| url.expose().clone())
        .ok_or_else(|| "the stack has no PostgreSQL".into())
}

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let stack = Stack::start().await?;
    let migrator = Migrator::new(Path::new(MIGRATIONS)).await?;
    // `sqlx::test` wants it for ever; so does this process.
    let migrator: &'static Migrator = Box::leak(Box::new(migrator));
    let fingerprint = maestro_testkit::fingerprint([MIGRATIONS])?;
    // Once for all tests, as a test suite does; the clones are what each test waits for.
    let template = stack
        .template("orders", &fingerprint, |blank| async move {
            let environment = blank.environment();
            let mut owner =
                PgConnection::connect(url_in(&environment, "MAESTRO_POSTGRES_MIGRATION_URL")?)
                    .await?;
            migrator.run(&mut owner).await?;
            Result::Ok(owner.close().await?)
        })
        .await?;
    Comparison::new(
        "sandbox, migrated and ready",
        Unit::Milliseconds,
        rounds,
        || async {
            let mut times = Vec::new();
            for _ in 0..EACH {
                let started = Instant::now();
                let sandbox = template.sandbox().await?;
                let environment = sandbox.direct_environment();
                let mut service =
                    PgConnection::connect(url_in(&environment, "MAESTRO_POSTGRES_URL")?).await?;
                sqlx::query(FIRST_QUERY).execute(&mut service).await?;
                times.push(started.elapsed());
                service.close().await?;
                sandbox.close().await?;
            }
            Ok(middle(times))
        },
    )
    .peer(
        versioned("sqlx", "test"),
        "a database of the administrator; no role, Redis or RabbitMQ",
        Target::AtMost(150.0),
        || async {
            let mut times = Vec::new();
            for _ in 0..EACH {
                let arguments = TestArgs {
                    test_path: "maestro_bench::testkit",
                    migrator: Some(migrator),
                    fixtures: &[],
                };
                let started = Instant::now();
                let context = Postgres::test_context(&arguments).await?;
                let mut owner = context.connect_opts.connect().await?;
                migrator.run_direct(None, &mut owner, false).await?;
                owner.close().await?;
                let pool: PgPool = context.pool_opts.connect_with(context.connect_opts).await?;
                let mut connection = pool.acquire().await?;
                sqlx::query(FIRST_QUERY).execute(&mut *connection).await?;
                times.push(started.elapsed());
                drop(connection);
                pool.close().await;
                Postgres::cleanup_test(&context.db_name).await?;
            }
            Ok(middle(times))
        },
    )
    .run()
    .await
}

fn url_in<'a>(environment: &'a [(String, String)], wanted: &str) -> Result<&'a str> {
    environment
        .iter()
        .find(|(name, _)| name == wanted)
        .map(|(_, url)| url.as_str())
        .ok_or_else(|| "the sandbox has no PostgreSQL".into())
}

fn middle(mut times: Vec<std::time::Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
const FIRST_QUERY: &str = "select count(*) from orders";

/// Sandboxes a round; the round's figure is their median.
const EACH: usize = 5;
