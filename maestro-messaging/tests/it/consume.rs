//! Consuming: acknowledged after the handler, retried when it fails, drained without loss.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_messaging::{ConsumerState, HandlerError};
use parking_lot::Mutex;

use crate::support::{Placed, Raw, client, eventually, placed, sandbox};

type Seen = Arc<Mutex<HashMap<u64, u32>>>;

fn note(seen: &Seen, number: u64) -> u32 {
    let mut seen = seen.lock();
    let count = seen.entry(number).or_default();
    *count += 1;
    *count
}

#[tokio::test(flavor = "multi_thread")]
async fn services_start_in_any_order() {
    let orders = sandbox().await;
    let billing = orders.neighbour("billing").await.unwrap();
    // The subscriber first: the publisher's exchange does not exist yet.
    let subscriber = client(&billing, &[]).await;
    let seen = Seen::default();
    let handled = Arc::clone(&seen);
    let consumer = subscriber
        .subscription("invoices")
        .on("orders", move |event: Placed, _| {
            let handled = Arc::clone(&handled);
            async move {
                note(&handled, event.number);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    eventually("the subscriber waits for the publisher", || async {
        matches!(consumer.state(), ConsumerState::Degraded(reason) if reason.contains("orders.events"))
    })
    .await;
    let publisher = client(&orders, &[]).await;
    publisher.publish(&placed(0)).await.unwrap();
    consumer.ready().await;
    let receipt = publisher.publish(&placed(1)).await.unwrap();
    assert!(receipt.routed());
    eventually("the event is handled", || async {
        seen.lock().contains_key(&1)
    })
    .await;
    subscriber.close().await;
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_message_is_retried_on_every_rung_and_handled_when_it_succeeds() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, &[("RETRY_DELAYS", "100ms,200ms,300ms")]).await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&attempts);
    let consumer = messaging
        .subscription("flaky")
        .on("orders", move |event: Placed, context| {
            let noted = Arc::clone(&noted);
            async move {
                noted
                    .lock()
                    .push((event.number, context.attempt(), context.message_id()));
                match (event.number, context.attempt()) {
                    (1, 0) => Err("not yet")?,
                    (2, 0) => panic!("not yet"),
                    (3, 0) => std::future::pending().await,
                    (4, 0) => Err(HandlerError::retry_after(
                        Duration::from_millis(250),
                        "later",
                    )),
                    (5, attempt) if attempt < 3 => Err("still not")?,
                    _ => Ok(()),
                }
            }
        })
        .handler_timeout(Duration::from_millis(500))
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    let mut ids = HashMap::new();
    for number in 1..=5 {
        let receipt = messaging.publish(&placed(number)).await.unwrap();
        ids.insert(number, receipt.message_id());
    }
    eventually("every message is handled", || async {
        attempts.lock().len() == 2 * 4 + 4
    })
    .await;
    let raw = Raw::connect(&sandbox).await;
    eventually("nothing is left anywhere", || async {
        raw.depth("orders.flaky").await == Some(0)
            && raw.depth("orders.flaky.dlq").await == Some(0)
            && raw.depth("orders.retry.100ms").await == Some(0)
    })
    .await;
    for (number, attempt, id) in attempts.lock().iter() {
        assert_eq!(
            ids[number], *id,
            "attempt {attempt} of {number} has another identity"
        );
    }
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_nothing_and_handles_nothing_twice() {
    const MESSAGES: u64 = 2_000;
    let sandbox = sandbox().await;
    let seen = Seen::default();
    let publisher = client(&sandbox, &[]).await;
    let start = |seen: &Seen| {
        let (sandbox, seen) = (&sandbox, Arc::clone(seen));
        async move {
            let messaging = client(sandbox, &[]).await;
            let consumer = messaging
                .subscription("drained")
                .on("orders", move |event: Placed, _| {
                    let seen = Arc::clone(&seen);
                    async move {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        note(&seen, event.number);
                        Ok(())
                    }
                })
                .start()
                .await
                .unwrap();
            consumer.ready().await;
            (messaging, consumer)
        }
    };
    let (mut messaging, mut consumer) = start(&seen).await;
    let events: Vec<_> = (0..MESSAGES).map(placed).collect();
    let publishing = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish_batch(&events).await }
    });
    let mut handed_back = 0;
    for round in 1..=4 {
        eventually("some are handled", || async {
            seen.lock().len() as u64 >= round * MESSAGES / 6
        })
        .await;
        let drained = consumer.drain().await;
        assert_eq!(drained.abandoned, 0);
        handed_back += drained.handed_back;
        messaging.close().await;
        (messaging, consumer) = start(&seen).await;
    }
    let receipts = publishing.await.unwrap();
    assert!(receipts.iter().all(Result::is_ok));
    eventually("all are handled", || async {
        seen.lock().len() as u64 == MESSAGES
    })
    .await;
    let twice = seen.lock().values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0, "{twice} messages were handled twice");
    assert!(handed_back > 0, "the drain was never under load");
    println!("handled {MESSAGES}, handed back {handed_back}, twice 0, lost 0");
    messaging.close().await;
    publisher.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_comes_back_with_its_consumer() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, &[]).await;
    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let consumer = messaging
        .subscription("deleted")
        .on("orders", move |_: Placed, _| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    messaging.publish(&placed(1)).require_route().await.unwrap();
    eventually("the first is handled", || async {
        handled.load(Ordering::Relaxed) == 1
    })
    .await;
    Raw::connect(&sandbox).await.delete("orders.deleted").await;
    eventually("the queue is back", || async {
        messaging.publish(&placed(2)).require_route().await.is_ok()
    })
    .await;
    eventually("the second is handled", || async {
        handled.load(Ordering::Relaxed) >= 2
    })
    .await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_arguments_stops_its_own_consumer_only_and_says_what_differs() {
    let sandbox = sandbox().await;
    let before = client(&sandbox, &[]).await;
    let changed = before
        .subscription("changed")
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    changed.ready().await;
    before.close().await;

    let messaging = client(&sandbox, &[]).await;
    let handled = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&handled);
    let fine = messaging
        .subscription("fine")
        .on("orders", move |_: Placed, _| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    fine.ready().await;
    let changed = messaging
        .subscription("changed")
        .max_length(7)
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    eventually("the conflict is reported", || async {
        matches!(changed.state(), ConsumerState::Interrupted(reason) if reason.contains("x-max-length"))
    })
    .await;
    for number in 0..100 {
        messaging.publish(&placed(number)).await.unwrap();
    }
    eventually("the other consumer goes on", || async {
        handled.load(Ordering::Relaxed) == 100
    })
    .await;
    let health = messaging.health_check().run().await;
    assert_eq!(health.state(), maestro_metrics::HealthState::Degraded);
    assert!(
        health.reason().unwrap().contains("orders.changed"),
        "{health:?}"
    );
    messaging.close().await;
}
