//! What a service relies on, on a real RabbitMQ and on the broker in memory: the same tests on both.

// Long because it is one suite, to be read as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maestro_config::Environment;
use maestro_messaging::{
    Consumer, ConsumerState, DeadReason, ErrorKind, Filter, HandlerError, MemoryBroker, Messaging,
    MessagingConfig, Received,
};
use maestro_testkit::Sandbox;
use parking_lot::Mutex;

use crate::support::{Ignored, Placed, Raw, config, eventually, sandbox};

/// A broker, whichever it is.
#[expect(clippy::large_enum_variant, reason = "there is one for each test")]
enum World {
    Server {
        orders: Sandbox,
        billing: Sandbox,
        raw: Raw,
    },
    Memory(MemoryBroker),
}

impl World {
    async fn server() -> Self {
        let orders = sandbox().await;
        Self::Server {
            billing: orders.neighbour("billing").await.unwrap(),
            raw: Raw::connect(&orders).await,
            orders,
        }
    }

    fn memory() -> Self {
        Self::Memory(MemoryBroker::new())
    }

    /// A client of `orders` or of `billing`.
    async fn client(&self, service: &str) -> Messaging {
        let extra = [("RETRY_DELAYS", "50ms,100ms"), ("HANDLER_TIMEOUT", "1s")];
        match self {
            Self::Server {
                orders, billing, ..
            } => {
                let of = if service == "orders" { orders } else { billing };
                Messaging::connect(config(of, &extra)).await.unwrap()
            }
            Self::Memory(broker) => {
                let mut pairs = vec![
                    ("MAESTRO_SERVICE_NAME".to_owned(), service.to_owned()),
                    ("MAESTRO_ENVIRONMENT".to_owned(), "test".to_owned()),
                    (
                        "MAESTRO_MESSAGING_URL".to_owned(),
                        "amqp://nobody@localhost/none".to_owned(),
                    ),
                ];
                for (name, value) in extra {
                    pairs.push((format!("MAESTRO_MESSAGING_{name}"), value.to_owned()));
                }
                let config: MessagingConfig = Environment::from_pairs(pairs).read().unwrap();
                let builder = Messaging::builder(config).in_memory(broker);
                builder.connect().await.unwrap()
            }
        }
    }

    async fn ready(&self, queue: &str) -> Option<u64> {
        match self {
            Self::Server { raw, .. } => raw.depth(queue).await.map(u64::from),
            Self::Memory(broker) => broker.ready(queue),
        }
    }

    async fn delete(&self, queue: &str) {
        match self {
            Self::Server { raw, .. } => raw.delete(queue).await,
            Self::Memory(broker) => broker.delete_queue(queue),
        }
    }
}

macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(&super::World::server().await).await;
            })+
        }
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(&super::World::memory()).await;
            })+
        }
    };
}

on_both!(
    the_receipt_says_whether_anybody_listens,
    services_start_in_any_order_and_each_listener_gets_its_copy,
    a_failure_is_retried_on_the_rungs_under_the_same_identity,
    dead_letters_have_reasons_and_come_back,
    a_full_queue_refuses_and_takes_again,
    events_of_a_key_stay_in_order_over_failures_and_a_handover,
    a_batch_is_handled_together_and_a_bad_event_fails_alone,
    a_drain_loses_nothing_and_handles_nothing_twice,
    a_deleted_queue_comes_back,
    other_arguments_stop_one_consumer_only,
    what_waits_too_long_is_dead,
    a_retired_event_is_unbound,
);

fn event(number: u64) -> Placed {
    Placed {
        number,
        key: format!("key-{}", number % 5),
    }
}

type Seen = Arc<Mutex<Vec<Placed>>>;

/// Notes what it handles.
async fn listen(messaging: &Messaging, name: &str) -> (Seen, Consumer) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let consumer = messaging
        .subscription(name)
        .on("orders", move |event: Placed, _| {
            noted.lock().push(event);
            async { Ok(()) }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    (seen, consumer)
}

async fn the_receipt_says_whether_anybody_listens(world: &World) {
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
    eventually("it is handled", || async { seen.lock().len() == 1 }).await;
    messaging.close().await;
    let error = messaging.publish(&event(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

async fn services_start_in_any_order_and_each_listener_gets_its_copy(world: &World) {
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
        first.lock().len() == 1 && second.lock().len() == 1
    })
    .await;
    assert_eq!(one.state(), ConsumerState::Consuming);
    assert_eq!(two.state(), ConsumerState::Consuming);
    billing.close().await;
    orders.close().await;
}

async fn a_failure_is_retried_on_the_rungs_under_the_same_identity(world: &World) {
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
    eventually("all are handled", || async { attempts.lock().len() == 9 }).await;
    for (number, attempt, id) in attempts.lock().iter() {
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

async fn dead_letters_have_reasons_and_come_back(world: &World) {
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
    eventually("all are dead", || async {
        letters.count().await.unwrap() == 3
    })
    .await;
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
    eventually("listing took nothing away", || async {
        letters.count().await.unwrap() == 3
    })
    .await;

    let exhausted = Filter::all().reason(DeadReason::Exhausted);
    assert_eq!(letters.dry_run(exhausted.clone()).await.unwrap().taken, 2);
    eventually("the dry run took nothing away", || async {
        letters.count().await.unwrap() == 3
    })
    .await;
    broken.store(false, Ordering::Relaxed);
    let sorted = letters.replay(exhausted).await.unwrap();
    assert_eq!((sorted.taken, sorted.left, sorted.failed), (2, 1, 0));
    eventually("both are handled", || async { handled.lock().len() == 2 }).await;
    let refused = letters.purge(Filter::all(), "picky").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    let purged = letters.purge(Filter::all(), "orders.picky.dlq").await;
    assert_eq!(purged.unwrap().taken, 1);
    eventually("nothing is left", || async {
        letters.count().await.unwrap() == 0
    })
    .await;
    messaging.close().await;
}

async fn a_full_queue_refuses_and_takes_again(world: &World) {
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
        seen.lock().len() as u64 == stored
    })
    .await;
    eventually("it takes again", || async {
        messaging.publish(&event(99)).await.is_ok()
    })
    .await;
    messaging.close().await;
}

async fn events_of_a_key_stay_in_order_over_failures_and_a_handover(world: &World) {
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

async fn a_batch_is_handled_together_and_a_bad_event_fails_alone(world: &World) {
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
    messaging.close().await;
}

async fn a_drain_loses_nothing_and_handles_nothing_twice(world: &World) {
    const EVENTS: u64 = 400;
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
    for round in 1..=3 {
        eventually("some are handled", || async {
            seen.lock().len() as u64 >= round * EVENTS / 6
        })
        .await;
        assert_eq!(consumer.drain().await.abandoned, 0);
        messaging.close().await;
        (messaging, consumer) = start().await;
    }
    assert!(publishing.await.unwrap().iter().all(Result::is_ok));
    eventually("all are handled", || async {
        seen.lock().len() as u64 == EVENTS
    })
    .await;
    assert!(seen.lock().values().all(|count| *count == 1));
    assert_eq!(consumer.state(), ConsumerState::Consuming);
    messaging.close().await;
    publisher.close().await;
}

async fn a_deleted_queue_comes_back(world: &World) {
    let messaging = world.client("orders").await;
    let (seen, _consumer) = listen(&messaging, "deleted").await;
    messaging.publish(&event(1)).require_route().await.unwrap();
    eventually("the first is handled", || async { seen.lock().len() == 1 }).await;
    world.delete("orders.deleted").await;
    eventually("the queue is back", || async {
        messaging.publish(&event(2)).require_route().await.is_ok()
    })
    .await;
    eventually("the second is handled", || async { seen.lock().len() == 2 }).await;
    messaging.close().await;
}

async fn other_arguments_stop_one_consumer_only(world: &World) {
    let before = world.client("orders").await;
    listen(&before, "changed").await;
    before.close().await;
    let messaging = world.client("orders").await;
    let (seen, _fine) = listen(&messaging, "fine").await;
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
    messaging.publish(&event(1)).await.unwrap();
    eventually("the other goes on", || async { seen.lock().len() == 1 }).await;
    messaging.close().await;
}

async fn what_waits_too_long_is_dead(world: &World) {
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
    eventually("it is dead", || async {
        letters.count().await.unwrap() == 1
    })
    .await;
    let letter = letters.list(1).await.unwrap().remove(0);
    assert_eq!(letter.message_id, Some(receipt.message_id()));
    assert_eq!(letter.reason, DeadReason::Broker);
    assert_eq!(letter.error_type.as_deref(), Some("expired"));
    assert_eq!(letter.routing_key.as_deref(), Some("order.placed.v1"));
    messaging.close().await;
}

async fn a_retired_event_is_unbound(world: &World) {
    let before = world.client("orders").await;
    listen(&before, "retiring").await;
    before.close().await;
    let messaging = world.client("orders").await;
    messaging
        .subscription("retiring")
        .on("orders", |_: Ignored, _| async { Ok(()) })
        .retire("orders", "order.placed.v1")
        .start()
        .await
        .unwrap();
    eventually("the binding is gone", || async {
        !messaging.publish(&event(1)).await.unwrap().routed()
    })
    .await;
    let kept = Ignored { number: 1 };
    assert!(messaging.publish(&kept).await.unwrap().routed());
    messaging.close().await;
}
