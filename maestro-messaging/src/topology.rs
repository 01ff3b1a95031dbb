//! What a service declares on the broker, as data: derived from names, compared in tests, sent by
//! whoever holds a channel.

use std::time::Duration;

use maestro_config::{ServiceName, SubscriptionName};

use crate::error::{Error, ErrorKind};

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    Topic,
    Direct,
    Fanout,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) routing: Routing,
}

/// A durable quorum queue. The arguments are few, because changing one means a new queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) dead_letter: Option<DeadLetter>,
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) max_length: Option<u64>,
    pub(crate) delivery_limit: DeliveryLimit,
    pub(crate) single_active_consumer: bool,
}

/// Where a queue's dead and expired messages go; always at-least-once, which needs
/// `x-overflow=reject-publish` beside it or the broker silently falls back to at-most-once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) exchange: String,
    /// `None` keeps the message's own routing key.
    pub(crate) routing_key: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryLimit {
    /// The broker gives a message up after so many deliveries that were neither acknowledged nor
    /// retried by us: the backstop against a message that kills its consumer.
    Times(u32),
    /// Listing a dead-letter queue counts as deliveries and must not empty it. How it is switched
    /// off depends on the broker's version.
    Off,
    /// The broker's default; messages of a rung are never delivered to anybody.
    Unset,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) queue: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

/// Exchanges, queues and bindings, in the order in which they are declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) bindings: Vec<Binding>,
    /// Bindings to exchanges of other services, which may not exist yet: made on a channel of their
    /// own and tried again until they succeed.
    pub(crate) foreign: Vec<Binding>,
}

/// What a subscription asks for beyond the conventions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueOptions {
    pub(crate) time_to_live: Option<Duration>,
    pub(crate) max_length: Option<u64>,
    pub(crate) ordered: bool,
}

/// RabbitMQ's own default from 4.0 on, and set explicitly so that 3.x behaves alike: a message that
/// kills its consumer twenty times over is parked.
const DELIVERY_LIMIT: u32 = 20;

impl Topology {
    /// What every publisher of a service needs: its events exchange.
    pub(crate) fn publisher(service: &ServiceName) -> Self {
        Self {
            exchanges: vec![Exchange {
                name: service.events_exchange(),
                routing: Routing::Topic,
            }],
            ..Self::default()
        }
    }

    /// A subscription: its queue, its dead-letter queue and the rungs of the service, with the
    /// exchanges that bring messages home. `events` are (publishing service, event type).
    pub(crate) fn subscription(
        service: &ServiceName,
        subscription: &SubscriptionName,
        events: &[(ServiceName, String)],
        rungs: &[Duration],
        options: &QueueOptions,
    ) -> Self {
        let direct = service.direct_exchange();
        let queue = service.queue(subscription);
        let dead = service.dead_letter_queue(subscription);
        let own_events = service.events_exchange();

        let mut topology = Self::publisher(service);
        topology.exchanges.push(Exchange {
            name: direct.clone(),
            routing: Routing::Direct,
        });
        topology.queues.push(Queue {
            name: dead.clone(),
            dead_letter: None,
            time_to_live: None,
            max_length: None,
            delivery_limit: DeliveryLimit::Off,
            single_active_consumer: false,
        });
        topology.queues.push(Queue {
            name: queue.clone(),
            dead_letter: Some(DeadLetter {
                exchange: direct.clone(),
                routing_key: Some(dead.clone()),
            }),
            time_to_live: options.time_to_live,
            max_length: options.max_length,
            delivery_limit: DeliveryLimit::Times(DELIVERY_LIMIT),
            single_active_consumer: options.ordered,
        });
        for name in [&dead, &queue] {
            topology.bindings.push(Binding {
                queue: name.clone(),
                exchange: direct.clone(),
                routing_key: name.clone(),
            });
        }
        for delay in rungs {
            topology.rung(service, *delay);
        }
        for (publisher, event_type) in events {
            let binding = Binding {
                queue: queue.clone(),
                exchange: publisher.events_exchange(),
                routing_key: event_type.clone(),
            };
            if binding.exchange == own_events {
                topology.bindings.push(binding);
            } else {
                topology.foreign.push(binding);
            }
        }
        topology
    }

    /// One rung: a fanout exchange, so that a message keeps the routing key that names its home
    /// queue, and a queue that holds it for the delay. One TTL per queue, because the broker
    /// expires only at a queue's head.
    fn rung(&mut self, service: &ServiceName, delay: Duration) {
        let name = service.retry_rung(delay);
        if self.queues.iter().any(|queue| queue.name == name) {
            return;
        }
        self.exchanges.push(Exchange {
            name: name.clone(),
            routing: Routing::Fanout,
        });
        self.queues.push(Queue {
            name: name.clone(),
            dead_letter: Some(DeadLetter {
                exchange: service.direct_exchange(),
                routing_key: None,
            }),
            time_to_live: Some(delay),
            max_length: None,
            delivery_limit: DeliveryLimit::Unset,
            single_active_consumer: false,
        });
        self.bindings.push(Binding {
            queue: name.clone(),
            exchange: name,
            routing_key: String::new(),
        });
    }
}

/// An argument of a queue that is declared otherwise than it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) argument: String,
    /// As far as the broker told.
    pub(crate) values: Option<Values>,
}

/// `None` where the argument is not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) there: Option<String>,
    pub(crate) here: Option<String>,
}

/// The error of a queue that exists with other arguments.
pub(crate) fn conflict(queue: &str, difference: Option<&Difference>) -> Error {
    let shown = |value: &Option<String>| match value {
        Some(value) => format!("`{value}`"),
        None => "not set".to_owned(),
    };
    let what = match difference {
        None => "its arguments differ from what this version declares".to_owned(),
        Some(Difference { argument, values }) => match values {
            None => format!("its `{argument}` differs from what this version declares"),
            Some(Values { there, here }) => format!(
                "its `{argument}` differs: {} on the broker, {} in this version",
                shown(there),
                shown(here)
            ),
        },
    };
    Error::new(
        ErrorKind::Conflict,
        format!(
            "declaring queue `{queue}`: it exists, and {what}. Arguments of a queue cannot be changed. \
             Declare what it has, or give the subscription another name, or replace the queue: stop its \
             consumers, move its messages aside (a shovel, or drain it with the version that made it), \
             delete it, and start again"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn billing(options: &QueueOptions) -> Topology {
        Topology::subscription(
            &service("conductor"),
            &"billing".parse().unwrap(),
            &[
                (service("quality-fabric"), "quality-run.requested.v1".into()),
                (service("conductor"), "run.finished.v1".into()),
            ],
            &[
                Duration::from_secs(1),
                Duration::from_secs(10),
                Duration::from_secs(1),
            ],
            options,
        )
    }

    #[test]
    fn a_subscription_declares_the_names_of_the_conventions() {
        let topology = billing(&QueueOptions::default());
        let exchanges: Vec<_> = topology.exchanges.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(
            exchanges,
            [
                "conductor.events",
                "conductor.direct",
                "conductor.retry.1s",
                "conductor.retry.10s"
            ]
        );
        let queues: Vec<_> = topology.queues.iter().map(|q| q.name.as_str()).collect();
        assert_eq!(
            queues,
            [
                "conductor.billing.dlq",
                "conductor.billing",
                "conductor.retry.1s",
                "conductor.retry.10s"
            ]
        );
    }

    #[test]
    fn only_bindings_to_other_services_may_wait() {
        let topology = billing(&QueueOptions::default());
        assert_eq!(
            topology.foreign,
            [Binding {
                queue: "conductor.billing".into(),
                exchange: "quality-fabric.events".into(),
                routing_key: "quality-run.requested.v1".into(),
            }]
        );
        assert!(topology.bindings.contains(&Binding {
            queue: "conductor.billing".into(),
            exchange: "conductor.events".into(),
            routing_key: "run.finished.v1".into(),
        }));
    }

    #[test]
    fn a_dead_letter_queue_has_no_limit_no_ttl_and_no_dead_letters_of_its_own() {
        let topology = billing(&QueueOptions {
            time_to_live: Some(Duration::from_secs(5)),
            max_length: Some(7),
            ordered: true,
        });
        let dead = &topology.queues[0];
        assert_eq!(dead.delivery_limit, DeliveryLimit::Off);
        assert_eq!((dead.time_to_live, dead.max_length), (None, None));
        assert_eq!(dead.dead_letter, None);
        let main = &topology.queues[1];
        assert_eq!(main.max_length, Some(7));
        assert!(main.single_active_consumer);
    }

    #[test]
    fn a_rung_sends_a_message_home_by_its_own_routing_key() {
        let topology = billing(&QueueOptions::default());
        let rung = &topology.queues[2];
        assert_eq!(
            rung.dead_letter,
            Some(DeadLetter {
                exchange: "conductor.direct".into(),
                routing_key: None
            })
        );
        assert_eq!(rung.time_to_live, Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_conflict_tells_the_argument_both_values_and_the_way_out() {
        let difference = Difference {
            argument: "x-max-length".into(),
            values: Some(Values {
                there: None,
                here: Some("7".into()),
            }),
        };
        let text = conflict("conductor.billing", Some(&difference)).to_string();
        for part in [
            "conductor.billing",
            "`x-max-length` differs: not set on the broker, `7` in this version",
            "delete it",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_binding_joins_things_that_are_declared_before_it(
            // Some names are the servers' own (`pg-…`): those are no service's.
            name in "[a-z][a-z0-9-]{1,20}[a-z0-9]"
                .prop_filter("no name of a service", |name| name.parse::<ServiceName>().is_ok()),
            subscription in "[a-z][a-z0-9]{1,20}x",
            rungs in proptest::collection::vec(1_u64..100_000, 0..5),
            foreign in proptest::bool::ANY,
        ) {
            let service: ServiceName = name.parse().unwrap();
            let publisher = if foreign { "other-service".parse().unwrap() } else { service.clone() };
            let rungs: Vec<_> = rungs.into_iter().map(Duration::from_millis).collect();
            let topology = Topology::subscription(
                &service,
                &subscription.parse().unwrap(),
                &[(publisher, "order.placed.v1".into())],
                &rungs,
                &QueueOptions::default(),
            );
            for binding in &topology.bindings {
                prop_assert!(topology.exchanges.iter().any(|e| e.name == binding.exchange));
                prop_assert!(topology.queues.iter().any(|q| q.name == binding.queue));
            }
            for queue in &topology.queues {
                // The permissions of a service's user are written against this prefix.
                let prefix = format!("{service}.");
                prop_assert!(queue.name.starts_with(&prefix));
                if let Some(dead) = &queue.dead_letter {
                    prop_assert!(topology.exchanges.iter().any(|e| e.name == dead.exchange));
                }
            }
        }
    }
}
