//! `maestro-db` beside sqlx's own pool, deadpool-postgres, bb8 and tokio-postgres: `select $1`, eight
//! connections; and what its own tenants, spans and bulk inserts cost beside doing without.

use std::sync::Arc;
use std::time::Duration;

use maestro_db::{BulkInsert, Db, DbConfig, TenantDb, TenantId, TenantModel, Transaction};
use sqlx::PgPool;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgPoolOptions;
use tracing::instrument::WithSubscriber as _;

use crate::harness::{Comparison, Result, Row, Target, Unit, per_second, versioned};
use crate::sandbox::Place;

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let place = Place::new().await?;
    let pool_max = CONNECTIONS.to_string();
    let environment = place.environment(&[("MAESTRO_POSTGRES_POOL_MAX", &pool_max)]);
    let ours = Db::builder(environment.read::<DbConfig>()?)
        .tenants(TenantModel::Rows)
        .connect()
        .await?;
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
    let bb8 = bb8_pool(url, true).await?;
    let bb8_bare = bb8_pool(url, false).await?;
    let pipelined = Arc::new(prepared(&url.parse()?).await?);

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
        let on_bb8 = || per_second(tasks, each, || through_bb8(bb8.clone(), each));
        let on_bb8_bare = || per_second(tasks, each, || through_bb8(bb8_bare.clone(), each));
        let on_one = || per_second(tasks, each, || through_one(Arc::clone(&pipelined), each));
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
                .peer(versioned("bb8", ""), "", Target::None, on_bb8)
                .peer(
                    versioned("bb8", "no ping"),
                    "tokio-postgres; no span, no metric, no deadline",
                    Target::None,
                    on_bb8_bare,
                )
                .peer(
                    versioned("tokio-postgres", "one connection"),
                    "pipelined; no pool, no transactions side by side",
                    Target::None,
                    on_one,
                )
                .run()
                .await?,
        );
    }
    rows.extend(of_our_own(&ours, rounds).await?);
    // Open connections belong to us: whoever is late ends with the process.
    let _ = ours.close(Duration::from_secs(5)).await;
    Ok(rows)
}

/// What is ours alone, beside the same without it.
async fn of_our_own(db: &Db, rounds: usize) -> Result<Vec<Row>> {
    db.migrate(&Migrator::with_migrations(vec![Migration::new(
        1,
        "readings".into(),
        MigrationType::Simple,
        sqlx::SqlSafeStr::into_sql_str("create table readings (id bigint, value float8)"),
        false,
    )]))
    .await?;
    let acme = TenantId::parse("acme")?;
    db.tenants()?.create(&acme, "Acme").await?;
    let acme = db.tenant(acme);

    let tasks = 8;
    let each = 400;
    let scoped = || per_second(tasks, each, || transactions(Scoped(acme.clone()), each));
    let plain = || per_second(tasks, each, || transactions(Plain(db.clone()), each));
    let mut rows = Comparison::new("transaction of a tenant", Unit::PerSecond, rounds, scoped)
        .peer("without a tenant", "", Target::Ratio(1.0 / 1.15), plain)
        .run()
        .await?;

    let each = 1_000;
    let spans = tracing::Dispatch::new(tracing_subscriber::registry());
    let with_spans = || {
        per_second(tasks, each, || {
            through_ours(db.clone(), each).with_subscriber(spans.clone())
        })
    };
    let without = || per_second(tasks, each, || through_ours(db.clone(), each));
    rows.extend(
        Comparison::new("select $1 with spans", Unit::PerSecond, rounds, with_spans)
            .peer(
                "without a subscriber",
                "metrics are always on",
                Target::Ratio(1.0 / 1.05),
                without,
            )
            .run()
            .await?,
    );

    let each = 20;
    let helper = || per_second(1, each, || bulk(db.clone(), each, true));
    let by_hand = || per_second(1, each, || bulk(db.clone(), each, false));
    rows.extend(
        Comparison::new("BulkInsert, 5,000 rows", Unit::PerSecond, rounds, helper)
            .peer("UNNEST by hand", "", Target::Ratio(0.9), by_hand)
            .run()
            .await?,
    );
    Ok(rows)
}

/// Where a transaction is begun.
trait Begins: Send + Sync + 'static {
    fn begin(
        &self,
    ) -> impl Future<Output = std::result::Result<Transaction, maestro_db::Error>> + Send;
}

struct Plain(Db);
struct Scoped(TenantDb);

impl Begins for Plain {
    async fn begin(&self) -> std::result::Result<Transaction, maestro_db::Error> {
        self.0.begin().await
    }
}

impl Begins for Scoped {
    async fn begin(&self) -> std::result::Result<Transaction, maestro_db::Error> {
        self.0.begin().await
    }
}

async fn transactions(db: impl Begins, each: u32) -> Result<()> {
    for number in 0..i64::from(each) {
        let mut tx = db.begin().await?;
        let answer: i64 = sqlx::query_scalar(QUERY)
            .bind(number)
            .fetch_one(&mut tx)
            .await?;
        check(answer, number)?;
        tx.commit().await?;
    }
    Ok(())
}

async fn bulk(db: Db, each: u32, helper: bool) -> Result<()> {
    for _ in 0..each {
        let ids: Vec<i64> = (0..5_000).collect();
        let values: Vec<f64> = (0..5_000).map(f64::from).collect();
        if helper {
            BulkInsert::into("readings")
                .column("id", ids)
                .column("value", values)
                .execute(&db)
                .await?;
        } else {
            sqlx::query(
                "insert into readings (id, value) select * from unnest($1::int8[], $2::float8[])",
            )
            .bind(ids)
            .bind(values)
            .execute(&db)
            .await?;
        }
    }
    Ok(())
}

/// As bb8-postgres does it, whose features would make the benches build tokio anew; and it keeps its
/// statement, which that does not.
struct Bb8Manager(tokio_postgres::Config);

impl bb8::ManageConnection for Bb8Manager {
    type Connection = (tokio_postgres::Client, tokio_postgres::Statement);
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> std::result::Result<Self::Connection, Self::Error> {
        prepared(&self.0).await
    }

    async fn is_valid(
        &self,
        (client, _): &mut Self::Connection,
    ) -> std::result::Result<(), Self::Error> {
        client.simple_query("").await.map(|_| ())
    }

    fn has_broken(&self, (client, _): &mut Self::Connection) -> bool {
        client.is_closed()
    }
}

async fn bb8_pool(url: &str, ping: bool) -> Result<bb8::Pool<Bb8Manager>> {
    Ok(bb8::Pool::builder()
        .max_size(CONNECTIONS)
        .test_on_check_out(ping)
        .build(Bb8Manager(url.parse()?))
        .await?)
}

async fn through_bb8(pool: bb8::Pool<Bb8Manager>, each: u32) -> Result<()> {
    for number in 0..i64::from(each) {
        let one = pool.get().await?;
        let (client, statement) = &*one;
        check(
            client.query_one(statement, &[&number]).await?.get(0),
            number,
        )?;
    }
    Ok(())
}

/// A connection that has the query's statement.
async fn prepared(
    config: &tokio_postgres::Config,
) -> std::result::Result<(tokio_postgres::Client, tokio_postgres::Statement), tokio_postgres::Error>
{
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    // Ends with its client.
    tokio::spawn(connection);
    let statement = client.prepare(QUERY).await?;
    Ok((client, statement))
}

async fn through_one(
    one: Arc<(tokio_postgres::Client, tokio_postgres::Statement)>,
    each: u32,
) -> Result<()> {
    let (client, statement) = &*one;
    for number in 0..i64::from(each) {
        check(
            client.query_one(statement, &[&number]).await?.get(0),
            number,
        )?;
    }
    Ok(())
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
