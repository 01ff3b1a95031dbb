//! Messages to whoever listens right now, on channels below the service's prefix.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backoff;
use crate::client::Cache;
use crate::codec;
use crate::connection::{Connection, Event};
use crate::error::{Error, ErrorKind};
use crate::key::{EntryId, Key, check_name};
use crate::link::{Link, Request};
use crate::metrics::Operation;

/// What a subscription brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// A message.
    Message(T),
    /// Messages may have been missed: the connection was lost, the subscriber was too slow, or what
    /// came was not of this type. Look at the state that the messages speak of.
    Missed,
}

/// Listens to a channel; made by [`Cache::subscribe`]. Ends when dropped.
pub struct Subscription<T> {
    messages: mpsc::Receiver<Vec<u8>>,
    missed: Arc<Missed>,
    _stop: DropGuard,
    marker: PhantomData<fn() -> T>,
}

#[derive(Debug, Default)]
struct Missed {
    any: AtomicBool,
    told: Notify,
}

impl Missed {
    fn note(&self) {
        self.any.store(true, Ordering::Release);
        self.told.notify_one();
    }
}

/// Messages that wait for a slow subscriber; later ones are missed.
const WAITING: usize = 1_024;
/// Largest message, in bytes of JSON: the server copies it to every subscriber.
const MAX_MESSAGE: usize = 1 << 20;

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

impl Cache {
    /// Sends a message to everybody who listens to a channel of this service now; says to how many
    /// connections it went. It is kept nowhere: what must not be lost is an event of
    /// `maestro-messaging`.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] above 1 MiB, or what the server said. Not sent again when the
    /// connection is lost.
    pub async fn publish<'a, T: Serialize>(
        &self,
        channel: impl Into<EntryId<'a>>,
        message: &T,
    ) -> Result<u64, Error> {
        let channel = channel.into();
        check_name("a channel", channel.as_str())?;
        let inner = self.inner();
        let encoded = codec::json("channel", message, MAX_MESSAGE)?;
        let mut command = redis::cmd("PUBLISH");
        command.arg(inner.keys.channel(channel.as_str()).as_bytes());
        command.arg(encoded.payload);
        let request = Request {
            operation: Operation::Publish,
            command,
            repeatable: false,
        };
        match inner.server.link.query(&request).await? {
            Value::Int(receivers) => Ok(u64::try_from(receivers).unwrap_or(0)),
            other => Err(inner.server.misunderstood("PUBLISH", &other)),
        }
    }

    /// Listens to a channel of this service, on a connection of its own that is made again when it is
    /// lost. What is published after this has returned arrives, or [`Received::Missed`] does.
    ///
    /// ```no_run
    /// # async fn example(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
    /// use maestro_cache::Received;
    ///
    /// let mut prices = cache.subscribe::<u64>("price").await?;
    /// while let Some(received) = prices.next().await {
    ///     match received {
    ///         Received::Message(price) => println!("{price}"),
    ///         Received::Missed => println!("look it up"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What the first attempt said.
    pub async fn subscribe<'a, T: DeserializeOwned>(
        &self,
        channel: impl Into<EntryId<'a>>,
    ) -> Result<Subscription<T>, Error> {
        let channel = channel.into();
        check_name("a channel", channel.as_str())?;
        let inner = self.inner();
        let (sender, messages) = mpsc::channel(WAITING);
        let (first, settled) = oneshot::channel();
        let missed = Arc::new(Missed::default());
        let stop = inner.stop.child_token();
        inner.tasks.spawn(listen(
            Arc::clone(&inner.server.link),
            inner.keys.channel(channel.as_str()),
            sender,
            Arc::clone(&missed),
            first,
            stop.clone(),
        ));
        let stop = stop.drop_guard();
        match settled.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "a channel was not subscribed: the cache is closed",
                ));
            }
        }
        Ok(Subscription {
            messages,
            missed,
            _stop: stop,
            marker: PhantomData,
        })
    }
}

impl<T: DeserializeOwned> Subscription<T> {
    /// The next message; `None` once the cache is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<Received<T>> {
        loop {
            if self.missed.any.swap(false, Ordering::AcqRel) {
                return Some(Received::Missed);
            }
            let bytes = tokio::select! {
                () = self.missed.told.notified() => continue,
                message = self.messages.recv() => message?,
            };
            return Some(match serde_json::from_slice(&bytes) {
                Ok(message) => Received::Message(message),
                Err(_) => Received::Missed,
            });
        }
    }
}

/// Keeps one subscription alive until `stop`.
async fn listen(
    link: Arc<Link>,
    channel: Key,
    messages: mpsc::Sender<Vec<u8>>,
    missed: Arc<Missed>,
    first: oneshot::Sender<Result<(), Error>>,
    stop: CancellationToken,
) {
    let mut first = Some(first);
    let (mut attempt, mut since) = (0, Instant::now());
    loop {
        let lost = Arc::new(Notify::new());
        let on_event = {
            let (messages, missed, lost) =
                (messages.clone(), Arc::clone(&missed), Arc::clone(&lost));
            move |event| match event {
                Event::Message(bytes) => {
                    if messages.try_send(bytes).is_err() {
                        missed.note();
                    }
                }
                Event::Lost => lost.notify_one(),
                Event::Invalidated(_) | Event::Flushed => {}
            }
        };
        let opened = tokio::select! {
            () = stop.cancelled() => return,
            opened = open(&link, &channel, on_event) => opened,
        };
        match opened {
            Ok(_connection) => {
                match first.take() {
                    Some(first) => drop(first.send(Ok(()))),
                    None => missed.note(),
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = lost.notified() => {}
                }
                missed.note();
                (attempt, since) = (0, Instant::now());
            }
            Err(error) => {
                if let Some(first) = first.take() {
                    drop(first.send(Err(error)));
                    return;
                }
                attempt += 1;
            }
        }
        let pause = backoff::pause(attempt, since.elapsed(), fastrand::f64());
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

async fn open(
    link: &Link,
    channel: &Key,
    on_event: impl Fn(Event) + Send + Sync + 'static,
) -> Result<Connection, Error> {
    let deadline = Instant::now() + link.config.connect_timeout;
    let connection = Connection::open(&link.config, deadline, on_event).await?;
    let mut command = redis::cmd("SUBSCRIBE");
    command.arg(channel.as_bytes());
    match connection.send(&command, deadline).await {
        Ok(_) => Ok(connection),
        Err(failure) => Err(failure.explain("SUBSCRIBE", &link.config)),
    }
}
