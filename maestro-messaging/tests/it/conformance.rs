//! What a service relies on, on a real RabbitMQ and on the broker in memory: the same tests on both.

mod failures;
mod handling;
mod queues;

use std::collections::HashSet;
use std::sync::Arc;

use maestro_config::Environment;
use maestro_messaging::{Consumer, MemoryBroker, Messaging, MessagingConfig};
use maestro_testkit::Sandbox;
use parking_lot::Mutex;

use crate::support::{Placed, Raw, config, sandbox};

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
        let extra = [
            ("RETRY_DELAYS", "50ms,100ms"),
            ("HANDLER_TIMEOUT", "1s"),
            ("CONFIRM_TIMEOUT", "60s"),
        ];
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
    ($($group:ident::$name:ident),+ $(,)?) => {
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$group::$name(&super::World::server().await).await;
            })+
        }
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$group::$name(&super::World::memory()).await;
            })+
        }
    };
}

on_both!(
    queues::the_receipt_says_whether_anybody_listens,
    queues::services_start_in_any_order_and_each_listener_gets_its_copy,
    failures::a_failure_is_retried_on_the_rungs_under_the_same_identity,
    failures::dead_letters_have_reasons_and_come_back,
    queues::a_full_queue_refuses_and_takes_again,
    handling::events_of_a_key_stay_in_order_over_failures_and_a_handover,
    handling::a_parked_key_waits_for_its_event_while_others_pass,
    handling::a_batch_is_handled_together_and_a_bad_event_fails_alone,
    handling::a_drain_loses_nothing_and_handles_nothing_twice,
    handling::a_drained_subscription_can_be_started_again_at_once,
    queues::a_deleted_queue_comes_back,
    queues::other_arguments_stop_one_consumer_only,
    failures::what_waits_too_long_is_dead,
    queues::a_retired_event_is_unbound,
    queues::an_event_is_handled_or_retired_and_has_a_valid_type,
);

fn event(number: u64) -> Placed {
    Placed {
        number,
        key: format!("key-{}", number % 5),
    }
}

type Seen = Arc<Mutex<Vec<Placed>>>;

/// How many different events were seen: one that comes again is no other one.
fn different(seen: &Seen) -> u64 {
    let numbers: HashSet<_> = seen.lock().iter().map(|event| event.number).collect();
    numbers.len() as u64
}

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
