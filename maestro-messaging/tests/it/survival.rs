//! The promise of the crate, whole: nothing lost, every effect once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_messaging::outbox::Inbox;
use maestro_messaging::{HandlerError, MessageContext};
use maestro_testkit::{Service, Stack};
use parking_lot::Mutex;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::Instant;
use uuid::Uuid;

use crate::outbox::{pool, rows, variable};
use crate::support::{
    Ignored, Placed, Raw, Surplus, break_queue, client, consuming, dead, eventually,
    publish_for_sure, within,
};

/// Once in effect: the message's identity and its effect in one transaction.
async fn effect(pool: &PgPool, context: &MessageContext) -> Result<(), HandlerError> {
    let mut tx = pool.begin().await?;
    let id = context.message_id();
    if Inbox.once(&mut *tx, context.subscription(), id).await? {
        sqlx::query("INSERT INTO effects (message_id) VALUES ($1)")
            .bind(id)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_confirmed_messages_take_effect_once_each_though_the_broker_is_killed_twice() {
    const MESSAGES: u64 = 10_000;
    const TASKS: u64 = 50;
    let stack = Stack::builder()
        .only([Service::Postgres, Service::Rabbitmq])
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let broker = stack.rabbitmq().unwrap();
    let pool = pool(&sandbox).await;
    let url = variable(&sandbox, "MAESTRO_POSTGRES_MIGRATION_URL");
    let mut migrator = PgConnection::connect(&url).await.unwrap();
    // No unique index: it is the inbox that has to keep the effects single.
    sqlx::query("CREATE TABLE effects (message_id uuid NOT NULL)")
        .execute(&mut migrator)
        .await
        .unwrap();

    let handling = client(&sandbox, &[]).await;
    let publishing = client(&sandbox, &[]).await;
    let deliveries = Arc::new(AtomicU64::new(0));
    let (counter, database) = (Arc::clone(&deliveries), pool.clone());
    let consumer = handling
        .subscription("survivors")
        .concurrency(8)
        .on("orders", move |_: Placed, context| {
            let (counter, database) = (Arc::clone(&counter), database.clone());
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                effect(&database, &context).await
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;

    let confirmed = Arc::new(AtomicU64::new(0));
    let retries = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let messaging = publishing.clone();
        let (confirmed, retries) = (Arc::clone(&confirmed), Arc::clone(&retries));
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for number in 0..MESSAGES / TASKS {
                ids.push(publish_for_sure(&messaging, task * 1_000 + number, &retries).await);
                confirmed.fetch_add(1, Ordering::Relaxed);
            }
            ids
        });
    }
    for share in [3, 6] {
        eventually("some are confirmed", || async {
            confirmed.load(Ordering::Relaxed) >= MESSAGES * share / 10
        })
        .await;
        broker.kill().await.unwrap();
        broker.start().await.unwrap();
    }
    let mut sent = HashSet::new();
    while let Some(ids) = tasks.join_next().await {
        sent.extend(ids.unwrap());
    }
    assert_eq!(sent.len() as u64, MESSAGES);
    let effects = || async {
        sqlx::query_scalar::<_, Uuid>("SELECT message_id FROM effects")
            .fetch_all(&pool)
            .await
            .unwrap()
    };
    within(
        Duration::from_mins(2),
        "every confirmed message has its effect",
        || async {
            let effects: HashSet<Uuid> = effects().await.into_iter().collect();
            sent.is_subset(&effects)
        },
    )
    .await;
    // What is still on its way is a duplicate; let it come.
    let raw = Raw::connect(&sandbox).await;
    raw.holds("orders.survivors", 0).await;
    consuming(&consumer).await;
    assert_eq!(consumer.drain().await.abandoned, 0);
    let effects = effects().await;
    println!(
        "sent {MESSAGES} confirmed {} asked again {} deliveries {} effects {} lost 0",
        confirmed.load(Ordering::Relaxed),
        retries.load(Ordering::Relaxed),
        deliveries.load(Ordering::Relaxed),
        effects.len(),
    );
    assert_eq!(effects.len() as u64, MESSAGES);
    dead(&handling.dead_letters("survivors"), 0).await;
    publishing.close().await;
    handling.close().await;
}

/// How often each message came.
type Deliveries = Mutex<HashMap<Uuid, u32>>;

/// Messages, and deliveries beyond the first of each.
fn copies(of: &Deliveries) -> (usize, usize) {
    let of = of.lock();
    let deliveries: u32 = of.values().sum();
    (of.len(), deliveries as usize - of.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_stands_still_costs_the_healthy_ones_few_copies() {
    // More than the relay keeps in memory of what it can publish.
    const ROWS: usize = 1_500;
    let stack = Stack::builder()
        .only([Service::Postgres, Service::Rabbitmq])
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let pool = pool(&sandbox).await;
    let messaging = client(&sandbox, &[("CONFIRM_TIMEOUT", "2s")]).await;
    let broken = messaging
        .subscription("broken")
        .on("orders", |_: Surplus, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    broken.ready().await;
    broken.drain().await;
    let (seen, others) = (Arc::<Deliveries>::default(), Arc::<Deliveries>::default());
    let (noted, noted_others) = (Arc::clone(&seen), Arc::clone(&others));
    let fine = messaging
        .subscription("fine")
        .on("orders", move |_: Surplus, context| {
            *noted.lock().entry(context.message_id()).or_default() += 1;
            async { Ok(()) }
        })
        .on("orders", move |_: Ignored, context| {
            let mut others = noted_others.lock();
            *others.entry(context.message_id()).or_default() += 1;
            async { Ok(()) }
        })
        .start()
        .await
        .unwrap();
    fine.ready().await;
    let vhost = Raw::vhost(&sandbox);
    break_queue(&stack.rabbitmq().unwrap(), &vhost, "orders.broken").await;

    let outbox = messaging.outbox();
    let mut tx = pool.begin().await.unwrap();
    for number in 0..ROWS as u64 {
        outbox.add(&mut *tx, &Surplus { number }).await.unwrap();
    }
    tx.commit().await.unwrap();
    let relay = outbox.relay(pool.clone()).start();
    eventually("the healthy queue has each", || async {
        copies(&seen).0 == ROWS
    })
    .await;
    // Meanwhile events go on that the broken queue has nothing to do with.
    let mut tasks = tokio::task::JoinSet::new();
    let end = Instant::now() + Duration::from_secs(20);
    for _ in 0..10 {
        let messaging = messaging.clone();
        tasks.spawn(async move {
            let mut confirmed = 0;
            while Instant::now() < end {
                let event = Ignored { number: confirmed };
                confirmed += u64::from(messaging.publish(&event).await.is_ok());
            }
            confirmed
        });
    }
    let mut confirmed = 0;
    while let Some(count) = tasks.join_next().await {
        confirmed += count.unwrap();
    }
    eventually("all that was confirmed is handled", || async {
        copies(&others).0 as u64 >= confirmed
    })
    .await;
    let unrelated = Ignored { number: 0 };
    let id = outbox.add(&pool, &unrelated).await.unwrap();
    eventually("what the broken queue does not want passes", || async {
        others.lock().contains_key(&id)
    })
    .await;
    let (standing, (passed, again)) = (copies(&seen).1, copies(&others));
    println!("in 20 s {standing} copies of {ROWS} rows, {again} of {passed} other events");
    assert!(standing <= 15, "{standing} copies of {ROWS} rows");
    assert!(passed > 100, "{passed} others passed");
    assert!(again <= passed / 100, "{again} copies of {passed} others");

    let raw = Raw::connect(&sandbox).await;
    let key = <Surplus as maestro_messaging::Event>::TYPE;
    raw.unbind("orders.broken", "orders.events", key).await;
    eventually("the outbox is empty", || async { rows(&pool).await == 0 }).await;
    let (all, again) = copies(&seen);
    println!("{again} copies of {all} rows in the end");
    assert_eq!(all, ROWS);
    assert!(again <= ROWS + 20, "{again} copies");
    relay.drain().await;
    messaging.close().await;
}
