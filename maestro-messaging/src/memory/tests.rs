use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::transport::Transport;
use crate::{ConsumerState, DeadReason, Event};

#[derive(serde::Serialize, serde::Deserialize)]
struct Placed(u64);

impl Event for Placed {
    const TYPE: &'static str = "order.placed.v1";
}

async fn counting(messaging: &Messaging) -> (Arc<AtomicU64>, crate::Consumer) {
    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let consumer = messaging
        .subscription("counting")
        .on("orders", move |_: Placed, _| {
            counter.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    (handled, consumer)
}

#[tokio::test(start_paused = true)]
async fn a_stopped_broker_makes_publishes_wait_and_keeps_what_it_holds() {
    let broker = MemoryBroker::new();
    let messaging = broker.connect("orders").await.unwrap();
    let (handled, consumer) = counting(&messaging).await;
    consumer.drain().await;
    messaging.publish(&Placed(1)).await.unwrap();
    broker.stop();
    let event = Placed(2);
    let error = messaging.publish(&event).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let health = messaging.health_check().run().await;
    assert!(health.reason().unwrap().contains("stopped"), "{health:?}");
    let waiting = messaging.publish(&event).into_future();
    let starting = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        broker.start();
    };
    let (published, ()) = tokio::join!(waiting, starting);
    assert!(published.unwrap().routed());
    assert_eq!(broker.ready("orders.counting"), Some(2));
    messaging.close().await;
    let again = broker.connect("orders").await.unwrap();
    let (more, consumer) = counting(&again).await;
    while more.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(consumer.state(), ConsumerState::Consuming);
    assert_eq!(handled.load(Ordering::Relaxed), 0);
    again.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_given_back_too_often_is_dead() {
    let broker = MemoryBroker::new();
    let messaging = broker.connect("orders").await.unwrap();
    let (_, consumer) = counting(&messaging).await;
    consumer.drain().await;
    messaging.publish(&Placed(1)).await.unwrap();
    let client = broker.transport(messaging.inner().service());
    for _ in 0..20 {
        let mut deliveries = client.browse("orders.counting", 1).await.unwrap();
        deliveries.next().await.unwrap().unwrap();
        deliveries.close().await;
        assert_eq!(broker.ready("orders.counting"), Some(1));
    }
    let mut last = client.browse("orders.counting", 1).await.unwrap();
    let delivery = last.next().await.unwrap().unwrap();
    assert!(delivery.redelivered);
    delivery.settle.requeue().await.unwrap();
    last.close().await;
    let letters = messaging.dead_letters("counting").list(1).await.unwrap();
    assert_eq!(letters[0].reason, DeadReason::Broker);
    assert_eq!(letters[0].error_type.as_deref(), Some("delivery_limit"));
    messaging.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_not_told_of_its_queues_end_finds_out_and_comes_back() {
    let broker = MemoryBroker::new();
    let messaging = broker.connect("orders").await.unwrap();
    let (handled, consumer) = counting(&messaging).await;
    broker.shared.change(|state| state.lose("orders.counting"));
    let again = async {
        while messaging.publish(&Placed(1)).require_route().await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let within = Duration::from_mins(1);
    tokio::time::timeout(within, again).await.unwrap();
    while handled.load(Ordering::Relaxed) < 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(consumer.state(), ConsumerState::Consuming);
    messaging.close().await;
}

#[tokio::test(start_paused = true)]
async fn every_replica_finds_out_that_its_queue_was_replaced_by_another_ones() {
    let broker = MemoryBroker::new();
    let began = Arc::new(AtomicU64::new(0));
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let messaging = broker.connect("orders").await.unwrap();
        let began = Arc::clone(&began);
        let consumer = messaging
            .subscription("counting")
            .prefetch(1)
            .handler_timeout(Duration::from_hours(1))
            .on("orders", move |_: Placed, _| {
                began.fetch_add(1, Ordering::Relaxed);
                std::future::pending()
            })
            .start()
            .await
            .unwrap();
        consumer.ready().await;
        replicas.push(messaging);
        // They do not look at the same time: the first one back makes the queue again.
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    broker.shared.change(|state| state.lose("orders.counting"));
    let both_work = async {
        while began.load(Ordering::Relaxed) < 2 {
            let _ = replicas[0].publish(&Placed(1)).require_route().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let within = Duration::from_mins(5);
    tokio::time::timeout(within, both_work).await.unwrap();
    for messaging in replicas {
        messaging.close().await;
    }
}
