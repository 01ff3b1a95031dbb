//! A client's end of the broker in memory, and its channels.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind};
use crate::memory::state::{ConsumerId, Next, Shared};
use crate::topology::{Binding, Topology};
use crate::transport::{
    Connectivity, Deliveries, Incoming, Outgoing, Pending, Request, Settle, Settlement, Transport,
    gave_up,
};

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
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let closed = CancellationToken::new();
        let clock = tokio::spawn(tick(Arc::clone(shared), closed.clone()));
        Self {
            shared: Arc::clone(shared),
            closed,
            clock: parking_lot::Mutex::new(Some(clock)),
        }
    }

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
                            held: None,
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
