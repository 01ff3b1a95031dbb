//! A backlog of the outbox, written while no relay ran, drained by two.
//!
//! Every row has to be handled, in the order of its key and at a steady rate, while the memory of the
//! process stays flat and the table does not grow.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use maestro_config::Environment;
use maestro_messaging::outbox::migrate;
use maestro_messaging::{Event, Messaging, MessagingConfig};
use maestro_testkit::{Sandbox, Service, Stack};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{Instant, sleep};

use crate::soak::Plan;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    key: String,
    number: u64,
}

impl Event for Placed {
    const TYPE: &'static str = "order.placed.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.key.as_str().into())
    }
}

/// What the handler has seen; as large as there are keys.
#[derive(Default)]
struct Seen {
    next: HashMap<String, u64>,
    handled: u64,
    again: u64,
    early: u64,
}

/// Writes so many rows down and drains them.
///
/// # Errors
/// When a row is lost or out of order, the table or the memory grows, or the rate falls.
pub async fn run(plan: &Plan, rows: u64) -> Result<()> {
    let stack = Stack::builder()
        .only([Service::Postgres, Service::Rabbitmq])
        .start()
        .await?;
    let sandbox = stack.sandbox("orders").await?;
    let migrator = variable(&sandbox, "MAESTRO_POSTGRES_MIGRATION_URL")?;
    migrate(&mut PgConnection::connect(&migrator).await?).await?;
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect(&variable(&sandbox, "MAESTRO_POSTGRES_URL")?)
        .await?;

    let consuming = client(&sandbox).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    subscribe(&consuming, &seen).await?;
    let each = rows / KEYS;
    write(&consuming, &pool, each).await?;
    let written = size(&pool).await?;
    plan.step(format!("{} rows written, {written} bytes", each * KEYS));

    let mut relays = Vec::new();
    for _ in 0..2 {
        let messaging = client(&sandbox).await?;
        relays.push((messaging.outbox().relay(pool.clone()).start(), messaging));
    }
    let tenths = drain(plan, &seen, each * KEYS).await?;
    for (relay, messaging) in relays {
        ensure!(
            relay.drain().await == 0,
            "events were left without an answer"
        );
        messaging.close().await;
    }
    consuming.close().await;

    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM maestro.outbox")
        .fetch_one(&pool)
        .await?;
    let drained = size(&pool).await?;
    let seen = std::mem::take(&mut *seen.lock());
    plan.step(format!(
        "handled {}, again {}, before an earlier one of its key {}, left {left}; {drained} bytes",
        seen.handled, seen.again, seen.early
    ));
    ensure!(left == 0 && seen.early == 0, "lost or out of order");
    ensure!(
        drained <= written + MAPS,
        "the table has grown to {drained} bytes"
    );
    if rows < LARGE {
        return Ok(());
    }
    let memory = |tenth: &Tenth| tenth.resident;
    let first = tenths.first().map(memory).context("no figures")?;
    let most = tenths.iter().map(memory).max().unwrap_or_default();
    ensure!(
        most <= first + FLAT,
        "the process has grown from {first} to {most} KiB"
    );
    let took = |part: &[Tenth]| part.iter().map(|tenth| tenth.took).sum::<Duration>();
    let (before, after) = tenths.split_at(tenths.len() / 2);
    ensure!(
        took(after) <= took(before) * 2,
        "the second half took more than twice as long as the first"
    );
    Ok(())
}

/// A tenth of the backlog.
struct Tenth {
    took: Duration,
    /// Of this process afterwards, in KiB.
    resident: u64,
}

async fn drain(plan: &Plan, seen: &Mutex<Seen>, rows: u64) -> Result<Vec<Tenth>> {
    let mut tenths = Vec::new();
    let mut since = Instant::now();
    for tenth in 1..=10 {
        let wanted = rows * tenth / 10;
        let mut moved = (0, Instant::now());
        loop {
            let handled = seen.lock().handled;
            if handled >= wanted {
                break;
            }
            if handled > moved.0 {
                moved = (handled, Instant::now());
            }
            ensure!(
                moved.1.elapsed() < STALLED,
                "{handled} of {rows} handled, and nothing more for {STALLED:?}"
            );
            sleep(Duration::from_millis(10)).await;
        }
        let took = since.elapsed();
        since = Instant::now();
        let resident = resident()?;
        plan.step(format!(
            "{wanted} handled: {:.0} rows a second, {resident} KiB resident",
            (rows / 10) as f64 / took.as_secs_f64()
        ));
        tenths.push(Tenth { took, resident });
    }
    Ok(tenths)
}

async fn subscribe(messaging: &Messaging, seen: &Arc<Mutex<Seen>>) -> Result<()> {
    let seen = Arc::clone(seen);
    let consumer = messaging
        .subscription("backlog")
        // One at a time: in the order in which they come.
        .concurrency(1)
        .on("orders", move |event: Placed, _| {
            let mut seen = seen.lock();
            let next = seen.next.entry(event.key).or_default();
            match event.number.cmp(next) {
                std::cmp::Ordering::Equal => {
                    *next += 1;
                    seen.handled += 1;
                }
                std::cmp::Ordering::Less => seen.again += 1,
                std::cmp::Ordering::Greater => seen.early += 1,
            }
            async { Ok(()) }
        })
        .start()
        .await?;
    consumer.ready().await;
    Ok(())
}

/// The first row of each key through the outbox, the others as copies of it with their numbers.
async fn write(messaging: &Messaging, pool: &PgPool, each: u64) -> Result<()> {
    let outbox = messaging.outbox();
    let mut transaction = pool.begin().await?;
    for key in 0..KEYS {
        let key = format!("order-{key}");
        outbox
            .add(&mut *transaction, &Placed { key, number: 0 })
            .await?;
    }
    sqlx::query(
        "INSERT INTO maestro.outbox (bucket, message_id, event_type, key, metadata, body)
         SELECT bucket, gen_random_uuid(), event_type, key, metadata,
            convert_to(json_build_object('key', key, 'number', number)::text, 'UTF8')
         FROM generate_series(1, $1) AS number, maestro.outbox AS first ORDER BY number",
    )
    .bind(i64::try_from(each)? - 1)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

async fn client(sandbox: &Sandbox) -> Result<Messaging> {
    let config: MessagingConfig = Environment::from_pairs(sandbox.direct_environment()).read()?;
    Ok(Messaging::connect(config).await?)
}

fn variable(sandbox: &Sandbox, name: &str) -> Result<String> {
    let pairs = sandbox.direct_environment();
    let found = pairs.into_iter().find(|(known, _)| known == name);
    Ok(found.with_context(|| format!("{name} is not set"))?.1)
}

/// Of the table with its indexes, in bytes.
async fn size(pool: &PgPool) -> Result<i64> {
    let size = sqlx::query_scalar("SELECT pg_total_relation_size('maestro.outbox')");
    Ok(size.fetch_one(pool).await?)
}

fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.split_whitespace().next());
    Ok(figure.context("no resident size")?.parse()?)
}

const KEYS: u64 = 1_000;
/// What vacuum notes beside a table, in bytes.
const MAPS: i64 = 1024 * 1024;
/// From so many rows on rate and memory say something, in a process that does nothing else.
const LARGE: u64 = 500_000;
/// What allocators and buffers may take after the first tenth, in KiB: a row is 200 bytes, so a
/// backlog of a million that was kept would be five times as much.
const FLAT: u64 = 40 * 1_024;
/// A backlog that stands still for so long does not drain.
const STALLED: Duration = Duration::from_mins(2);
