//! Order of keys.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_messaging::{Consumer, DeadReason, ErrorKind, HandlerError, Messaging};
use parking_lot::Mutex;

use crate::support::{Placed, Raw, client, dead, eventually, sandbox};

/// What was handled, in order, and whether two of one key ever were at the same time.
#[derive(Clone, Default)]
struct Log {
    handled: Arc<Mutex<Vec<(String, u64)>>>,
    together: Arc<AtomicU64>,
}

impl Log {
    /// How many different events it holds.
    fn different(&self) -> u64 {
        let handled: HashSet<_> = self.handled.lock().iter().cloned().collect();
        handled.len() as u64
    }

    /// What comes again, after a connection was lost, has been in its place before.
    fn assert_ordered(&self) {
        let (mut last, mut seen) = (HashMap::new(), HashSet::new());
        for (key, number) in self.handled.lock().iter() {
            if seen.insert((key.clone(), *number)) {
                let before = last.insert(key.clone(), *number);
                assert!(before < Some(*number), "{key}: {number} after {before:?}");
            }
        }
        assert_eq!(
            self.together.load(Ordering::Relaxed),
            0,
            "two of a key at a time"
        );
    }
}

const FAST: &[(&str, &str)] = &[("RETRY_DELAYS", "20ms,30ms"), ("CONCURRENCY", "8")];

fn event(key: u64, number: u64) -> Placed {
    Placed {
        number,
        key: format!("key-{key}"),
    }
}

/// Every seventh event of a key fails twice; number 13 of key 3 fails for good.
async fn ordered(messaging: &Messaging, log: &Log) -> Consumer {
    let log = log.clone();
    let busy: Arc<Mutex<HashSet<String>>> = Arc::default();
    let consumer = messaging
        .subscription("ordered")
        .ordered()
        .on("orders", move |event: Placed, context| {
            let (log, busy) = (log.clone(), Arc::clone(&busy));
            async move {
                if !busy.lock().insert(event.key.clone()) {
                    log.together.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                busy.lock().remove(&event.key);
                if event.key == "key-3" && event.number == 13 {
                    return Err(HandlerError::dead_letter("thirteen"));
                }
                if event.number.is_multiple_of(7) && context.attempt() < 2 {
                    Err("not yet")?;
                }
                log.handled.lock().push((event.key, event.number));
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    consumer
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_key_are_handled_in_order_although_some_fail() {
    const KEYS: u64 = 20;
    const EACH: u64 = 30;
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, FAST).await;
    let log = Log::default();
    let _consumer = ordered(&messaging, &log).await;
    for number in 0..EACH {
        let events: Vec<_> = (0..KEYS).map(|key| event(key, number)).collect();
        for receipt in messaging.publish_batch(&events).await {
            receipt.unwrap();
        }
    }
    eventually("all are handled", || async {
        log.different() == KEYS * EACH - 1
    })
    .await;
    log.assert_ordered();
    let letters = messaging.dead_letters("ordered");
    dead(&letters, 1).await;
    let letters = letters.list(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, DeadReason::Poison);
    let raw = Raw::connect(&sandbox).await;
    raw.holds("orders.retry.20ms", 0).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_replica_hands_an_ordered_queue_over_without_breaking_the_order() {
    const KEYS: u64 = 10;
    const EACH: u64 = 200;
    let sandbox = sandbox().await;
    let log = Log::default();
    let first = client(&sandbox, FAST).await;
    let second = client(&sandbox, FAST).await;
    let leading = ordered(&first, &log).await;
    ordered(&second, &log).await;
    let publishing = tokio::spawn({
        let publisher = client(&sandbox, FAST).await;
        async move {
            for number in 0..EACH {
                let events: Vec<_> = (0..KEYS).map(|key| event(key, number)).collect();
                for receipt in publisher.publish_batch(&events).await {
                    receipt.unwrap();
                }
            }
            publisher.close().await;
        }
    });
    eventually("some are handled", || async {
        log.different() > KEYS * EACH / 4
    })
    .await;
    let drained = leading.drain().await;
    assert_eq!(drained.abandoned, 0);
    publishing.await.unwrap();
    eventually("all are handled", || async {
        log.different() == KEYS * EACH - 1
    })
    .await;
    log.assert_ordered();
    println!(
        "handled {}, handed back {}, out of order 0",
        log.different(),
        drained.handed_back
    );
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_together_is_refused_at_the_start() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, FAST).await;
    let refused = [
        messaging.subscription("nothing").start().await,
        messaging
            .subscription("Not a name")
            .on("orders", |_: Placed, _| async { Ok(()) })
            .start()
            .await,
        messaging
            .subscription("twice")
            .on("orders", |_: Placed, _| async { Ok(()) })
            .on("orders", |_: Placed, _| async { Ok(()) })
            .start()
            .await,
        messaging
            .subscription("both")
            .ordered()
            .on_batch(
                "orders",
                |_: Vec<maestro_messaging::Received<Placed>>| async { Ok(()) },
            )
            .start()
            .await,
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Config);
    }
    messaging.close().await;
}
