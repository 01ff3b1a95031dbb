//! Publishing: every outcome is reported, and reported of the right message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_messaging::{ErrorKind, Messaging};

use crate::support::{Ignored, Placed, Raw, Surplus, client, eventually, placed, sandbox};

/// A queue for `Placed`, and a full one for `Surplus`, declared by a service that then goes away.
async fn bound(sandbox: &maestro_testkit::Sandbox) {
    let messaging = client(sandbox, &[]).await;
    let open = messaging
        .subscription("open")
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    let full = messaging
        .subscription("full")
        .max_length(50)
        .on("orders", |_: Surplus, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    open.ready().await;
    full.ready().await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_says_whether_anybody_listens() {
    let sandbox = sandbox().await;
    bound(&sandbox).await;
    let messaging = client(&sandbox, &[]).await;
    let receipt = messaging.publish(&placed(1)).await.unwrap();
    assert!(receipt.routed());
    let receipt = messaging.publish(&Ignored { number: 1 }).await.unwrap();
    assert!(!receipt.routed());
    let error = messaging
        .publish(&Ignored { number: 2 })
        .require_route()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable, "{error}");
    let raw = Raw::connect(&sandbox).await;
    raw.holds("orders.open", 1).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_many_tasks_every_outcome_is_the_brokers_own() {
    const TASKS: u64 = 64;
    const EACH: u64 = 300;
    let sandbox = sandbox().await;
    bound(&sandbox).await;
    let messaging = client(&sandbox, &[]).await;
    let counts: Arc<[AtomicU64; 6]> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let messaging = messaging.clone();
        let counts = Arc::clone(&counts);
        tasks.spawn(async move {
            for number in 0..EACH {
                let which = (task + number) % 3;
                let index = match publish(&messaging, which, number).await {
                    Ok(true) => 0,
                    Ok(false) => 1,
                    Err(ErrorKind::Rejected) => 2,
                    Err(kind) => panic!("{kind:?}"),
                };
                // What is published to nobody must be unrouted, and nothing else may be.
                match (which, index) {
                    (0, 0) | (1, 1) | (2, 0 | 2) => {}
                    other => panic!("event {} was reported as {}", other.0, other.1),
                }
                counts[index].fetch_add(1, Ordering::Relaxed);
                if which == 2 && index == 0 {
                    counts[3].fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
    let [stored, unrouted, refused, stored_in_full, ..] =
        counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    let raw = Raw::connect(&sandbox).await;
    eventually("the broker counts what was confirmed", || async {
        raw.depth("orders.open").await == u32::try_from(stored - stored_in_full).ok()
            && raw.depth("orders.full").await == u32::try_from(stored_in_full).ok()
    })
    .await;
    assert_eq!(stored + unrouted + refused, TASKS * EACH);
    println!(
        "sent {} confirmed {stored} unrouted {unrouted} refused {refused} lost 0",
        TASKS * EACH
    );
    messaging.close().await;
}

async fn publish(messaging: &Messaging, which: u64, number: u64) -> Result<bool, ErrorKind> {
    let receipt = match which {
        0 => messaging.publish(&placed(number)).await,
        1 => messaging.publish(&Ignored { number }).await,
        _ => messaging.publish(&Surplus { number }).await,
    };
    receipt.map(|r| r.routed()).map_err(|e| e.kind())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_a_broker_fails_at_its_deadline_and_says_it_was_not_sent() {
    let sandbox = sandbox().await;
    sandbox.messaging_link().cut().await.unwrap();
    let messaging = client(&sandbox, &[]).await;
    let error = messaging
        .publish(&placed(1))
        .deadline(Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(!error.may_be_stored());
    assert!(error.to_string().contains("not sent"), "{error}");
    sandbox.messaging_link().restore().await.unwrap();
    // The client recovers by itself.
    eventually("the broker is reached again", || async {
        messaging.publish(&placed(2)).await.is_ok()
    })
    .await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_without_an_answer_may_be_stored() {
    let sandbox = sandbox().await;
    bound(&sandbox).await;
    let messaging = client(&sandbox, &[]).await;
    messaging.publish(&placed(1)).await.unwrap();
    // The message passes, the confirm does not.
    sandbox.messaging_link().blackhole_replies().await.unwrap();
    let error = messaging
        .publish(&placed(2))
        // Long enough for it to be sent, however late its task has its turn.
        .deadline(Duration::from_secs(5))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unconfirmed, "{error}");
    assert!(error.may_be_stored());
    let raw = Raw::connect(&sandbox).await;
    raw.holds("orders.open", 2).await;
    sandbox.messaging_link().restore().await.unwrap();
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_in_flight_together_and_every_event_has_its_own_result() {
    let sandbox = sandbox().await;
    bound(&sandbox).await;
    let messaging = client(&sandbox, &[]).await;
    let events: Vec<_> = (0..2_000).map(placed).collect();
    let receipts = messaging.publish_batch(&events).await;
    assert_eq!(receipts.len(), events.len());
    assert!(
        receipts
            .iter()
            .all(|r| r.as_ref().is_ok_and(maestro_messaging::Receipt::routed))
    );
    let raw = Raw::connect(&sandbox).await;
    raw.holds("orders.open", 2_000).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_larger_than_the_broker_takes_is_refused_before_it_harms_others() {
    let sandbox = sandbox().await;
    bound(&sandbox).await;
    let messaging = client(&sandbox, &[]).await;
    let mut huge = placed(1);
    huge.key = "k".repeat(300);
    let error = messaging.publish(&huge).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
    messaging.publish(&placed(2)).await.unwrap();
    messaging.close().await;
}
