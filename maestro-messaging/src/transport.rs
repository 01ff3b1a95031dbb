//! What the rest of the crate asks of a broker.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::amqp::Settle;
use crate::error::{Error, ErrorKind};

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

/// A message from a queue, to be settled exactly once.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) redelivered: bool,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    pub(crate) settle: Settle,
}
