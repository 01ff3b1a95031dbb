//! Queues and bindings that are full, gone, other than declared, or not there yet.

use std::sync::Arc;

use maestro_messaging::{ConsumerState, ErrorKind};

use super::{Seen, World, different, event, listen};
use crate::support::{Ignored, Placed, consuming, eventually};

pub(super) async fn the_receipt_says_whether_anybody_listens(world: &World) {
    let messaging = world.client("orders").await;
    let (seen, _consumer) = listen(&messaging, "listener").await;
    assert!(messaging.publish(&event(1)).await.unwrap().routed());
    let unheard = Ignored { number: 1 };
    assert!(!messaging.publish(&unheard).await.unwrap().routed());
    let error = messaging
        .publish(&unheard)
        .require_route()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable);
    eventually("it is handled", || async { different(&seen) == 1 }).await;
    messaging.close().await;
    let error = messaging.publish(&event(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

pub(super) async fn services_start_in_any_order_and_each_listener_gets_its_copy(world: &World) {
    let billing = world.client("billing").await;
    let start = |name| {
        billing
            .subscription(name)
            .on("orders", |_: Placed, _| async { Ok(()) })
            .start()
    };
    let waiting = start("early").await.unwrap();
    eventually("it waits for the publisher", || async {
        matches!(waiting.state(), ConsumerState::Degraded(reason) if reason.contains("orders.events"))
    })
    .await;
    waiting.drain().await;
    let orders = world.client("orders").await;
    orders.publish(&event(0)).await.unwrap();
    let (first, one) = listen(&billing, "first").await;
    let (second, two) = listen(&billing, "second").await;
    orders.publish(&event(1)).await.unwrap();
    eventually("both have it", || async {
        different(&first) == 1 && different(&second) == 1
    })
    .await;
    consuming(&one).await;
    consuming(&two).await;
    billing.close().await;
    orders.close().await;
}

pub(super) async fn a_full_queue_refuses_and_takes_again(world: &World) {
    let messaging = world.client("orders").await;
    let start = |seen: &Seen| {
        let noted = Arc::clone(seen);
        messaging
            .subscription("small")
            .max_length(3)
            .on("orders", move |event: Placed, _| {
                noted.lock().push(event);
                async { Ok(()) }
            })
            .start()
    };
    let seen = Seen::default();
    let consumer = start(&seen).await.unwrap();
    consumer.ready().await;
    consumer.drain().await;
    let mut stored = 0;
    let refused = loop {
        match messaging.publish(&event(stored)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 50, "nothing was refused");
    };
    assert_eq!(refused.kind(), ErrorKind::Rejected);
    assert!(stored >= 3, "refused after {stored}");
    start(&seen).await.unwrap();
    eventually("what was stored is handled", || async {
        different(&seen) == stored
    })
    .await;
    eventually("it takes again", || async {
        messaging.publish(&event(99)).await.is_ok()
    })
    .await;
    messaging.close().await;
}

pub(super) async fn a_deleted_queue_comes_back(world: &World) {
    let messaging = world.client("orders").await;
    let (seen, _consumer) = listen(&messaging, "deleted").await;
    messaging.publish(&event(1)).require_route().await.unwrap();
    eventually("the first is handled", || async { different(&seen) == 1 }).await;
    world.delete("orders.deleted").await;
    eventually("the queue is back", || async {
        messaging.publish(&event(2)).require_route().await.is_ok()
    })
    .await;
    // It may have been stored more than once: a publish that failed can have reached the queue.
    eventually("the second is handled", || async { different(&seen) == 2 }).await;
    messaging.close().await;
}

pub(super) async fn other_arguments_stop_one_consumer_only(world: &World) {
    let before = world.client("orders").await;
    listen(&before, "changed").await;
    before.close().await;
    let messaging = world.client("orders").await;
    let (seen, fine) = listen(&messaging, "fine").await;
    let changed = messaging
        .subscription("changed")
        .max_length(7)
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    let both = "`x-max-length` differs: not set on the broker, `7` in this version";
    eventually("the conflict is reported, with both values", || async {
        matches!(changed.state(), ConsumerState::Interrupted(reason) if reason.contains(both))
    })
    .await;
    assert_eq!(fine.state(), ConsumerState::Consuming);
    // Whoever is started beside it starts.
    let (later, _later) = listen(&messaging, "later").await;
    for number in 0..100 {
        messaging.publish(&event(number)).await.unwrap();
    }
    eventually("the others go on", || async {
        different(&seen) == 100 && different(&later) == 100
    })
    .await;
    eventually("health tells of the one", || async {
        let health = messaging.health_check().run().await;
        health.state() == maestro_metrics::HealthState::Degraded
            && health
                .reason()
                .unwrap_or_default()
                .contains("orders.changed")
    })
    .await;
    messaging.close().await;
}

pub(super) async fn a_retired_event_is_unbound(world: &World) {
    let before = world.client("orders").await;
    listen(&before, "retiring").await;
    before.close().await;
    let messaging = world.client("orders").await;
    messaging
        .subscription("retiring")
        .on("orders", |_: Ignored, _| async { Ok(()) })
        .retire::<Placed>("orders")
        .retire_type("orders", "order.changed.v1") // never bound, which is as good
        .start()
        .await
        .unwrap();
    eventually("the binding is gone", || async {
        let receipt = messaging.publish(&event(1)).await;
        receipt.is_ok_and(|receipt| !receipt.routed())
    })
    .await;
    let kept = Ignored { number: 1 };
    assert!(messaging.publish(&kept).await.unwrap().routed());
    messaging.close().await;
}

pub(super) async fn an_event_is_handled_or_retired_and_has_a_valid_type(world: &World) {
    let messaging = world.client("orders").await;
    let subscription = || {
        messaging
            .subscription("undecided")
            .on("orders", |_: Placed, _| async { Ok(()) })
    };
    // Bound at start and unbound right after it, events would be missing without a word.
    for (what, wrong) in [
        ("retires it", subscription().retire::<Placed>("orders")),
        ("`order.*`", subscription().retire_type("orders", "order.*")),
        ("publisher", subscription().retire::<Ignored>("Orders!")),
    ] {
        let error = wrong.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    // The same type of another service is another event.
    let other = subscription().retire::<Placed>("billing");
    other.start().await.unwrap().ready().await;
    messaging.publish(&event(1)).require_route().await.unwrap();
    messaging.close().await;
}
