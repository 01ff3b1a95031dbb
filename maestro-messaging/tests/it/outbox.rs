//! Events published with the transaction that causes them, and effects that happen once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use maestro_config::Environment;
use maestro_messaging::outbox::{Inbox, migrate};
use maestro_messaging::{Messaging, MessagingConfig};
use maestro_testkit::{Sandbox, Service, Stack};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

use crate::support::{Placed, eventually, placed};

pub async fn sandbox() -> Sandbox {
    let stack = Stack::builder()
        .only([Service::Postgres, Service::Rabbitmq])
        .start()
        .await
        .unwrap();
    stack.sandbox("orders").await.unwrap()
}

pub fn variable(sandbox: &Sandbox, name: &str) -> String {
    let found = sandbox.environment().into_iter().find(|(n, _)| n == name);
    found.unwrap().1
}

pub fn options(sandbox: &Sandbox) -> PgConnectOptions {
    variable(sandbox, "MAESTRO_POSTGRES_URL").parse().unwrap()
}

pub async fn pool(sandbox: &Sandbox) -> PgPool {
    let mut migrator = PgConnection::connect(&variable(sandbox, "MAESTRO_POSTGRES_MIGRATION_URL"))
        .await
        .unwrap();
    migrate(&mut migrator).await.unwrap();
    PgPoolOptions::new()
        .max_connections(10)
        .connect_with(options(sandbox))
        .await
        .unwrap()
}

pub async fn client(sandbox: &Sandbox) -> Messaging {
    let config: MessagingConfig = Environment::from_pairs(sandbox.environment())
        .read()
        .unwrap();
    Messaging::connect(config).await.unwrap()
}

type Log = Arc<Mutex<Vec<(String, u64)>>>;

/// Notes every event it handles, in order.
async fn listener(messaging: &Messaging) -> Log {
    let log = Log::default();
    let noted = Arc::clone(&log);
    let consumer = messaging
        .subscription("noted")
        .concurrency(1)
        .on("orders", move |event: Placed, _| {
            let noted = Arc::clone(&noted);
            async move {
                noted.lock().push((event.key, event.number));
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    log
}

pub async fn rows(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM maestro.outbox")
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_make_the_tables_once() {
    let sandbox = sandbox().await;
    let url = variable(&sandbox, "MAESTRO_POSTGRES_MIGRATION_URL");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        tasks.spawn(async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            migrate(&mut connection).await
        });
    }
    while let Some(migrated) = tasks.join_next().await {
        migrated.unwrap().unwrap();
    }
    let pool = pool(&sandbox).await;
    let leases: i64 = sqlx::query_scalar("SELECT count(*) FROM maestro.outbox_lease")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(leases, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_published_when_its_transaction_commits_and_not_when_it_rolls_back() {
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let messaging = client(&sandbox).await;
    let log = listener(&messaging).await;
    let outbox = messaging.outbox();
    let relay = outbox.relay(pool.clone()).listen(options(&sandbox)).start();

    let mut rolled_back = pool.begin().await.unwrap();
    outbox.add(&mut *rolled_back, &placed(1)).await.unwrap();
    rolled_back.rollback().await.unwrap();
    let mut committed = pool.begin().await.unwrap();
    outbox.add(&mut *committed, &placed(2)).await.unwrap();
    assert!(log.lock().is_empty());
    committed.commit().await.unwrap();
    // A pool is an executor as well.
    outbox.add(&pool, &placed(3)).await.unwrap();

    eventually("both are handled", || async {
        let numbers: BTreeSet<_> = log.lock().iter().map(|(_, number)| *number).collect();
        numbers.contains(&2) && numbers.contains(&3)
    })
    .await;
    assert!(log.lock().iter().all(|(_, number)| *number != 1));
    eventually("the table is empty", || async { rows(&pool).await == 0 }).await;
    assert_eq!(relay.drain().await, 0);
    assert_eq!(relay.published(), 2);
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_event_comes_at_its_time_and_can_be_taken_back() {
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let messaging = client(&sandbox).await;
    let log = listener(&messaging).await;
    let outbox = messaging.outbox();
    let later = SystemTime::now() + Duration::from_secs(2);
    let kept = outbox.schedule(&pool, &placed(1), later).await.unwrap();
    let taken_back = outbox.schedule(&pool, &placed(2), later).await.unwrap();
    assert!(outbox.cancel(&pool, taken_back).await.unwrap());
    assert!(!outbox.cancel(&pool, taken_back).await.unwrap());
    // Only now, or on a slow machine the event could be due before it is taken back.
    outbox
        .relay(pool.clone())
        .poll_every(Duration::from_millis(50))
        .start();
    eventually("the scheduled event is handled", || async {
        !log.lock().is_empty()
    })
    .await;
    // The database's clock decides what is due.
    let seconds = later.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let due: bool = sqlx::query_scalar("SELECT clock_timestamp() >= to_timestamp($1)")
        .bind(seconds)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(due, "it came too early");
    assert!(log.lock().iter().all(|(_, number)| *number == 1));
    assert!(!outbox.cancel(&pool, kept).await.unwrap());
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_keep_the_order_of_every_key_while_one_is_killed() {
    const KEYS: u64 = 50;
    const EACH: u64 = 40;
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let listening = client(&sandbox).await;
    let log = listener(&listening).await;
    let survivor = client(&sandbox).await;
    survivor
        .outbox()
        .relay(pool.clone())
        .lease_term(Duration::from_secs(2))
        .poll_every(Duration::from_millis(50))
        .start();

    // A relay that dies has a runtime, and a world, of its own.
    let victim = {
        let (pairs, options) = (sandbox.environment(), options(&sandbox));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let relayed = runtime.block_on(async {
                let config: MessagingConfig = Environment::from_pairs(pairs).read().unwrap();
                let messaging = Messaging::connect(config).await.unwrap();
                let pool = PgPool::connect_with(options).await.unwrap();
                let relay = messaging
                    .outbox()
                    .relay(pool)
                    .lease_term(Duration::from_secs(2))
                    .poll_every(Duration::from_millis(50))
                    .start();
                eventually("the victim has its share", || async {
                    relay.published() > 100
                })
                .await;
                relay.published()
            });
            // Everything of it stops where it is.
            runtime.shutdown_background();
            relayed
        })
    };

    let writer = client(&sandbox).await;
    let outbox = writer.outbox();
    // At least so many of each key, and until the victim has had its share and is gone.
    let mut each = 0;
    while each < EACH || !victim.is_finished() {
        let number = each;
        each += 1;
        let mut tasks = tokio::task::JoinSet::new();
        for key in 0..KEYS {
            let (outbox, pool) = (outbox.clone(), pool.clone());
            tasks.spawn(async move {
                let event = Placed {
                    number,
                    key: format!("order-{key}"),
                };
                let mut tx = pool.begin().await.unwrap();
                outbox.add(&mut *tx, &event).await.unwrap();
                tx.commit().await.unwrap();
            });
        }
        // The transactions of one key come one after another, as if they locked its row.
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    let relayed_by_victim = tokio::task::spawn_blocking(move || victim.join().unwrap())
        .await
        .unwrap();
    eventually("every event is handled", || async {
        let seen: std::collections::HashSet<_> = log.lock().iter().cloned().collect();
        seen.len() as u64 == KEYS * each
    })
    .await;
    eventually("the table is empty", || async { rows(&pool).await == 0 }).await;

    // First occurrences are in order; what came again is for the inbox.
    let mut next: HashMap<String, u64> = HashMap::new();
    let mut again = 0;
    for (key, number) in log.lock().iter() {
        let expected = next.entry(key.clone()).or_default();
        if number == expected {
            *expected += 1;
        } else {
            assert!(number < expected, "{key}: {number} came before {expected}");
            again += 1;
        }
    }
    println!(
        "events {}, relayed by the killed relay {relayed_by_victim}, again {again}, gaps 0",
        KEYS * each
    );
    writer.close().await;
    survivor.close().await;
    listening.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_lets_an_effect_happen_once_however_often_its_message_comes() {
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let id = uuid::Uuid::now_v7();
    let mut tasks = tokio::task::JoinSet::new();
    for attempt in 0..8 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut tx = pool.begin().await.unwrap();
            let first = Inbox.once(&mut *tx, "billing", id).await.unwrap();
            // The first who tries fails after its effect: then it did not happen.
            if first && attempt % 2 == 0 {
                tx.rollback().await.unwrap();
                return 0;
            }
            tx.commit().await.unwrap();
            u32::from(first)
        });
    }
    let mut effects = 0;
    while let Some(done) = tasks.join_next().await {
        effects += done.unwrap();
    }
    assert_eq!(effects, 1);
    assert!(Inbox.once(&pool, "shipping", id).await.unwrap());
    assert_eq!(
        Inbox.forget(&pool, Duration::from_hours(1)).await.unwrap(),
        0
    );
    assert_eq!(Inbox.forget(&pool, Duration::ZERO).await.unwrap(), 2);
    assert!(Inbox.once(&pool, "billing", id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_event_is_delivered_by_its_notification_long_before_the_next_poll() {
    const EVENTS: u64 = 100;
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let messaging = client(&sandbox).await;
    let log = listener(&messaging).await;
    let outbox = messaging.outbox();
    let started = Instant::now();
    outbox
        .relay(pool.clone())
        .listen(options(&sandbox))
        .poll_every(Duration::from_mins(1))
        .start();
    let mut times = Vec::new();
    for number in 0..EVENTS {
        let mut tx = pool.begin().await.unwrap();
        outbox.add(&mut *tx, &placed(number)).await.unwrap();
        tx.commit().await.unwrap();
        let committed = Instant::now();
        while log.lock().len() as u64 <= number {
            assert!(
                committed.elapsed() < Duration::from_secs(40),
                "event {number} waits for a poll"
            );
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push(committed.elapsed());
        if number == 0 {
            println!("the first, {:?} after the start", started.elapsed());
        }
    }
    let first = times.remove(0);
    times.sort_unstable();
    println!(
        "commit to handler: first {first:?}, then p50 {:?}, p99 {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times.last().unwrap()
    );
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_ends_once_and_its_age_duration_and_timeouts_are_measured() {
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let config: MessagingConfig = Environment::from_pairs(sandbox.environment())
        .read()
        .unwrap();
    let registry = maestro_metrics::Registry::detached();
    let messaging = Messaging::builder(config)
        .registry(&registry)
        .connect()
        .await
        .unwrap();
    let checkout = messaging.saga("checkout");
    for key in ["a", "b", "c"] {
        assert!(checkout.begin(&pool, key, "waiting").await.unwrap());
        assert!(!checkout.begin(&pool, key, "waiting").await.unwrap());
    }
    assert!(
        checkout
            .advance(&pool, "a", "waiting", "paid")
            .await
            .unwrap()
    );
    assert!(
        !checkout
            .advance(&pool, "a", "waiting", "lost")
            .await
            .unwrap()
    );
    // The timeout comes when the payment has won, and the other way round.
    assert!(!checkout.time_out(&pool, "a", "waiting").await.unwrap());
    assert!(checkout.time_out(&pool, "b", "waiting").await.unwrap());
    assert!(!checkout.finish(&pool, "b", "waiting").await.unwrap());

    messaging.outbox().relay(pool.clone()).start();
    let value = |name: &str| {
        let text = registry.text();
        let line = text.lines().find(|line| line.starts_with(name));
        line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    let age = |state: &str| {
        let labels = format!("saga=\"checkout\",state=\"{state}\"");
        let text = registry.text();
        let line = text.lines().find(|line| {
            line.starts_with("maestro_messaging_saga_oldest_age_seconds") && line.contains(&labels)
        });
        line.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    eventually("the ages are there", || async {
        age("waiting").is_some_and(|age| age > 0.0) && age("paid").is_some_and(|age| age > 0.0)
    })
    .await;
    assert_eq!(value("maestro_messaging_outbox_depth"), Some(0.0));
    assert_eq!(value("maestro_messaging_saga_timeouts_total"), Some(1.0));
    assert_eq!(
        value("maestro_messaging_saga_duration_seconds_count"),
        Some(1.0)
    );
    assert!(checkout.finish(&pool, "a", "paid").await.unwrap());
    eventually("nobody is in that state any more", || async {
        age("paid") == Some(0.0)
    })
    .await;
    messaging.close().await;
}
