//! Exchanges, queues and consumers in memory, as RabbitMQ's quorum queues have them. Pure: time comes
//! from outside.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::topology::{self, Binding, DeliveryLimit, Difference, Queue, Routing, Topology, Values};
use crate::transport::{Outgoing, Stored};

pub(super) type ConsumerId = u64;

#[derive(Debug, Default)]
pub(super) struct State {
    exchanges: HashMap<String, Exchange>,
    queues: HashMap<String, Held>,
    consumers: HashMap<ConsumerId, Consuming>,
    next_consumer: ConsumerId,
    /// Nobody is connected, and nobody can connect.
    pub(super) down: bool,
}

#[derive(Debug)]
struct Exchange {
    routing: Routing,
    /// Routing key and queue.
    bindings: Vec<(String, String)>,
}

/// A queue with what it holds.
#[derive(Debug)]
struct Held {
    queue: Queue,
    /// By their place in the queue: what is given back returns to its place.
    ready: BTreeMap<u64, Message>,
    next_place: u64,
    /// In the order in which they came; only the first is active where one is asked for.
    consumers: VecDeque<ConsumerId>,
    /// Dead, and their destination does not take them yet: at least once means to try again.
    dying: Vec<(Instant, Message, &'static str)>,
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
    place: u64,
    /// How often it was given back.
    returns: u32,
    expires: Option<Instant>,
}

impl Message {
    pub(super) fn redelivered(&self) -> bool {
        self.returns > 0
    }
}

#[derive(Debug)]
struct Consuming {
    queue: String,
    prefetch: usize,
    unsettled: BTreeMap<u64, Message>,
    next_tag: u64,
    cancelled: bool,
}

/// What a consumer gets when it asks.
pub(super) enum Next {
    Delivery(u64, Box<Message>),
    Nothing,
    /// Cancelled, its queue deleted, or the broker gone.
    Ended,
}

impl State {
    pub(super) fn declare(&mut self, topology: &Topology) -> Result<(), Error> {
        for exchange in &topology.exchanges {
            let known = self
                .exchanges
                .entry(exchange.name.clone())
                .or_insert_with(|| Exchange {
                    routing: exchange.routing,
                    bindings: Vec::new(),
                });
            if known.routing != exchange.routing {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "declaring exchange `{}`: it exists with other arguments",
                        exchange.name
                    ),
                ));
            }
        }
        for queue in &topology.queues {
            match self.queues.get(&queue.name) {
                Some(held) => {
                    if let Some(difference) = differs(&held.queue, queue) {
                        return Err(topology::conflict(&queue.name, Some(&difference)));
                    }
                }
                None => {
                    self.queues.insert(queue.name.clone(), Held::new(queue));
                }
            }
        }
        for binding in &topology.bindings {
            self.bind(binding)?;
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, binding: &Binding) -> Result<(), Error> {
        let Some(exchange) = self.exchanges.get_mut(&binding.exchange) else {
            return Err(missing("exchange", &binding.exchange));
        };
        if !self.queues.contains_key(&binding.queue) {
            return Err(missing("queue", &binding.queue));
        }
        let bound = (binding.routing_key.clone(), binding.queue.clone());
        if !exchange.bindings.contains(&bound) {
            exchange.bindings.push(bound);
        }
        Ok(())
    }

    pub(super) fn unbind(&mut self, binding: &Binding) {
        if let Some(exchange) = self.exchanges.get_mut(&binding.exchange) {
            exchange
                .bindings
                .retain(|(key, queue)| *key != binding.routing_key || *queue != binding.queue);
        }
    }

    /// Publishes to every queue that is bound; refused if one of them is full, though others may
    /// have it.
    pub(super) fn publish(&mut self, outgoing: &Outgoing, now: Instant) -> Result<Stored, Error> {
        let message = Message {
            exchange: outgoing.exchange.clone(),
            routing_key: outgoing.routing_key.clone(),
            properties: outgoing.properties.clone(),
            body: outgoing.body.clone(),
            place: 0,
            returns: 0,
            expires: None,
        };
        let Some(exchange) = self.exchanges.get(outgoing.exchange.as_str()) else {
            return Err(missing("exchange", outgoing.exchange.as_str()));
        };
        let queues = exchange.route(outgoing.routing_key.as_str());
        let mut refused = false;
        for name in &queues {
            if let Some(held) = self.queues.get_mut(name) {
                refused |= !held.store(message.clone(), now);
            }
        }
        if refused {
            return Err(crate::transport::refused(outgoing));
        }
        Ok(Stored {
            routed: !queues.is_empty(),
        })
    }

    pub(super) fn consume(&mut self, queue: &str, prefetch: u16) -> Result<ConsumerId, Error> {
        let Some(held) = self.queues.get_mut(queue) else {
            return Err(missing("queue", queue));
        };
        self.next_consumer += 1;
        let id = self.next_consumer;
        held.consumers.push_back(id);
        self.consumers.insert(
            id,
            Consuming {
                queue: queue.to_owned(),
                prefetch: usize::from(prefetch),
                unsettled: BTreeMap::new(),
                next_tag: 1,
                cancelled: false,
            },
        );
        Ok(id)
    }

    pub(super) fn next(&mut self, id: ConsumerId) -> Next {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return Next::Ended;
        };
        if consumer.cancelled {
            return Next::Ended;
        }
        let Some(held) = self.queues.get_mut(&consumer.queue) else {
            return Next::Nothing;
        };
        let standing_by =
            held.queue.single_active_consumer && held.consumers.front().copied() != Some(id);
        if standing_by || consumer.unsettled.len() >= consumer.prefetch {
            return Next::Nothing;
        }
        let Some((_, message)) = held.ready.pop_first() else {
            return Next::Nothing;
        };
        let tag = consumer.next_tag;
        consumer.next_tag += 1;
        consumer.unsettled.insert(tag, message.clone());
        Next::Delivery(tag, Box::new(message))
    }

    /// False if the delivery is not this consumer's any more.
    pub(super) fn ack(&mut self, id: ConsumerId, tag: u64) -> bool {
        let consumer = self.consumers.get_mut(&id);
        consumer.is_some_and(|consumer| consumer.unsettled.remove(&tag).is_some())
    }

    /// False if the delivery is not this consumer's any more.
    pub(super) fn requeue(&mut self, id: ConsumerId, tag: u64, now: Instant) -> bool {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return false;
        };
        let Some(message) = consumer.unsettled.remove(&tag) else {
            return false;
        };
        let queue = consumer.queue.clone();
        self.give_back(&queue, message, now);
        true
    }

    /// No more deliveries; another one may become the active consumer.
    pub(super) fn cancel(&mut self, id: ConsumerId) {
        if let Some(consumer) = self.consumers.get_mut(&id) {
            consumer.cancelled = true;
            if let Some(held) = self.queues.get_mut(&consumer.queue) {
                held.consumers.retain(|other| *other != id);
            }
        }
    }

    /// The consumer's channel is gone: what is unsettled returns.
    pub(super) fn close(&mut self, id: ConsumerId, now: Instant) {
        self.cancel(id);
        if let Some(consumer) = self.consumers.remove(&id) {
            for message in consumer.unsettled.into_values() {
                self.give_back(&consumer.queue, message, now);
            }
        }
    }

    pub(super) fn close_all(&mut self, now: Instant) {
        let all: Vec<_> = self.consumers.keys().copied().collect();
        for id in all {
            self.close(id, now);
        }
    }

    pub(super) fn is_open(&self, id: ConsumerId) -> bool {
        self.consumers.contains_key(&id)
    }

    /// Messages ready and consumers.
    pub(super) fn count(&self, queue: &str) -> Result<(u64, u64), Error> {
        let held = self.queues.get(queue);
        let held = held.ok_or_else(|| missing("queue", queue))?;
        Ok((held.ready.len() as u64, held.consumers.len() as u64))
    }

    /// Deletes a queue with all it holds; its consumers end.
    pub(super) fn delete(&mut self, queue: &str) {
        self.queues.remove(queue);
        self.consumers.retain(|_, consumer| consumer.queue != queue);
        for exchange in self.exchanges.values_mut() {
            exchange.bindings.retain(|(_, bound)| bound != queue);
        }
    }

    /// Deletes a queue and tells none of its consumers, as RabbitMQ does by force when the queue has
    /// no leader: they stay open and get nothing, also when there is another queue of that name.
    #[cfg(test)]
    pub(super) fn lose(&mut self, queue: &str) {
        for consumer in self.consumers.values_mut() {
            if consumer.queue == queue {
                consumer.queue.clear();
            }
        }
        self.delete(queue);
    }

    /// Dead-letters what has expired at a queue's head, and what could not be before. Returns when
    /// to look again.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let names: Vec<_> = self.queues.keys().cloned().collect();
        for name in &names {
            let mut dead = Vec::new();
            if let Some(held) = self.queues.get_mut(name) {
                while let Some(first) = held.ready.first_entry()
                    && first.get().expires.is_some_and(|at| at <= now)
                {
                    dead.push((first.remove(), "expired"));
                }
                held.dying.retain(|(again, message, reason)| {
                    if *again <= now {
                        dead.push((message.clone(), *reason));
                    }
                    *again > now
                });
            }
            for (message, reason) in dead {
                self.dead_letter(name, message, reason, now);
            }
        }
        let heads = self
            .queues
            .values()
            .filter_map(|held| held.ready.first_key_value()?.1.expires);
        let dying = self
            .queues
            .values()
            .flat_map(|held| held.dying.iter().map(|(again, ..)| *again));
        heads.chain(dying).min()
    }

    fn give_back(&mut self, queue: &str, mut message: Message, now: Instant) {
        let Some(held) = self.queues.get_mut(queue) else {
            return;
        };
        message.returns += 1;
        match held.queue.delivery_limit {
            DeliveryLimit::Times(limit) if message.returns > limit => {
                self.dead_letter(queue, message, "delivery_limit", now);
            }
            _ => {
                held.ready.insert(message.place, message);
            }
        }
    }

    fn dead_letter(&mut self, queue: &str, message: Message, reason: &'static str, now: Instant) {
        let Some(held) = self.queues.get(queue) else {
            return;
        };
        let Some(dead) = &held.queue.dead_letter else {
            return;
        };
        let routing_key = dead
            .routing_key
            .as_deref()
            .map_or_else(|| message.routing_key.clone(), ShortString::from);
        let outgoing = Outgoing {
            exchange: dead.exchange.as_str().into(),
            routing_key,
            properties: with_death(queue, &message, reason),
            body: message.body.clone(),
        };
        let moved = self.publish(&outgoing, now);
        if !moved.is_ok_and(|stored| stored.routed)
            && let Some(held) = self.queues.get_mut(queue)
        {
            held.dying.push((now + DYING_AGAIN, message, reason));
        }
    }
}

impl Exchange {
    fn route(&self, routing_key: &str) -> Vec<String> {
        let mut queues: Vec<String> = Vec::new();
        for (key, queue) in &self.bindings {
            // Of patterns the conventions know none: a binding names one event type.
            let wanted = self.routing == Routing::Fanout || key == routing_key;
            if wanted && !queues.contains(queue) {
                queues.push(queue.clone());
            }
        }
        queues
    }
}

impl Held {
    fn new(queue: &Queue) -> Self {
        Self {
            queue: queue.clone(),
            ready: BTreeMap::new(),
            next_place: 0,
            consumers: VecDeque::new(),
            dying: Vec::new(),
        }
    }

    /// False if it is full.
    fn store(&mut self, mut message: Message, now: Instant) -> bool {
        let full = self.queue.max_length;
        if full.is_some_and(|most| self.ready.len() as u64 >= most) {
            return false;
        }
        message.place = self.next_place;
        message.returns = 0;
        message.expires = self.queue.time_to_live.map(|limit| now + limit);
        self.next_place += 1;
        self.ready.insert(message.place, message);
        true
    }
}

/// The argument in which two declarations of a queue differ.
fn differs(there: &Queue, here: &Queue) -> Option<Difference> {
    let dead = |queue: &Queue| queue.dead_letter.as_ref().map(|dead| dead.exchange.clone());
    let key = |queue: &Queue| queue.dead_letter.as_ref()?.routing_key.clone();
    let ttl = |queue: &Queue| queue.time_to_live.map(|ttl| ttl.as_millis().to_string());
    let length = |queue: &Queue| queue.max_length.map(|length| length.to_string());
    let limit = |queue: &Queue| match queue.delivery_limit {
        DeliveryLimit::Times(times) => Some(times.to_string()),
        DeliveryLimit::Off => Some("-1".to_owned()),
        DeliveryLimit::Unset => None,
    };
    let single = |queue: &Queue| queue.single_active_consumer.then(|| "true".to_owned());
    [
        ("x-dead-letter-exchange", dead(there), dead(here)),
        ("x-dead-letter-routing-key", key(there), key(here)),
        ("x-message-ttl", ttl(there), ttl(here)),
        ("x-max-length", length(there), length(here)),
        ("x-delivery-limit", limit(there), limit(here)),
        ("x-single-active-consumer", single(there), single(here)),
    ]
    .into_iter()
    .find(|(_, there, here)| there != here)
    .map(|(argument, there, here)| Difference {
        argument: argument.to_owned(),
        values: Some(Values { there, here }),
    })
}

/// The broker's own account of a death, as far as it is read.
fn with_death(queue: &str, message: &Message, reason: &str) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut death = FieldTable::default();
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    death.insert("reason".into(), text(reason));
    death.insert("queue".into(), text(queue));
    death.insert("exchange".into(), text(message.exchange.as_str()));
    death.insert(
        "time".into(),
        AMQPValue::Timestamp(seconds.unwrap_or_default().as_secs()),
    );
    let keys = FieldArray::from(vec![text(message.routing_key.as_str())]);
    death.insert("routing-keys".into(), AMQPValue::FieldArray(keys));
    let mut table = message.properties.headers().clone().unwrap_or_default();
    table.insert(
        "x-death".into(),
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])),
    );
    message.properties.clone().with_headers(table)
}

fn missing(what: &str, name: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{what} `{name}` does not exist (yet)"),
    )
}

/// Shared by all clients, each of which is woken when anything changes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) state: parking_lot::Mutex<State>,
    pub(super) changed: tokio::sync::Notify,
}

impl Shared {
    /// Changes the state, and wakes everybody.
    pub(super) fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state.lock());
        self.changed.notify_waiters();
        done
    }
}

/// When a dead message whose destination did not take it is tried again.
const DYING_AGAIN: Duration = Duration::from_secs(1);
