//! The broker is killed, paused, cut off, out of memory: nothing is lost, and all goes on by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_messaging::{ConsumerState, ErrorKind, Messaging};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{
    Ignored, Placed, Raw, break_queue, client, consuming, dedicated, eventually, limit_channels,
    placed, publish_for_sure, sandbox, set_memory_limit, within,
};

/// What a subscription has seen, by message identity: how often.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<Uuid, u32>>>);

impl Ledger {
    async fn subscribe(&self, messaging: &Messaging, name: &str) -> maestro_messaging::Consumer {
        let ledger = self.clone();
        messaging
            .subscription(name)
            .on("orders", move |_: Placed, context| {
                let ledger = ledger.clone();
                async move {
                    *ledger.0.lock().entry(context.message_id()).or_default() += 1;
                    Ok(())
                }
            })
            .start()
            .await
            .unwrap()
    }

    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_up_last_finds_the_service_waiting() {
    let (stack, sandbox) = dedicated().await;
    let broker = stack.rabbitmq().unwrap();
    broker.stop().await.unwrap();
    let messaging = client(&sandbox, &[("CONFIRM_TIMEOUT", "180s")]).await;
    let ledger = Ledger::default();
    // There is no broker yet: a start that waited for one would not come to an end.
    let starting = ledger.subscribe(&messaging, "early");
    let consumer = tokio::time::timeout(Duration::from_mins(1), starting)
        .await
        .unwrap();
    let health = messaging.health_check().run().await;
    assert_eq!(health.state(), maestro_metrics::HealthState::Unhealthy);
    assert!(!messaging.health_check().is_critical());
    // A publish that is already waiting goes out with the broker's return.
    let waiting = tokio::spawn({
        let messaging = messaging.clone();
        async move { messaging.publish(&placed(1)).await }
    });
    broker.start().await.unwrap();
    let back = Instant::now();
    within(
        Duration::from_mins(2),
        "the service is ready by itself",
        || async { consumer.state() == ConsumerState::Consuming },
    )
    .await;
    println!("consuming {:?} after the broker's return", back.elapsed());
    waiting.await.unwrap().unwrap();
    messaging.publish(&placed(2)).require_route().await.unwrap();
    eventually("it is handled", || async { ledger.len() >= 1 }).await;
    eventually("it is healthy", || async {
        let health = messaging.health_check().run().await;
        health.state() == maestro_metrics::HealthState::Healthy
    })
    .await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_paused_for_thirty_seconds_loses_nothing() {
    const MESSAGES: u64 = 2_000;
    let (stack, sandbox) = dedicated().await;
    let broker = stack.rabbitmq().unwrap();
    let messaging = client(&sandbox, &[("CONFIRM_TIMEOUT", "5s")]).await;
    let ledger = Ledger::default();
    let consumer = ledger.subscribe(&messaging, "patient").await;
    consumer.ready().await;
    let retries = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..20 {
        let (messaging, retries) = (messaging.clone(), Arc::clone(&retries));
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for number in 0..MESSAGES / 20 {
                ids.push(publish_for_sure(&messaging, task * 1_000 + number, &retries).await);
            }
            ids
        });
    }
    eventually("some are handled", || async { ledger.len() > 200 }).await;
    broker.pause().await.unwrap();
    // No publish hangs beyond its deadline while the broker is silent.
    let asked = Instant::now();
    let error = messaging
        .publish(&placed(1))
        .deadline(Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    assert!(error.is_transient(), "{error}");
    tokio::time::sleep(Duration::from_secs(28)).await;
    broker.resume().await.unwrap();
    let mut sent = Vec::new();
    while let Some(ids) = tasks.join_next().await {
        sent.extend(ids.unwrap());
    }
    eventually("every confirmed message is handled", || async {
        let seen = ledger.0.lock();
        sent.iter().all(|id| seen.contains_key(id))
    })
    .await;
    println!(
        "sent {} retried {} handled {} lost 0",
        sent.len(),
        retries.load(Ordering::Relaxed),
        ledger.0.lock().values().sum::<u32>()
    );
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_alarm_makes_publishes_wait_and_consumers_go_on() {
    let (stack, sandbox) = dedicated().await;
    let broker = stack.rabbitmq().unwrap();
    let messaging = client(&sandbox, &[]).await;
    let ledger = Ledger::default();
    let consumer = ledger.subscribe(&messaging, "alarmed").await;
    consumer.ready().await;
    messaging.publish(&placed(1)).await.unwrap();
    eventually("the first is handled", || async { ledger.len() >= 1 }).await;

    set_memory_limit(&broker, "0.0000001").await;
    // The broker blocks a connection when it publishes, from a moment after the alarm on.
    eventually("a publish waits in vain", || async {
        let published = messaging
            .publish(&placed(2))
            .deadline(Duration::from_secs(2))
            .await;
        let Err(error) = published else {
            return false;
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Unconfirmed | ErrorKind::Unavailable
            ),
            "{error}"
        );
        true
    })
    .await;
    eventually("health says so", || async {
        let health = messaging.health_check().run().await;
        health
            .reason()
            .is_some_and(|reason| reason.contains("alarm"))
    })
    .await;
    let waiting = tokio::spawn({
        let messaging = messaging.clone();
        async move {
            messaging
                .publish(&placed(3))
                .deadline(Duration::from_mins(2))
                .await
        }
    });
    set_memory_limit(&broker, "0.9").await;
    waiting.await.unwrap().unwrap();
    eventually("it is handled", || async { ledger.len() >= 2 }).await;
    consuming(&consumer).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_breaks_again_and_again_loses_nothing() {
    const MESSAGES: u64 = 3_000;
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, &[]).await;
    let ledger = Ledger::default();
    let consumer = ledger.subscribe(&messaging, "shaken").await;
    consumer.ready().await;
    let retries = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..20 {
        let (messaging, retries) = (messaging.clone(), Arc::clone(&retries));
        tasks.spawn(async move {
            let mut ids = Vec::new();
            for number in 0..MESSAGES / 20 {
                ids.push(publish_for_sure(&messaging, task * 1_000 + number, &retries).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            ids
        });
    }
    for round in 1..=6 {
        eventually("some are handled", || async {
            ledger.len() as u64 >= round * 300
        })
        .await;
        sandbox.messaging_link().reset().await.unwrap();
    }
    let mut sent = Vec::new();
    while let Some(ids) = tasks.join_next().await {
        sent.extend(ids.unwrap());
    }
    eventually("every confirmed message is handled", || async {
        let seen = ledger.0.lock();
        sent.iter().all(|id| seen.contains_key(id))
    })
    .await;
    println!(
        "sent {} retried {} handled {} lost 0",
        sent.len(),
        retries.load(Ordering::Relaxed),
        ledger.0.lock().values().sum::<u32>()
    );
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_the_broker_fails_over_leaves_the_other_consumers_at_work() {
    let (stack, sandbox) = dedicated().await;
    let broker = stack.rabbitmq().unwrap();
    let messaging = client(&sandbox, &[]).await;
    let broken = || {
        messaging
            .subscription("broken")
            .on("orders", |_: Ignored, _| async { Ok(()) })
            .start()
    };
    let before = broken().await.unwrap();
    before.ready().await;
    before.drain().await;
    let ledger = Ledger::default();
    let fine = ledger.subscribe(&messaging, "fine").await;
    fine.ready().await;
    let vhost = Raw::vhost(&sandbox);
    break_queue(&broker, &vhost, "orders.broken").await;

    let consumer = broken().await.unwrap();
    eventually("it tells what to look at", || async {
        matches!(consumer.state(), ConsumerState::Interrupted(reason) if reason.contains("orders.broken"))
    })
    .await;
    consuming(&fine).await;
    // Had the one tried on as fast as others do, the connection would be lost every few seconds.
    let mut interrupted = 0;
    let mut last = fine.state();
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        let now = fine.state();
        let was_fine = last == ConsumerState::Consuming;
        interrupted += u32::from(was_fine && now != ConsumerState::Consuming);
        last = now;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("interrupted {interrupted} times in 15 s");
    assert!(interrupted <= 2, "interrupted {interrupted} times");
    consuming(&fine).await;
    let handled = ledger.len();
    messaging.publish(&placed(1)).require_route().await.unwrap();
    eventually("it is handled", || async { ledger.len() > handled }).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_subscriptions_than_a_connection_has_channels_are_all_at_work() {
    const SUBSCRIPTIONS: usize = 25;
    let (stack, sandbox) = dedicated().await;
    // The broker's limit is asked for where it is lower than ours.
    limit_channels(&stack.rabbitmq().unwrap(), 20).await;
    let messaging = client(&sandbox, &[]).await;
    let mut all = Vec::new();
    for index in 0..SUBSCRIPTIONS {
        let ledger = Ledger::default();
        let consumer = ledger
            .subscribe(&messaging, &format!("channel-{index}"))
            .await;
        all.push((ledger, consumer));
    }
    for round in 1..=2 {
        for (_, consumer) in &all {
            consuming(consumer).await;
        }
        messaging
            .publish(&placed(round))
            .require_route()
            .await
            .unwrap();
        eventually("each has it", || async {
            all.iter().all(|(ledger, _)| ledger.len() as u64 >= round)
        })
        .await;
        let health = messaging.health_check().run().await;
        assert_eq!(health.state(), maestro_metrics::HealthState::Healthy);
        // All of them come back together.
        sandbox.messaging_link().reset().await.unwrap();
        eventually("they notice", || async {
            let states = all.iter().map(|(_, consumer)| consumer.state());
            states
                .into_iter()
                .any(|state| state != ConsumerState::Consuming)
        })
        .await;
    }
    messaging.close().await;
}
