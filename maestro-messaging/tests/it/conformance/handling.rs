//! In order, in batches, until a drain.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use maestro_messaging::{ConsumerState, HandlerError, Received};
use parking_lot::Mutex;

use super::{Seen, World, event, listen};
use crate::support::{Placed, eventually};

pub(super) async fn events_of_a_key_stay_in_order_over_failures_and_a_handover(world: &World) {
    const EVENTS: u64 = 300;
    let log = Seen::default();
    let start = async || {
        let messaging = world.client("orders").await;
        let log = Arc::clone(&log);
        let consumer = messaging
            .subscription("ordered")
            .ordered()
            .on("orders", move |event: Placed, context| {
                let log = Arc::clone(&log);
                async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    if event.number.is_multiple_of(37) && context.attempt() == 0 {
                        Err("not yet")?;
                    }
                    log.lock().push(event);
                    Ok(())
                }
            })
            .start()
            .await
            .unwrap();
        consumer.ready().await;
        (messaging, consumer)
    };
    let (first, leading) = start().await;
    let (second, _standing_by) = start().await;
    for number in 0..EVENTS {
        first.publish(&event(number)).await.unwrap();
        if number == EVENTS / 2 {
            assert_eq!(leading.drain().await.abandoned, 0);
        }
    }
    eventually("all are handled", || async {
        log.lock().len() as u64 == EVENTS
    })
    .await;
    let mut last = HashMap::new();
    for event in log.lock().iter() {
        let before = last.insert(event.key.clone(), event.number);
        assert!(before < Some(event.number), "{event:?} after {before:?}");
    }
    first.close().await;
    second.close().await;
}

pub(super) async fn a_parked_key_waits_for_its_event_while_others_pass(world: &World) {
    let messaging = world.client("orders").await;
    let (mended, tries) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let log = Seen::default();
    let (state, failing, noted) = (Arc::clone(&mended), Arc::clone(&tries), Arc::clone(&log));
    let consumer = messaging
        .subscription("parking")
        .ordered()
        .park_keys()
        .on("orders", move |event: Placed, _| {
            let (state, failing, noted) = (state.clone(), failing.clone(), noted.clone());
            async move {
                if event.number == 0 && !state.load(Ordering::Relaxed) {
                    failing.fetch_add(1, Ordering::Relaxed);
                    Err("not before it is mended")?;
                }
                noted.lock().push(event);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    for number in 0..20 {
        messaging.publish(&event(number)).await.unwrap();
    }
    // Three attempts are what the ladder of two allows.
    eventually("the others pass, and it is tried on", || async {
        log.lock().len() == 16 && tries.load(Ordering::Relaxed) > 4
    })
    .await;
    mended.store(true, Ordering::Relaxed);
    eventually("its key comes after it", || async {
        log.lock().len() == 20
    })
    .await;
    let of_its_key: Vec<_> = log
        .lock()
        .iter()
        .map(|event| event.number)
        .filter(|number| number % 5 == 0)
        .collect();
    assert_eq!(of_its_key, [0, 5, 10, 15]);
    let letters = messaging.dead_letters("parking");
    assert_eq!(letters.count().await.unwrap(), 0);
    messaging.close().await;
}

pub(super) async fn a_batch_is_handled_together_and_a_bad_event_fails_alone(world: &World) {
    let messaging = world.client("orders").await;
    let sizes: Arc<Mutex<Vec<usize>>> = Arc::default();
    let handled = Seen::default();
    let (noted, done) = (Arc::clone(&sizes), Arc::clone(&handled));
    let consumer = messaging
        .subscription("batched")
        .batch_size(20)
        .on_batch("orders", move |batch: Vec<Received<Placed>>| {
            let (noted, done) = (Arc::clone(&noted), Arc::clone(&done));
            async move {
                if batch.iter().any(|received| received.event.number == 50) {
                    return Err(HandlerError::dead_letter("fifty"));
                }
                noted.lock().push(batch.len());
                done.lock()
                    .extend(batch.into_iter().map(|received| received.event));
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    let events: Vec<_> = (0..100).map(event).collect();
    for receipt in messaging.publish_batch(&events).await {
        receipt.unwrap();
    }
    let letters = messaging.dead_letters("batched");
    eventually("all but one are handled, and one is dead", || async {
        handled.lock().len() == 99 && letters.count().await.unwrap() == 1
    })
    .await;
    let most = sizes.lock().iter().copied().max().unwrap();
    assert!((2..=20).contains(&most), "{most}");
    eventually("the queue is empty", || async {
        world.ready("orders.batched").await == Some(0)
    })
    .await;
    messaging.close().await;
}

#[expect(clippy::print_stdout, reason = "the figures of the scenario")]
pub(super) async fn a_drain_loses_nothing_and_handles_nothing_twice(world: &World) {
    const EVENTS: u64 = 2_000;
    let publisher = world.client("orders").await;
    let seen: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let start = async || {
        let messaging = world.client("orders").await;
        let seen = Arc::clone(&seen);
        let consumer = messaging
            .subscription("drained")
            .on("orders", move |event: Placed, _| {
                let seen = Arc::clone(&seen);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    *seen.lock().entry(event.number).or_default() += 1;
                    Ok(())
                }
            })
            .start()
            .await
            .unwrap();
        consumer.ready().await;
        (messaging, consumer)
    };
    let (mut messaging, mut consumer) = start().await;
    let events: Vec<_> = (0..EVENTS).map(event).collect();
    let publishing = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish_batch(&events).await }
    });
    let mut handed_back = 0;
    for round in 1..=4 {
        eventually("some are handled", || async {
            seen.lock().len() as u64 >= round * EVENTS / 6
        })
        .await;
        let drained = consumer.drain().await;
        assert_eq!(drained.abandoned, 0);
        handed_back += drained.handed_back;
        messaging.close().await;
        (messaging, consumer) = start().await;
    }
    assert!(publishing.await.unwrap().iter().all(Result::is_ok));
    eventually("all are handled", || async {
        seen.lock().len() as u64 == EVENTS
    })
    .await;
    let twice = seen.lock().values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0);
    assert!(handed_back > 0, "the drain was never under load");
    println!("handled {EVENTS}, handed back {handed_back}, twice {twice}, lost 0");
    assert_eq!(consumer.state(), ConsumerState::Consuming);
    messaging.close().await;
    publisher.close().await;
}

pub(super) async fn a_drained_subscription_can_be_started_again_at_once(world: &World) {
    let messaging = world.client("orders").await;
    for round in 0..50 {
        let (_, consumer) = listen(&messaging, "again").await;
        consumer.drain().await;
        assert_eq!(consumer.state(), ConsumerState::Stopped, "round {round}");
    }
    messaging.close().await;
}
