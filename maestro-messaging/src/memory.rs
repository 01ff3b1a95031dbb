//! A broker in memory, for unit tests of services: what they publish, subscribe to, retry and
//! dead-letter behaves as on RabbitMQ, in microseconds and without a server.

// Long because one transport is implemented whole, call by call as the broker's is.

mod state;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use maestro_config::{Environment, ServiceName};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::client::Messaging;
use crate::config::MessagingConfig;
use crate::error::{Error, ErrorKind};
use crate::topology::{Binding, Topology};
use crate::transport::{
    Connectivity, Deliveries, Incoming, Outgoing, Pending, Request, Settle, Settlement, Transport,
    gave_up,
};

use state::{ConsumerId, Next, Shared};

/// A broker in memory. Clones are the same broker; clients of one broker hear each other, whichever
/// services they are.
///
/// It keeps what RabbitMQ's quorum queues keep: retries on rungs, dead letters with their reasons,
/// delivery limit, single active consumer, full queues that refuse, redelivery of what was
/// unsettled. It knows no permissions, no blocked connections, and nothing of it survives the
/// process. One conformance suite runs on both.
///
/// ```
/// use maestro_messaging::{Event, MemoryBroker};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     order_id: String,
/// }
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "order.placed.v1";
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), maestro_messaging::Error> {
/// let broker = MemoryBroker::new();
/// let messaging = broker.connect("shop").await?;
/// let (handled, mut seen) = tokio::sync::mpsc::channel(1);
/// let consumer = messaging
///     .subscription("billing")
///     .on("shop", move |event: OrderPlaced, _| {
///         let handled = handled.clone();
///         async move { Ok(handled.send(event.order_id).await?) }
///     })
///     .start()
///     .await?;
/// consumer.ready().await;
/// messaging.publish(&OrderPlaced { order_id: "7".into() }).require_route().await?;
/// assert_eq!(seen.recv().await.as_deref(), Some("7"));
/// messaging.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

impl MemoryBroker {
    /// An empty broker.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of this broker for a service, with the default settings. For other settings:
    /// [`Builder::in_memory`](crate::Builder::in_memory).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if that is no name of a service.
    pub async fn connect(&self, service: &str) -> Result<Messaging, Error> {
        let environment = Environment::from_pairs([
            ("MAESTRO_SERVICE_NAME", service),
            ("MAESTRO_ENVIRONMENT", "test"),
            (
                "MAESTRO_MESSAGING_URL",
                "amqp://memory:memory@localhost/memory",
            ),
        ]);
        let config = environment.read::<MessagingConfig>().map_err(|error| {
            Error::new(ErrorKind::Config, "connecting to the broker in memory").with_source(error)
        })?;
        Messaging::builder(config).in_memory(self).connect().await
    }

    /// Messages ready in a queue; `None` if it does not exist.
    pub fn ready(&self, queue: &str) -> Option<u64> {
        let counted = self.shared.state.lock().count(queue);
        counted.ok().map(|(ready, _)| ready)
    }

    /// Deletes a queue with all it holds, as an operator would.
    pub fn delete_queue(&self, queue: &str) {
        self.shared.change(|state| state.delete(queue));
    }

    /// The broker goes away: consumers end, publishes wait, health says so. What it holds stays.
    pub fn stop(&self) {
        let now = Instant::now();
        self.shared.change(|state| {
            state.down = true;
            state.close_all(now);
        });
    }

    /// The broker comes back.
    pub fn start(&self) {
        self.shared.change(|state| state.down = false);
    }

    pub(crate) fn transport(&self, service: &ServiceName) -> Client {
        let publisher = Topology::publisher(service);
        // Fails only over an exchange of another kind, which no client declares.
        let _ = self.shared.change(|state| state.declare(&publisher));
        let closed = CancellationToken::new();
        let clock = tokio::spawn(tick(Arc::clone(&self.shared), closed.clone()));
        Client {
            shared: Arc::clone(&self.shared),
            closed,
            clock: parking_lot::Mutex::new(Some(clock)),
        }
    }
}

/// One client's end.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    closed: CancellationToken,
    /// Moves what expires; every client has one, and any of them is enough.
    clock: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

async fn tick(shared: Arc<Shared>, closed: CancellationToken) {
    loop {
        let changed = shared.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let now = Instant::now();
        let next = shared.state.lock().expire(now);
        if next.is_some_and(|next| next <= now) {
            continue;
        }
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = closed.cancelled() => return,
            () = due => {
                // Whatever has moved is news for its consumers.
                shared.change(|state| state.expire(Instant::now()));
            }
            () = changed => {}
        }
    }
}

impl Client {
    /// Waits until the broker is up; false when the client was closed.
    async fn up(&self) -> bool {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.closed.is_cancelled() {
                return false;
            }
            if !self.shared.state.lock().down {
                return true;
            }
            tokio::select! {
                () = self.closed.cancelled() => return false,
                () = changed => {}
            }
        }
    }

    async fn reach(&self, what: &str) -> Result<(), Error> {
        match tokio::time::timeout(REACH_DEADLINE, self.up()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(closed()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("{what}: no connection to the broker within {REACH_DEADLINE:?}"),
            )),
        }
    }

    fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Deliveries>, Error> {
        let id = self.shared.change(|state| state.consume(queue, prefetch))?;
        Ok(Box::new(Consuming {
            channel: Arc::new(Channel {
                shared: Arc::clone(&self.shared),
                id,
            }),
        }))
    }
}

impl Transport for Client {
    fn send(
        &self,
        outgoing: Arc<Outgoing>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Pending, Error>> {
        async move {
            match timeout_at(deadline, self.up()).await {
                Ok(true) => {}
                Ok(false) => return Err(gave_up(&outgoing, false, "the client is closed")),
                Err(_) => return Err(gave_up(&outgoing, false, "the deadline has passed")),
            }
            let (request, pending) = Request::new(Arc::clone(&outgoing), deadline);
            let stored = self
                .shared
                .change(|state| state.publish(&outgoing, Instant::now()));
            request.answer(stored);
            Ok(pending)
        }
        .boxed()
    }

    fn open<'a>(
        &'a self,
        topology: &'a Topology,
        queue: &'a str,
        prefetch: u16,
        _tag: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>> {
        async move {
            if !self.up().await {
                return Err(closed());
            }
            self.shared.change(|state| state.declare(topology))?;
            self.consume(queue, prefetch)
        }
        .boxed()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            self.reach("declaring").await?;
            self.shared.change(|state| state.declare(topology))
        }
        .boxed()
    }

    fn bind_foreign<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            self.reach("binding").await?;
            self.shared.change(|state| state.bind(binding))
        }
        .boxed()
    }

    fn unbind<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            self.reach("unbinding").await?;
            self.shared.change(|state| state.unbind(binding));
            Ok(())
        }
        .boxed()
    }

    fn browse<'a>(
        &'a self,
        queue: &'a str,
        at_a_time: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>> {
        async move {
            self.reach("reading a queue").await?;
            self.consume(queue, at_a_time)
        }
        .boxed()
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<(u64, u64), Error>> {
        async move {
            self.reach("counting messages").await?;
            self.shared.state.lock().count(queue)
        }
        .boxed()
    }

    fn links(&self) -> [(&'static str, bool); 2] {
        let up = !self.closed.is_cancelled() && !self.shared.state.lock().down;
        [("publish", up), ("consume", up)]
    }

    fn connectivity(&self) -> Connectivity {
        if self.closed.is_cancelled() {
            Connectivity::Down("closed".to_owned())
        } else if self.shared.state.lock().down {
            Connectivity::Down("the broker in memory is stopped".to_owned())
        } else {
            Connectivity::Up
        }
    }

    fn close(&self, _patience: Duration) -> BoxFuture<'_, ()> {
        async move {
            self.closed.cancel();
            let clock = self.clock.lock().take();
            if let Some(clock) = clock {
                // It ends at its next turn; a panic in it has been reported.
                let _ = clock.await;
            }
        }
        .boxed()
    }
}

struct Consuming {
    channel: Arc<Channel>,
}

/// A channel with one consumer; what is unsettled returns when the consumer goes.
struct Channel {
    shared: Arc<Shared>,
    id: ConsumerId,
}

impl Drop for Consuming {
    fn drop(&mut self) {
        let id = self.channel.id;
        self.channel
            .shared
            .change(|state| state.close(id, Instant::now()));
    }
}

impl Deliveries for Consuming {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Incoming, Error>>> {
        async move {
            let Channel { shared, id } = self.channel.as_ref();
            loop {
                let changed = shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                // A guard of its own: it must not be held over the wait.
                let next = shared.state.lock().next(*id);
                match next {
                    Next::Ended => return None,
                    Next::Nothing => changed.await,
                    Next::Delivery(tag, message) => {
                        let settle =
                            Settle::new(Arc::clone(&self.channel) as Arc<dyn Settlement>, tag);
                        return Some(Ok(Incoming {
                            redelivered: message.redelivered(),
                            exchange: message.exchange,
                            routing_key: message.routing_key,
                            properties: message.properties,
                            body: message.body,
                            settle,
                        }));
                    }
                }
            }
        }
        .boxed()
    }

    fn is_alive(&self) -> bool {
        self.channel.shared.state.lock().is_open(self.channel.id)
    }

    fn cancel(&self) -> BoxFuture<'_, Result<(), Error>> {
        let id = self.channel.id;
        self.channel.shared.change(|state| state.cancel(id));
        std::future::ready(Ok(())).boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        // Dropping closes.
        drop(self);
        std::future::ready(()).boxed()
    }
}

impl Settlement for Channel {
    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>> {
        let acked = self.shared.change(|state| state.ack(self.id, tag));
        std::future::ready(answered(acked, "acknowledging a message")).boxed()
    }

    fn requeue(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>> {
        let now = Instant::now();
        let returned = self.shared.change(|state| state.requeue(self.id, tag, now));
        std::future::ready(answered(returned, "giving a message back")).boxed()
    }
}

fn answered(done: bool, attempted: &str) -> Result<(), Error> {
    if done {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unavailable,
        format!("{attempted}: its channel is gone"),
    ))
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the messaging client is closed")
}

const REACH_DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::{ConsumerState, DeadReason, Event};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Placed(u64);

    impl Event for Placed {
        const TYPE: &'static str = "order.placed.v1";
    }

    async fn counting(messaging: &Messaging) -> (Arc<AtomicU64>, crate::Consumer) {
        let handled = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&handled);
        let consumer = messaging
            .subscription("counting")
            .on("orders", move |_: Placed, _| {
                counter.fetch_add(1, Ordering::Relaxed);
                async { Ok(()) }
            })
            .start()
            .await
            .unwrap();
        consumer.ready().await;
        (handled, consumer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_broker_makes_publishes_wait_and_keeps_what_it_holds() {
        let broker = MemoryBroker::new();
        let messaging = broker.connect("orders").await.unwrap();
        let (handled, consumer) = counting(&messaging).await;
        consumer.drain().await;
        messaging.publish(&Placed(1)).await.unwrap();
        broker.stop();
        let event = Placed(2);
        let error = messaging.publish(&event).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let health = messaging.health_check().run().await;
        assert!(health.reason().unwrap().contains("stopped"), "{health:?}");
        let waiting = messaging.publish(&event).into_future();
        let starting = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            broker.start();
        };
        let (published, ()) = tokio::join!(waiting, starting);
        assert!(published.unwrap().routed());
        assert_eq!(broker.ready("orders.counting"), Some(2));
        messaging.close().await;
        let again = broker.connect("orders").await.unwrap();
        let (more, consumer) = counting(&again).await;
        while more.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(consumer.state(), ConsumerState::Consuming);
        assert_eq!(handled.load(Ordering::Relaxed), 0);
        again.close().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_given_back_too_often_is_dead() {
        let broker = MemoryBroker::new();
        let messaging = broker.connect("orders").await.unwrap();
        let (_, consumer) = counting(&messaging).await;
        consumer.drain().await;
        messaging.publish(&Placed(1)).await.unwrap();
        let client = broker.transport(messaging.inner().service());
        for _ in 0..20 {
            let mut deliveries = client.browse("orders.counting", 1).await.unwrap();
            deliveries.next().await.unwrap().unwrap();
            deliveries.close().await;
            assert_eq!(broker.ready("orders.counting"), Some(1));
        }
        let mut last = client.browse("orders.counting", 1).await.unwrap();
        let delivery = last.next().await.unwrap().unwrap();
        assert!(delivery.redelivered);
        delivery.settle.requeue().await.unwrap();
        last.close().await;
        let letters = messaging.dead_letters("counting").list(1).await.unwrap();
        assert_eq!(letters[0].reason, DeadReason::Broker);
        assert_eq!(letters[0].error_type.as_deref(), Some("delivery_limit"));
        messaging.close().await;
    }
}
