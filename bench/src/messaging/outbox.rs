//! The outbox: rows relayed end to end, and how long a committed event takes to its handler.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use maestro_messaging::outbox::migrate;
use maestro_messaging::{Event, Messaging};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::mpsc;

use crate::harness::{Comparison, Result, Row, Target, Unit};
use crate::messaging::raw::purge;
use crate::messaging::{OrderPlaced, PUBLISHED, TASKS, publish_ours};
use crate::sandbox::Place;

/// An event of an order: those of one order stay in order, so that the relay has one of each in flight.
#[derive(Serialize, Deserialize)]
struct OrderPaid {
    key: String,
    note: String,
}

impl Event for OrderPaid {
    const TYPE: &'static str = "order.paid.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.key.as_str().into())
    }
}

/// The database of the bench's place.
pub struct Database {
    pool: PgPool,
    direct: PgConnectOptions,
}

impl Database {
    /// With the tables of the outbox.
    pub async fn new(place: &Place) -> Result<Self> {
        let migrator = place.variable("MAESTRO_POSTGRES_MIGRATION_URL")?;
        migrate(&mut PgConnection::connect(migrator).await?).await?;
        let direct: PgConnectOptions = place.variable("MAESTRO_POSTGRES_URL")?.parse()?;
        let pool = PgPoolOptions::new().max_connections(8);
        Ok(Self {
            pool: pool.connect_with(direct.clone()).await?,
            direct,
        })
    }
}

/// Rows that wait, relayed until the last is confirmed and deleted.
pub async fn relay(
    messaging: &Messaging,
    database: &Database,
    channel: &lapin::Channel,
    queue: &str,
    rounds: usize,
) -> Result<Vec<Row>> {
    Comparison::new("outbox, relayed", Unit::PerSecond, rounds, || async {
        write(messaging, database).await?;
        let started = Instant::now();
        let relay = messaging.outbox().relay(database.pool.clone()).start();
        while relay.published() < u64::from(PUBLISHED) {
            if started.elapsed() > PATIENCE {
                return Err("the relay does not come to an end".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let figure = f64::from(PUBLISHED) / started.elapsed().as_secs_f64();
        relay.drain().await;
        purge(channel, queue).await?;
        Ok(figure)
    })
    .peer(
        "maestro-messaging publish",
        "without a database",
        Target::Ratio(0.3),
        || async {
            let figure = publish_ours(messaging).await?;
            purge(channel, queue).await?;
            Ok(figure)
        },
    )
    .run()
    .await
}

/// From the end of the commit to the handler, over a notification.
pub async fn notified(
    messaging: &Messaging,
    database: &Database,
    rounds: usize,
) -> Result<Vec<Row>> {
    let (handled, mut seen) = mpsc::channel(1);
    let consumer = messaging
        .subscription("notified")
        .on("orders", move |event: OrderPaid, _| {
            let handled = handled.clone();
            async move { Ok(handled.send(event.key).await?) }
        })
        .start()
        .await?;
    consumer.ready().await;
    let relay = messaging
        .outbox()
        .relay(database.pool.clone())
        .listen(database.direct.clone())
        .start();
    // Both sides are measured on each event in turn; either contender asks for its own.
    let seen = &tokio::sync::Mutex::new(&mut seen);
    let rows = Comparison::new("commit to handler", Unit::Milliseconds, rounds, || async {
        let mut times = Vec::new();
        for _ in 0..NOTIFIED {
            add(messaging, database).await?;
            let committed = Instant::now();
            tokio::time::timeout(PATIENCE, seen.lock().await.recv()).await?;
            times.push(committed.elapsed());
        }
        Ok(middle(times))
    })
    .peer(
        "one commit + one confirm",
        "no relay, no delivery",
        Target::Ratio(1.0 / 3.0),
        || async {
            let mut times = Vec::new();
            for _ in 0..NOTIFIED {
                let commit = add(messaging, database).await?;
                tokio::time::timeout(PATIENCE, seen.lock().await.recv()).await?;
                let started = Instant::now();
                messaging.publish(&crate::messaging::event()).await?;
                times.push(commit + started.elapsed());
            }
            Ok(middle(times))
        },
    )
    .run()
    .await?;
    relay.drain().await;
    consumer.drain().await;
    Ok(rows)
}

/// One event in a transaction; how long the commit took.
async fn add(messaging: &Messaging, database: &Database) -> Result<Duration> {
    let event = OrderPaid {
        key: "order-7".to_owned(),
        note: "x".repeat(1_000),
    };
    let mut transaction = database.pool.begin().await?;
    messaging.outbox().add(&mut *transaction, &event).await?;
    let started = Instant::now();
    transaction.commit().await?;
    Ok(started.elapsed())
}

/// As many rows as the plain publish sends, of as many keys as it has tasks: the first of each key
/// through the outbox, the others as copies.
async fn write(messaging: &Messaging, database: &Database) -> Result<()> {
    let mut transaction = database.pool.begin().await?;
    for key in 0..TASKS {
        let event = OrderPlaced {
            key: Some(format!("order-{key}")),
            ..crate::messaging::event()
        };
        messaging.outbox().add(&mut *transaction, &event).await?;
    }
    sqlx::query(
        "INSERT INTO maestro.outbox (bucket, message_id, event_type, key, metadata, body)
         SELECT bucket, gen_random_uuid(), event_type, key, metadata, body
         FROM generate_series(1, $1) AS number, maestro.outbox ORDER BY number",
    )
    .bind(i64::from(PUBLISHED / TASKS) - 1)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// The median, in milliseconds.
fn middle(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

const NOTIFIED: u32 = 100;
const PATIENCE: Duration = Duration::from_mins(1);
