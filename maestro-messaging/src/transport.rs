//! What the rest of the crate asks of a broker: the seam above which everything is the same for
//! RabbitMQ and for the broker in memory.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lapin::BasicProperties;
use lapin::types::ShortString;
use maestro_metrics::Tracked;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::{Error, ErrorKind};
use crate::topology::{Binding, Topology};

/// A broker as one client sees it.
pub(crate) trait Transport: Debug + Send + Sync {
    /// Puts a message in line. Waits for room, until the deadline.
    fn send(
        &self,
        outgoing: Arc<Outgoing>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Pending, Error>>;

    /// Declares, and consumes. Waits for the broker, without end.
    fn open<'a>(
        &'a self,
        topology: &'a Topology,
        queue: &'a str,
        prefetch: u16,
        tag: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>>;

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), Error>>;

    /// Binds to an exchange of another service; [`ErrorKind::NotFound`] while it does not exist.
    fn bind_foreign<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>>;

    fn unbind<'a>(&'a self, binding: &'a Binding) -> BoxFuture<'a, Result<(), Error>>;

    /// Deliveries of a queue that are looked at and mostly given back.
    fn browse<'a>(
        &'a self,
        queue: &'a str,
        at_a_time: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Deliveries>, Error>>;

    /// Messages ready and consumers of a queue, which has to exist.
    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<(u64, u64), Error>>;

    /// Whether each connection is up, by purpose.
    fn links(&self) -> [(&'static str, bool); 2];

    fn connectivity(&self) -> Connectivity;

    /// Lets publishes in flight finish, for so long, and ends everything.
    fn close(&self, patience: Duration) -> BoxFuture<'_, ()>;
}

/// A consumer on its own channel.
pub(crate) trait Deliveries: Send + Sync {
    /// The next delivery; `None` when the consumer ended, whatever the reason. Dropping the future
    /// loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Incoming, Error>>>;

    /// Whether the channel is still open.
    fn is_alive(&self) -> bool;

    /// Asks the broker to send nothing more; what it has sent still comes out of `next`.
    fn cancel(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Closes the channel; the broker takes back whatever is unsettled.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Where deliveries are answered.
pub(crate) trait Settlement: Send + Sync {
    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>>;

    fn requeue(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>>;
}

/// The answer to one delivery.
#[derive(Clone)]
pub(crate) struct Settle {
    by: Arc<dyn Settlement>,
    tag: u64,
}

impl Settle {
    pub(crate) fn new(by: Arc<dyn Settlement>, tag: u64) -> Self {
        Self { by, tag }
    }

    /// The message is done.
    pub(crate) async fn ack(self) -> Result<(), Error> {
        self.by.ack(self.tag).await
    }

    /// The message goes back to the queue.
    pub(crate) async fn requeue(self) -> Result<(), Error> {
        self.by.requeue(self.tag).await
    }
}

impl Debug for Settle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settle")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// How the connections are, for the health check.
#[derive(Clone, Debug)]
pub(crate) enum Connectivity {
    Up,
    /// The broker has blocked publishing.
    Blocked,
    Down(String),
}

/// A message on its way to an exchange.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// The broker has the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Whether any queue wanted it.
    pub(crate) routed: bool,
}

/// A publish in line or in flight.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) outgoing: Arc<Outgoing>,
    pub(crate) deadline: Instant,
    /// When it was last handed to the driver.
    pub(crate) sent_at: Option<Instant>,
    /// How often it was sent without an answer.
    pub(crate) losses: u32,
    /// Shared with the caller, whose deadline can pass first.
    pub(crate) sent: Arc<AtomicBool>,
    pub(crate) reply: oneshot::Sender<Result<Stored, Error>>,
}

impl Request {
    pub(crate) fn new(outgoing: Arc<Outgoing>, deadline: Instant) -> (Self, Pending) {
        let (reply, answer) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let pending = Pending {
            answer,
            sent: Arc::clone(&sent),
            deadline,
            timer: None,
            outgoing: Arc::clone(&outgoing),
        };
        let request = Self {
            outgoing,
            deadline,
            sent_at: None,
            losses: 0,
            sent,
            reply,
        };
        (request, pending)
    }

    pub(crate) fn answer(self, result: Result<Stored, Error>) {
        // A caller who has gone does not need the answer.
        let _ = self.reply.send(result);
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline <= now
    }

    pub(crate) fn give_up(self, why: &str) {
        let error = gave_up(&self.outgoing, self.sent.load(Ordering::Relaxed), why);
        self.answer(Err(error));
    }
}

/// The answer to a publish. Dropping it does not take the message back.
#[derive(Debug)]
pub(crate) struct Pending {
    answer: oneshot::Receiver<Result<Stored, Error>>,
    sent: Arc<AtomicBool>,
    deadline: Instant,
    /// Made when the answer is not there at once.
    timer: Option<Pin<Box<Sleep>>>,
    outgoing: Arc<Outgoing>,
}

impl Future for Pending {
    type Output = Result<Stored, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match Pin::new(&mut self.answer).poll(cx) {
            Poll::Ready(Ok(result)) => return Poll::Ready(result),
            Poll::Ready(Err(_)) => {
                let sent = self.sent.load(Ordering::Relaxed);
                return Poll::Ready(Err(gave_up(&self.outgoing, sent, "the client was closed")));
            }
            Poll::Pending => {}
        }
        let deadline = self.deadline;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let sent = self.sent.load(Ordering::Relaxed);
        Poll::Ready(Err(gave_up(
            &self.outgoing,
            sent,
            "the deadline has passed",
        )))
    }
}

/// The error of a publish without an answer: whether it may be stored depends on whether it was
/// handed to the driver.
pub(crate) fn gave_up(outgoing: &Outgoing, sent: bool, why: &str) -> Error {
    let (exchange, key) = (&outgoing.exchange, &outgoing.routing_key);
    if sent {
        Error::new(
            ErrorKind::Unconfirmed,
            format!(
                "publishing `{key}` to `{exchange}`: sent, and {why} before the broker confirmed; it may be stored"
            ),
        )
    } else {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "publishing `{key}` to `{exchange}`: not sent, {why}; look at the broker's health (connection, memory and disk alarms)"
            ),
        )
    }
}

/// The error of a publish that a full queue did not take.
pub(crate) fn refused(outgoing: &Outgoing) -> Error {
    Error::new(
        ErrorKind::Rejected,
        format!(
            "publishing `{}` to `{}`: at least one bound queue refused it (full); others may have stored it",
            outgoing.routing_key, outgoing.exchange
        ),
    )
}

/// A message from a queue, to be settled exactly once.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) redelivered: bool,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    pub(crate) settle: Settle,
    /// Counts it as held by its subscription for as long as it is.
    pub(crate) held: Option<Tracked>,
}
