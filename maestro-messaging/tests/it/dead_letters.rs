//! What cannot be handled waits with its reason, and can be brought back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use maestro_messaging::{Consumer, DeadReason, ErrorKind, Filter, HandlerError, Messaging};
use uuid::Uuid;

use crate::support::{Placed, Raw, client, consuming, dead, eventually, placed, sandbox};

struct Picky {
    broken: AtomicBool,
    handled: AtomicU64,
}

async fn picky(messaging: &Messaging) -> (Arc<Picky>, Consumer) {
    let picky = Arc::new(Picky {
        broken: AtomicBool::new(true),
        handled: AtomicU64::new(0),
    });
    let state = Arc::clone(&picky);
    let consumer = messaging
        .subscription("picky")
        .on("orders", move |event: Placed, _| {
            let state = Arc::clone(&state);
            async move {
                if event.number == 666 {
                    return Err(HandlerError::dead_letter("a number nobody wants"));
                }
                if state.broken.load(Ordering::Relaxed) {
                    "x".parse::<i32>()?;
                }
                state.handled.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    (picky, consumer)
}

const FAST: &[(&str, &str)] = &[("RETRY_DELAYS", "20ms,30ms")];

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_tell_their_reason_and_are_replayed_twice() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, FAST).await;
    let (state, _consumer) = picky(&messaging).await;
    let letters = messaging.dead_letters("picky");
    for number in 0..5 {
        messaging.publish(&placed(number)).await.unwrap();
    }
    messaging.publish(&placed(666)).await.unwrap();
    dead(&letters, 6).await;

    let listed = letters.list(100).await.unwrap();
    assert_eq!(listed.len(), 6);
    let exhausted: Vec<_> = listed
        .iter()
        .filter(|l| l.reason == DeadReason::Exhausted)
        .collect();
    assert_eq!(exhausted.len(), 5);
    let letter = exhausted[0];
    assert_eq!(letter.attempts, 3);
    assert_eq!(letter.exchange.as_deref(), Some("orders.events"));
    assert_eq!(letter.routing_key.as_deref(), Some("order.placed.v1"));
    assert!(
        letter
            .error_type
            .as_ref()
            .unwrap()
            .contains("ParseIntError")
    );
    assert!(letter.first_failed_at.unwrap() <= letter.last_failed_at.unwrap());
    let poison = listed
        .iter()
        .find(|l| l.reason == DeadReason::Poison)
        .unwrap();
    assert_eq!(
        poison.error_message.as_deref(),
        Some("a number nobody wants")
    );
    // Listing takes nothing away.
    dead(&letters, 6).await;

    let filter = Filter::all().reason(DeadReason::Exhausted);
    assert_eq!(letters.dry_run(filter.clone()).await.unwrap().taken, 5);
    dead(&letters, 6).await;
    let sorted = letters.replay(filter.clone()).await.unwrap();
    assert_eq!((sorted.taken, sorted.left, sorted.failed), (5, 1, 0));
    // Those that were replayed die again, and the other one is back.
    dead(&letters, 6).await;
    let again = letters.list(100).await.unwrap();
    assert!(
        again
            .iter()
            .filter(|l| l.reason == DeadReason::Exhausted)
            .all(|l| l.replays == 1)
    );

    state.broken.store(false, Ordering::Relaxed);
    // What was listed is back a moment after it.
    dead(&letters, 6).await;
    assert_eq!(letters.replay(filter).await.unwrap().taken, 5);
    eventually("all are handled", || async {
        state.handled.load(Ordering::Relaxed) >= 5
    })
    .await;
    dead(&letters, 1).await;
    let error = letters.purge(Filter::all(), "picky").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(
        letters
            .purge(Filter::all(), "orders.picky.dlq")
            .await
            .unwrap()
            .taken,
        1
    );
    dead(&letters, 0).await;
    messaging.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_goes_to_the_dead_letter_queue_and_stops_nothing() {
    let sandbox = sandbox().await;
    let messaging = client(&sandbox, FAST).await;
    let (state, consumer) = picky(&messaging).await;
    state.broken.store(false, Ordering::Relaxed);
    let raw = Raw::connect(&sandbox).await;
    let channel = raw.channel().await;
    let id = || Uuid::now_v7().to_string();
    let typed = |kind: &str| {
        BasicProperties::default()
            .with_message_id(id().into())
            .with_type(kind.into())
    };
    let mut huge = FieldTable::default();
    huge.insert(
        "huge".into(),
        AMQPValue::LongString("h".repeat(100_000).into()),
    );
    let mut nested = FieldTable::default();
    for _ in 0..50 {
        let mut outer = FieldTable::default();
        outer.insert("n".into(), AMQPValue::FieldTable(nested));
        nested = outer;
    }
    let good = br#"{"number":1,"key":"k"}"#;
    let messages: Vec<(BasicProperties, &[u8])> = vec![
        (BasicProperties::default(), good),
        (
            BasicProperties::default().with_message_id(id().into()),
            good,
        ),
        (
            typed("order.placed.v1").with_message_id("seven".into()),
            good,
        ),
        (typed("order.unheard-of.v1"), good),
        (typed("order.placed.v1"), b"\x00\xff garbage"),
        (typed("order.placed.v1"), b""),
        (typed("order.placed.v1"), br#"{"number":"one"}"#),
        (typed("order.unheard-of.v1").with_headers(huge), good),
        (typed("order.unheard-of.v1").with_headers(nested), good),
    ];
    let garbage = messages.len() as u64;
    for (properties, body) in messages {
        channel
            .basic_publish(
                "orders.events".into(),
                "order.placed.v1".into(),
                BasicPublishOptions::default(),
                body,
                properties,
            )
            .await
            .unwrap();
    }
    // A good one from the same stranger is handled.
    channel
        .basic_publish(
            "orders.events".into(),
            "order.placed.v1".into(),
            BasicPublishOptions::default(),
            good,
            typed("order.placed.v1"),
        )
        .await
        .unwrap();
    let letters = messaging.dead_letters("picky");
    eventually("the good one is handled", || async {
        state.handled.load(Ordering::Relaxed) >= 1
    })
    .await;
    dead(&letters, garbage).await;
    let mut reasons: Vec<_> = letters
        .list(100)
        .await
        .unwrap()
        .iter()
        .map(|l| l.reason.as_str())
        .collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "malformed",
            "malformed",
            "malformed",
            "poison",
            "poison",
            "poison",
            "unknown-type",
            "unknown-type",
            "unknown-type"
        ]
    );
    consuming(&consumer).await;
    messaging.close().await;
}
