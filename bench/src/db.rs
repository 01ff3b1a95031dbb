//! `maestro-db` beside sqlx's own pool and deadpool-postgres: `select $1`, eight connections.

use std::time::Duration;

use maestro_db::{Db, DbConfig};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::harness::{Comparison, Result, Row, Target, Unit, per_second, versioned};
use crate::sandbox::Place;

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let place = Place::new().await?;
    let pool_max = CONNECTIONS.to_string();
    let environment = place.environment(&[("MAESTRO_POSTGRES_POOL_MAX", &pool_max)]);
    let ours = Db::connect(environment.read::<DbConfig>()?).await?;
    let url = place.variable("MAESTRO_POSTGRES_URL")?;
    let plain = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect(url)
        .await?;
    let without_ping = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        .connect(url)
        .await?;
    let deadpool = deadpool(url)?;

    let mut rows = Vec::new();
    for (tasks, each, of_plain, of_without_ping, of_deadpool) in [
        (1, 4_000, Target::None, Target::Ratio(1.0), Target::None),
        (
            64,
            400,
            Target::Ratio(2.2),
            Target::None,
            Target::Ratio(1.0),
        ),
    ] {
        let name = format!(
            "select $1, {tasks} task{}",
            if tasks == 1 { "" } else { "s" }
        );
        let on_ours = || per_second(tasks, each, || through_ours(ours.clone(), each));
        let on_plain = || per_second(tasks, each, || through_sqlx(plain.clone(), each));
        let on_bare = || per_second(tasks, each, || through_sqlx(without_ping.clone(), each));
        let on_deadpool = || per_second(tasks, each, || through_deadpool(deadpool.clone(), each));
        rows.extend(
            Comparison::new(name, Unit::PerSecond, rounds, on_ours)
                .peer(versioned("sqlx", "pool"), "", of_plain, on_plain)
                .peer(
                    versioned("sqlx", "pool, no ping"),
                    "a dead connection is found by the caller",
                    of_without_ping,
                    on_bare,
                )
                .peer(
                    versioned("deadpool-postgres", "fast"),
                    "tokio-postgres; no span, no metric, no deadline",
                    of_deadpool,
                    on_deadpool,
                )
                .run()
                .await?,
        );
    }
    // Open connections belong to us: whoever is late ends with the process.
    let _ = ours.close(Duration::from_secs(5)).await;
    Ok(rows)
}

fn deadpool(url: &str) -> Result<deadpool_postgres::Pool> {
    let manager = deadpool_postgres::Manager::from_config(
        url.parse()?,
        tokio_postgres::NoTls,
        deadpool_postgres::ManagerConfig {
            recycling_method: deadpool_postgres::RecyclingMethod::Fast,
        },
    );
    let connections = usize::try_from(CONNECTIONS)?;
    Ok(deadpool_postgres::Pool::builder(manager)
        .max_size(connections)
        .build()?)
}

async fn through_ours(db: Db, each: u32) -> Result<()> {
    for number in 0..i64::from(each) {
        let answer: i64 = sqlx::query_scalar(QUERY)
            .bind(number)
            .fetch_one(&db)
            .await?;
        check(answer, number)?;
    }
    Ok(())
}

async fn through_sqlx(pool: PgPool, each: u32) -> Result<()> {
    for number in 0..i64::from(each) {
        let answer: i64 = sqlx::query_scalar(QUERY)
            .bind(number)
            .fetch_one(&pool)
            .await?;
        check(answer, number)?;
    }
    Ok(())
}

async fn through_deadpool(pool: deadpool_postgres::Pool, each: u32) -> Result<()> {
    for number in 0..i64::from(each) {
        let client = pool.get().await?;
        let statement = client.prepare_cached(QUERY).await?;
        check(
            client.query_one(&statement, &[&number]).await?.get(0),
            number,
        )?;
    }
    Ok(())
}

fn check(answer: i64, number: i64) -> Result<()> {
    if answer == number {
        Ok(())
    } else {
        Err("the server answered something else".into())
    }
}

const QUERY: &str = "select $1::int8";
const CONNECTIONS: u32 = 8;
