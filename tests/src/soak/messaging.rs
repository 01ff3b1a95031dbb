//! Publish, consume and relay at random while the broker is killed, paused, cut off, out of memory,
//! and robbed of queues, and while replicas die.
//!
//! The ledger is in PostgreSQL, which stays up. At the end it has to say: every acknowledged event
//! was handled at least once by each subscription, has its effect exactly once, and was handled in
//! the order of its key where order was asked for; nothing that was rolled back was ever seen.

mod faults;
mod ledger;
mod replica;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use maestro_config::Environment;
use maestro_messaging::{DeadLetters, Event, Filter, Messaging, MessagingConfig, Sorted};
use maestro_testkit::{Sandbox, Service, Stack};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::soak::Plan;
use ledger::Ledger;
use replica::Replica;

/// What is published. With a key, numbers of one key count up.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    key: Option<String>,
    number: i64,
}

impl Event for Placed {
    const TYPE: &'static str = "order.placed.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        self.key.as_deref().map(Cow::from)
    }
}

/// Tells at the end whether a subscription whose queue was taken away works again.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Probed {
    number: u64,
}

impl Event for Probed {
    const TYPE: &'static str = "order.probed.v1";
}

/// What all tasks of a campaign share.
struct World {
    plan: Plan,
    environment: Vec<(String, String)>,
    ledger: Ledger,
    /// Handlers fail at random until this says that it is time to settle.
    settling: AtomicBool,
    /// The last probe seen by the subscriptions whose queues are taken away.
    deleted: Arc<AtomicU64>,
    conflicted: Arc<AtomicU64>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    confirmed: AtomicU64,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    refused: AtomicU64,
    given_up: AtomicU64,
    asked_again: AtomicU64,
    deliveries: AtomicU64,
    failures: AtomicU64,
}

impl World {
    fn variable(&self, name: &str) -> Result<String> {
        let found = self.environment.iter().find(|(known, _)| known == name);
        Ok(found
            .with_context(|| format!("{name} is not set"))?
            .1
            .clone())
    }

    async fn client(&self) -> Result<Messaging> {
        let mut pairs = self.environment.clone();
        for (name, value) in [
            ("RETRY_DELAYS", "50ms,200ms,1s"),
            ("HANDLER_TIMEOUT", "2s"),
            ("CONFIRM_TIMEOUT", "5s"),
            ("CONCURRENCY", "8"),
            ("PREFETCH", "50"),
            ("DRAIN_TIMEOUT", "5s"),
        ] {
            pairs.push((format!("MAESTRO_MESSAGING_{name}"), value.to_owned()));
        }
        let config: MessagingConfig = Environment::from_pairs(pairs).read()?;
        Ok(Messaging::connect(config).await?)
    }

    async fn pool(&self) -> Result<PgPool> {
        let pool = PgPoolOptions::new().max_connections(10);
        Ok(pool
            .connect(&self.variable("MAESTRO_POSTGRES_URL")?)
            .await?)
    }
}

/// Runs the campaign.
///
/// # Errors
/// When the ledger does not balance, or the servers cannot be had.
pub async fn run(plan: Plan) -> Result<()> {
    let stack = Stack::builder()
        .only([Service::Postgres, Service::Rabbitmq])
        .dedicated()
        .await?;
    let sandbox = stack.sandbox("orders").await?;
    plan.step(format!("RabbitMQ {}", stack.rabbitmq()?.version()));
    let world = prepare(plan, &sandbox).await?;

    let mut replicas = vec![Replica::start(&world)?, Replica::start(&world)?];
    let client = world.client().await?;
    let pool = world.pool().await?;
    let mut publishers = JoinSet::new();
    // Before the queues are bound, events reach nobody and acknowledge nothing worth counting.
    probe(&world, &client).await.context("at the start")?;
    let over = Arc::new(AtomicBool::new(false));
    for task in 0..DIRECT {
        let (world, client, over) = (Arc::clone(&world), client.clone(), Arc::clone(&over));
        publishers.spawn(async move { publish(&world, &client, task, &over).await });
    }
    for task in DIRECT..DIRECT + OUTBOX {
        let (world, client, over) = (Arc::clone(&world), client.clone(), Arc::clone(&over));
        let pool = pool.clone();
        publishers.spawn(async move { write(&world, &client, &pool, task, &over).await });
    }

    let caused = faults::cause(&world, &stack, &sandbox, &mut replicas).await?;
    over.store(true, Ordering::Relaxed);
    world.plan.step("settling");
    world.settling.store(true, Ordering::Relaxed);
    while let Some(done) = publishers.join_next().await {
        done??;
    }
    let settled = settle(&world, &client, &pool).await;
    report(&world, &caused, &pool).await?;
    if settled.is_err() {
        faults::tell_queues(&world, &stack.rabbitmq()?).await?;
    }
    settled?;
    balance(&world).await?;
    probe(&world, &client).await.context("at the end")?;
    for replica in replicas {
        replica.close().await?;
    }
    client.close().await;
    Ok(())
}

async fn prepare(plan: Plan, sandbox: &Sandbox) -> Result<Arc<World>> {
    let environment = sandbox.environment();
    let direct = sandbox.direct_environment();
    let url = |name: &str| {
        let found = direct.iter().find(|(known, _)| known == name);
        found
            .map(|(_, url)| url.clone())
            .with_context(|| format!("{name} is not set"))
    };
    let migrator = url("MAESTRO_POSTGRES_MIGRATION_URL")?;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&migrator).await?;
    maestro_messaging::outbox::migrate(&mut connection).await?;
    Ledger::create(&migrator).await?;
    Ok(Arc::new(World {
        plan,
        environment,
        ledger: Ledger::connect(&url("MAESTRO_POSTGRES_URL")?).await?,
        settling: AtomicBool::new(false),
        deleted: Arc::default(),
        conflicted: Arc::default(),
        counts: Counts::default(),
    }))
}

/// One task that publishes: in order for its key, in batches, impatiently.
async fn publish(world: &World, client: &Messaging, task: u64, over: &AtomicBool) -> Result<()> {
    let mut dice = world.plan.dice(task);
    let key = format!("direct-{task}");
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        match dice.u32(0..100) {
            0..85 => {
                number += 1;
                let event = Placed {
                    key: Some(key.clone()),
                    number,
                };
                let id = Uuid::now_v7();
                surely(world, client, &event, id).await?;
                world.counts.confirmed.fetch_add(1, Ordering::Relaxed);
                world.ledger.sent(id, Some(&key), number).await?;
            }
            85..95 => {
                let events: Vec<_> = (0..dice.i64(1..50))
                    .map(|number| Placed { key: None, number })
                    .collect();
                for receipt in client.publish_batch(&events).await {
                    match receipt {
                        Ok(receipt) => {
                            world.counts.confirmed.fetch_add(1, Ordering::Relaxed);
                            world.ledger.sent(receipt.message_id(), None, 0).await?;
                        }
                        Err(_) => {
                            world.counts.given_up.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
            // Somebody without patience, who never learns what became of it.
            _ => {
                let event = Placed {
                    key: None,
                    number: -1,
                };
                let patience = Duration::from_millis(dice.u64(1..20));
                if client.publish(&event).deadline(patience).await.is_err() {
                    world.counts.given_up.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        sleep(Duration::from_millis(dice.u64(0..20))).await;
    }
    Ok(())
}

/// Publishes until the broker confirms, always under the same identity.
async fn surely(world: &World, client: &Messaging, event: &Placed, id: Uuid) -> Result<()> {
    loop {
        match client.publish(event).message_id(id).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_transient() => {
                let count = match error.kind() {
                    maestro_messaging::ErrorKind::Rejected => &world.counts.refused,
                    _ => &world.counts.asked_again,
                };
                count.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One task that writes events into the outbox, and sometimes thinks better of it.
async fn write(
    world: &World,
    client: &Messaging,
    pool: &PgPool,
    task: u64,
    over: &AtomicBool,
) -> Result<()> {
    let mut dice = world.plan.dice(task);
    let outbox = client.outbox();
    let key = format!("outbox-{task}");
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let mut transaction = pool.begin().await?;
        let mut ids = Vec::new();
        let scheduled = dice.u32(0..20) == 0;
        for step in 1..=dice.i64(1..4) {
            let event = Placed {
                // Order among scheduled events is not promised.
                key: (!scheduled).then(|| key.clone()),
                number: number + step,
            };
            let id = if scheduled {
                let at = SystemTime::now() + Duration::from_millis(dice.u64(0..3_000));
                outbox.schedule(&mut *transaction, &event, at).await?
            } else {
                outbox.add(&mut *transaction, &event).await?
            };
            ids.push((id, event));
        }
        if dice.u32(0..10) == 0 {
            transaction.rollback().await?;
            for (id, _) in &ids {
                world.ledger.rolled_back(*id).await?;
            }
            let count = ids.len() as u64;
            world.counts.rolled_back.fetch_add(count, Ordering::Relaxed);
        } else {
            transaction.commit().await?;
            for (id, event) in &ids {
                let key = event.key.as_deref();
                world.ledger.sent(*id, key, event.number).await?;
                number = number.max(event.number);
            }
            let count = ids.len() as u64;
            world.counts.committed.fetch_add(count, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(dice.u64(0..60))).await;
    }
    Ok(())
}

/// Both subscriptions whose queues were taken away have to handle an event that comes now.
async fn probe(world: &World, client: &Messaging) -> Result<()> {
    let number = world
        .deleted
        .load(Ordering::Relaxed)
        .max(world.conflicted.load(Ordering::Relaxed))
        + 1;
    let deadline = Instant::now() + SETTLE;
    loop {
        // Sent again and again: while a queue is away an event does not reach it.
        client
            .publish(&Probed { number })
            .deadline(SETTLE)
            .await
            .context("publishing a probe")?;
        let missing = [
            ("deleted", &world.deleted),
            ("conflicted", &world.conflicted),
        ]
        .into_iter()
        .find(|(_, seen)| seen.load(Ordering::Relaxed) < number);
        let Some((name, _)) = missing else {
            return Ok(());
        };
        ensure!(
            Instant::now() < deadline,
            "`{name}` does not consume within {SETTLE:?}"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until everything acknowledged is handled, bringing back what was given up.
async fn settle(world: &World, client: &Messaging, pool: &PgPool) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    let mut told = Instant::now();
    loop {
        for subscription in [replica::EACH, replica::ORDERED] {
            // The last fault may not be over for this client: it is asked again.
            match bring_back(&client.dead_letters(subscription)).await {
                Ok(None) => {}
                Ok(Some(sorted)) => world
                    .plan
                    .step(format!("replayed from {subscription}: {sorted:?}")),
                Err(error) => world.plan.step(format!("{subscription}: {error}")),
            }
        }
        let each = world.ledger.unhandled(replica::EACH).await?;
        let ordered = world.ledger.unhandled(replica::ORDERED).await?;
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM maestro.outbox")
            .fetch_one(pool)
            .await?;
        if (each, ordered, rows) == (0, 0, 0) {
            return Ok(());
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            world.plan.step(format!(
                "left: {each} for each, {ordered} in order, {rows} rows in the outbox"
            ));
        }
        ensure!(
            Instant::now() < deadline,
            "after {SETTLE:?}: {each} acknowledged events not handled, {ordered} not handled in order, {rows} rows in the outbox"
        );
        sleep(Duration::from_millis(250)).await;
    }
}

/// What a replay did, if there was anything to replay.
async fn bring_back(
    letters: &DeadLetters,
) -> std::result::Result<Option<Sorted>, maestro_messaging::Error> {
    if letters.count().await? == 0 {
        return Ok(None);
    }
    letters.replay(Filter::all()).await.map(Some)
}

async fn report(world: &World, caused: &BTreeMap<&str, u32>, pool: &PgPool) -> Result<()> {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let counts = &world.counts;
    let size: i64 = sqlx::query_scalar("SELECT pg_total_relation_size('maestro.outbox')")
        .fetch_one(pool)
        .await?;
    world.plan.step(format!("faults: {caused:?}"));
    world.plan.step(format!(
        "confirmed {}, committed to the outbox {}, rolled back {}, refused {}, asked again {}, given up {}",
        of(&counts.confirmed),
        of(&counts.committed),
        of(&counts.rolled_back),
        of(&counts.refused),
        of(&counts.asked_again),
        of(&counts.given_up),
    ));
    world.plan.step(format!(
        "handlers run {}, of them failed {}; {}; the outbox table has {size} bytes",
        of(&counts.deliveries),
        of(&counts.failures),
        world.ledger.summary().await?,
    ));
    Ok(())
}

async fn balance(world: &World) -> Result<()> {
    let ledger = &world.ledger;
    let wrong = [
        ("effects that are missing", ledger.effects_missing().await?),
        ("effects that happened twice", ledger.effects_twice().await?),
        (
            "events handled before an earlier one of their key",
            ledger.out_of_order(replica::ORDERED).await?,
        ),
        (
            "events handled although they were rolled back",
            ledger.ghosts().await?,
        ),
    ];
    for (what, count) in wrong {
        world.plan.step(format!("{what}: {count}"));
    }
    for (what, count) in wrong {
        ensure!(count == 0, "{count} {what}");
    }
    Ok(())
}

/// Tasks that publish, and tasks that write to the outbox.
const DIRECT: u64 = 8;
const OUTBOX: u64 = 6;
/// After the last fault: a consumer whose queue has other arguments tries every 15 s.
const SETTLE: Duration = Duration::from_mins(3);
