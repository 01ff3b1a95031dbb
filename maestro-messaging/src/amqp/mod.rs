//! RabbitMQ over AMQP 0-9-1.

mod again;
mod attribution;
mod consume;
mod declare;
mod difference;
mod failure;
mod link;
mod links;
mod publisher;
mod sanitize;
mod slots;
mod version;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::config::MessagingConfig;
use crate::error::{Error, ErrorKind};
use crate::topology::{Binding, Topology};
use crate::transport::{Connectivity, Deliveries, Outgoing, Pending, Request, Transport, gave_up};

use consume::Consuming;
pub(crate) use failure::chain;
use link::{Link, LinkState, Live, Purpose};
use links::Links;
use publisher::Publisher;
#[cfg(any(test, fuzzing))]
pub(crate) use {difference::read as read_difference, sanitize::Sanitizer, version::Greeting};

/// The broker of a service: a link that publishes with the task for it, and those that consume.
#[derive(Debug)]
pub(crate) struct Broker {
    publish: Link,
    consume: Links,
    /// `None` once closed.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    publisher: Mutex<Option<JoinHandle<()>>>,
}

impl Broker {
    pub(crate) fn start(config: &Arc<MessagingConfig>) -> Self {
        let publish = Link::start(config, Purpose::Publish);
        let consume = Links::start(config);
        // As many in line as in flight: a burst is taken, a stall is felt by the callers.
        let (requests, queue) = mpsc::channel(config.publish_window);
        let publisher = Publisher::new(Arc::clone(config), queue);
        let publisher = tokio::spawn(publisher.run(publish.watch()));
        Self {
            publish,
            consume,
            requests: Mutex::new(Some(requests)),
            publisher: Mutex::new(Some(publisher)),
        }
    }

    /// Puts a message in line. Waits for room, until the deadline.
    async fn put_in_line(
        &self,
        outgoing: Arc<Outgoing>,
        deadline: Instant,
    ) -> Result<Pending, Error> {
        let requests = self.requests.lock().clone();
        let Some(requests) = requests else {
            return Err(gave_up(&outgoing, false, "the client is closed"));
        };
        let (request, pending) = Request::new(Arc::clone(&outgoing), deadline);
        match tokio::time::timeout_at(deadline, requests.send(request)).await {
            Ok(Ok(())) => Ok(pending),
            Ok(Err(_)) => Err(gave_up(&outgoing, false, "the client is closed")),
            Err(_) => Err(gave_up(&outgoing, false, "the deadline has passed in line")),
        }
    }

    async fn consume_from(
        &self,
        topology: &Topology,
        queue: &str,
        prefetch: u16,
        tag: &str,
    ) -> Result<Consuming, Error> {
        let place = self.consume.place().await.ok_or_else(closed)?;
        declare::declare(&place.live, topology).await?;
        Consuming::open(place, queue, prefetch, tag).await
    }

    async fn declare_all(&self, topology: &Topology) -> Result<(), Error> {
        let live = self.reach("declaring").await?;
        declare::declare(&live, topology).await
    }

    async fn bind_to_foreign(&self, binding: &Binding) -> Result<(), Error> {
        let live = self.consume.first().await.ok_or_else(closed)?;
        declare::bind_foreign(&live, binding).await
    }

    async fn remove_binding(&self, binding: &Binding) -> Result<(), Error> {
        let live = self.reach("unbinding").await?;
        declare::unbind(&live, binding).await
    }

    /// Deliveries of a queue that are looked at and mostly given back. A consumer, not
    /// `basic.get`: RabbitMQ 3.10 forgets what was got from a quorum queue without consumers when
    /// the channel closes, and the messages stay unacknowledged until the queue's leader restarts.
    async fn look_at(&self, queue: &str, at_a_time: u16) -> Result<Consuming, Error> {
        let place = reached("reading a queue", self.consume.place()).await?;
        Consuming::open(place, queue, at_a_time, "").await
    }

    async fn count_ready(&self, queue: &str) -> Result<(u64, u64), Error> {
        let live = self.reach("counting messages").await?;
        declare::count(&live, queue).await
    }

    /// Whether each link is up.
    fn links_up(&self) -> [(&'static str, bool); 2] {
        let is_up =
            |state: &LinkState| matches!(state, LinkState::Up(live) if !live.down().is_cancelled());
        let publish = is_up(&self.publish.watch().borrow());
        let consume = self.consume.states().iter().all(is_up);
        [
            (Purpose::Publish.as_str(), publish),
            (Purpose::Consume.as_str(), consume),
        ]
    }

    fn connectivity_of_links(&self) -> Connectivity {
        let publish = self.publish.watch().borrow().clone();
        let mut blocked = false;
        for state in std::iter::once(publish).chain(self.consume.states()) {
            match state {
                LinkState::Up(live) if !live.down().is_cancelled() => {
                    blocked |= *live.blocked().borrow();
                }
                LinkState::Up(_) => return Connectivity::Down("the connection is gone".into()),
                LinkState::Down(Some(error)) => return Connectivity::Down(error.to_string()),
                LinkState::Down(None) => return Connectivity::Down("connecting".into()),
                LinkState::Closed => return Connectivity::Down("closed".into()),
            }
        }
        if blocked {
            Connectivity::Blocked
        } else {
            Connectivity::Up
        }
    }

    /// Lets publishes in flight finish, until the deadline, and closes both connections.
    async fn close_all(&self, patience: Duration) {
        self.requests.lock().take();
        let publisher = self.publisher.lock().take();
        if let Some(mut publisher) = publisher
            && timeout(patience, &mut publisher).await.is_err()
        {
            tracing::warn!("publishes were still unconfirmed when the client closed");
            self.publish.close().await;
            // Ends now: its link is closed, and every wait of its own is bounded.
            let _ = publisher.await;
        }
        self.publish.close().await;
        self.consume.close().await;
    }

    /// The consuming link for an operation a caller waits for.
    async fn reach(&self, what: &str) -> Result<Arc<Live>, Error> {
        reached(what, self.consume.first()).await
    }
}

impl Transport for Broker {
    fn send(
        &self,
        outgoing: Arc<Outgoing>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Pending, Error>> {
        self.put_in_line(outgoing, deadline).boxed()
    }

    fn open<'a>(
        &'a self,
        topology: &'a Topology,
        queue: &'a str,
        prefetch: u16,
        tag: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>> {
        boxed(self.consume_from(topology, queue, prefetch, tag)).boxed()
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), Error>> {
        self.declare_all(topology).boxed()
    }

    fn bind_foreign<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>> {
        self.bind_to_foreign(binding).boxed()
    }

    fn unbind<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>> {
        self.remove_binding(binding).boxed()
    }

    fn browse<'a>(
        &'a self,
        queue: &'a str,
        at_a_time: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>> {
        boxed(self.look_at(queue, at_a_time)).boxed()
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<(u64, u64), Error>> {
        self.count_ready(queue).boxed()
    }

    fn links(&self) -> [(&'static str, bool); 2] {
        self.links_up()
    }

    fn connectivity(&self) -> Connectivity {
        self.connectivity_of_links()
    }

    fn close(&self, patience: Duration) -> BoxFuture<'_, ()> {
        self.close_all(patience).boxed()
    }
}

async fn boxed(
    opening: impl Future<Output = Result<Consuming, Error>>,
) -> Result<Box<dyn Deliveries>, Error> {
    Ok(Box::new(opening.await?))
}

/// A connection, for an operation a caller waits for.
async fn reached<T>(what: &str, connecting: impl Future<Output = Option<T>>) -> Result<T, Error> {
    match timeout(REACH_DEADLINE, connecting).await {
        Ok(Some(connected)) => Ok(connected),
        Ok(None) => Err(closed()),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{what}: no connection to the broker within {REACH_DEADLINE:?}"),
        )),
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the messaging client is closed")
}

const REACH_DEADLINE: Duration = Duration::from_secs(10);
