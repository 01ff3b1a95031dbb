//! What becomes of events whose handlers fail.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maestro_messaging::{DeadReason, ErrorKind, Filter, HandlerError};
use parking_lot::Mutex;

use super::{Seen, World, different, event};
use crate::support::{Placed, dead, eventually};

pub(super) async fn a_failure_is_retried_on_the_rungs_under_the_same_identity(world: &World) {
    let messaging = world.client("orders").await;
    let attempts: Arc<Mutex<Vec<_>>> = Arc::default();
    let noted = Arc::clone(&attempts);
    let consumer = messaging
        .subscription("flaky")
        .on("orders", move |event: Placed, context| {
            let attempt = context.attempt();
            noted
                .lock()
                .push((event.number, attempt, context.message_id()));
            async move {
                match (event.number, attempt) {
                    (1, 0..2) => Err("not yet")?,
                    (2, 0) => panic!("not yet"),
                    (3, 0) => std::future::pending().await,
                    (4, 0) => Err(HandlerError::retry_after(
                        Duration::from_millis(80),
                        "later",
                    )),
                    _ => Ok(()),
                }
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    let mut ids = HashMap::new();
    for number in 1..=4 {
        let receipt = messaging.publish(&event(number)).await.unwrap();
        ids.insert(number, receipt.message_id());
    }
    let wanted = [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (4, 0),
        (4, 1),
    ];
    eventually("all are handled", || async {
        let attempts = attempts.lock();
        let seen: HashSet<_> = attempts.iter().map(|(n, a, _)| (*n, *a)).collect();
        wanted.iter().all(|pair| seen.contains(pair))
    })
    .await;
    for (number, attempt, id) in attempts.lock().iter() {
        assert!(wanted.contains(&(*number, *attempt)), "{number}, {attempt}");
        assert_eq!(ids[number], *id, "attempt {attempt} of {number}");
    }
    let queues = [
        "orders.flaky",
        "orders.flaky.dlq",
        "orders.retry.50ms",
        "orders.retry.100ms",
    ];
    for queue in queues {
        eventually("nothing is left", || async {
            world.ready(queue).await == Some(0)
        })
        .await;
    }
    messaging.close().await;
}

pub(super) async fn dead_letters_have_reasons_and_come_back(world: &World) {
    let messaging = world.client("orders").await;
    let broken = Arc::new(AtomicBool::new(true));
    let handled = Seen::default();
    let (state, noted) = (Arc::clone(&broken), Arc::clone(&handled));
    let consumer = messaging
        .subscription("picky")
        .on("orders", move |event: Placed, _| {
            let (state, noted) = (Arc::clone(&state), Arc::clone(&noted));
            async move {
                if event.number == 13 {
                    return Err(HandlerError::dead_letter("thirteen"));
                }
                if state.load(Ordering::Relaxed) {
                    "x".parse::<i32>()?;
                }
                noted.lock().push(event);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    for number in [1, 2, 13] {
        messaging.publish(&event(number)).await.unwrap();
    }
    let letters = messaging.dead_letters("picky");
    dead(&letters, 3).await;
    let listed = letters.list(10).await.unwrap();
    let of = |reason| {
        let mut found: Vec<_> = listed.iter().filter(|l| l.reason == reason).collect();
        found.sort_by_key(|letter| letter.message_id);
        found
    };
    assert_eq!(of(DeadReason::Exhausted).len(), 2);
    let poison = of(DeadReason::Poison);
    assert_eq!(poison[0].error_message.as_deref(), Some("thirteen"));
    let exhausted = of(DeadReason::Exhausted)[0];
    assert_eq!(exhausted.attempts, 3);
    assert_eq!(exhausted.exchange.as_deref(), Some("orders.events"));
    assert_eq!(exhausted.routing_key.as_deref(), Some("order.placed.v1"));
    assert!(
        exhausted
            .error_type
            .as_ref()
            .unwrap()
            .contains("ParseIntError")
    );
    // Listing takes nothing away.
    dead(&letters, 3).await;

    let exhausted = Filter::all().reason(DeadReason::Exhausted);
    assert_eq!(letters.dry_run(exhausted.clone()).await.unwrap().taken, 2);
    // Nor does a dry run.
    dead(&letters, 3).await;
    broken.store(false, Ordering::Relaxed);
    let sorted = letters.replay(exhausted).await.unwrap();
    assert_eq!((sorted.taken, sorted.left, sorted.failed), (2, 1, 0));
    eventually("both are handled", || async { different(&handled) == 2 }).await;
    // What a replay leaves is back a moment after it.
    dead(&letters, 1).await;
    let refused = letters.purge(Filter::all(), "picky").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    let purged = letters.purge(Filter::all(), "orders.picky.dlq").await;
    assert_eq!(purged.unwrap().taken, 1);
    dead(&letters, 0).await;
    messaging.close().await;
}

pub(super) async fn what_waits_too_long_is_dead(world: &World) {
    let messaging = world.client("orders").await;
    let consumer = messaging
        .subscription("hasty")
        .time_to_live(Duration::from_millis(200))
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    consumer.drain().await;
    let receipt = messaging.publish(&event(1)).await.unwrap();
    let letters = messaging.dead_letters("hasty");
    dead(&letters, 1).await;
    let letter = letters.list(1).await.unwrap().remove(0);
    assert_eq!(letter.message_id, Some(receipt.message_id()));
    assert_eq!(letter.reason, DeadReason::Broker);
    assert_eq!(letter.error_type.as_deref(), Some("expired"));
    assert_eq!(letter.routing_key.as_deref(), Some("order.placed.v1"));
    messaging.close().await;
}
