//! In order, in batches, until a drain.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use maestro_messaging::{ConsumerState, HandlerError, Received};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Seen, World, different, event, listen};
use crate::support::{Placed, consuming, dead, eventually};

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
    eventually("all are handled", || async { different(&log) == EVENTS }).await;
    let mut last = HashMap::new();
    let mut seen = HashSet::new();
    for event in log.lock().iter() {
        // What comes again, after a connection was lost, has been in its place before.
        if seen.insert(event.number) {
            let before = last.insert(event.key.clone(), event.number);
            assert!(before < Some(event.number), "{event:?} after {before:?}");
        }
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
        different(&log) == 16 && tries.load(Ordering::Relaxed) > 4
    })
    .await;
    mended.store(true, Ordering::Relaxed);
    eventually("its key comes after it", || async { different(&log) == 20 }).await;
    let mut seen = HashSet::new();
    let of_its_key: Vec<_> = log
        .lock()
        .iter()
        .map(|event| event.number)
        .filter(|number| number % 5 == 0 && seen.insert(*number))
        .collect();
    assert_eq!(of_its_key, [0, 5, 10, 15]);
    dead(&messaging.dead_letters("parking"), 0).await;
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
        // All hundred make full batches, however slowly they come.
        .batch_wait(Duration::from_secs(5))
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
    eventually("all but one are handled", || async {
        different(&handled) == 99
    })
    .await;
    dead(&letters, 1).await;
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
    const HANDLERS: u64 = 32;
    let publisher = world.client("orders").await;
    let seen: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    // A handler ends when it is let through, so that every drain finds all of them at work.
    let gate = Arc::new(Semaphore::new(0));
    let start = async || {
        let messaging = world.client("orders").await;
        let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
        let consumer = messaging
            .subscription("drained")
            .concurrency(usize::try_from(HANDLERS).unwrap())
            .handler_timeout(Duration::from_mins(5))
            .on("orders", move |event: Placed, _| {
                let (seen, gate) = (Arc::clone(&seen), Arc::clone(&gate));
                async move {
                    gate.acquire().await?.forget();
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
    for receipt in publisher.publish_batch(&events).await {
        receipt.unwrap();
    }
    let (mut let_through, mut handed_back) = (0, 0);
    for _ in 0..4 {
        gate.add_permits(300);
        let_through += 300;
        eventually("some are handled", || async {
            seen.lock().len() as u64 == let_through
        })
        .await;
        eventually(
            "all handlers are at work, and more waits for them",
            || async {
                let ready = world.ready("orders.drained").await;
                ready.is_some_and(|ready| ready + let_through + HANDLERS < EVENTS)
            },
        )
        .await;
        // One more may begin while the drain does.
        let enough = usize::try_from(2 * HANDLERS).unwrap();
        let (drained, ()) = tokio::join!(consumer.drain(), async { gate.add_permits(enough) });
        assert_eq!(drained.abandoned, 0);
        gate.forget_permits(enough);
        let_through = seen.lock().len() as u64;
        handed_back += drained.handed_back;
        messaging.close().await;
        (messaging, consumer) = start().await;
    }
    gate.add_permits(usize::try_from(EVENTS).unwrap());
    eventually("all are handled", || async {
        seen.lock().len() as u64 == EVENTS
    })
    .await;
    let twice = seen.lock().values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0);
    assert!(handed_back > 0, "the drain was never under load");
    println!("handled {EVENTS}, handed back {handed_back}, twice {twice}, lost 0");
    consuming(&consumer).await;
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
