//! Subscribing: which events, and how handled.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use maestro_config::{ServiceName, SubscriptionName};

use crate::attendance::Attendance;
use crate::batch::{self, BatchHandler, Received};
use crate::client::Messaging;
use crate::consumer::Spec;
use crate::error::{Error, ErrorKind};
use crate::event::{self, Event, is_event_type};
use crate::handler::{ErasedHandler, HandlerError, MessageContext, erase};
use crate::in_flight::InFlight;
use crate::intake::Handling;
use crate::running::Consumer;
use crate::topology::{Binding, QueueOptions, Topology};

/// A subscription being built; [`start`](Self::start) runs it.
///
/// ```no_run
/// # use maestro_messaging::{Event, Messaging};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
/// # async fn bill(order: String) -> std::io::Result<()> { Ok(()) }
/// # async fn run(messaging: Messaging) -> Result<(), maestro_messaging::Error> {
/// let consumer = messaging
///     .subscription("billing")
///     .on("quality-fabric", |event: OrderPlaced, _context| async move {
///         bill(event.order_id).await?;
///         Ok(())
///     })
///     .start()
///     .await?;
/// # consumer.drain().await;
/// # Ok(())
/// # }
/// ```
///
/// In order, where no event of an account may be left out, whatever it takes:
/// ```no_run
/// # use maestro_messaging::{Error, Event, Messaging};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Booked { account: String }
/// # impl Event for Booked { const TYPE: &'static str = "amount.booked.v1"; }
/// # async fn book(account: String) -> std::io::Result<()> { Ok(()) }
/// # async fn run(messaging: Messaging) -> Result<(), Error> {
/// messaging
///     .subscription("ledger")
///     .ordered()
///     .park_keys()
///     .prefetch(1_000) // so many parked events before all accounts wait
///     .on("bank", |event: Booked, _| async move { Ok(book(event.account).await?) })
///     .start()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// Jobs that take long, are not worth doing late, and must not pile up:
/// ```no_run
/// # use maestro_messaging::{Error, Event, Messaging};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct PreviewRequested { page: u64 }
/// # impl Event for PreviewRequested { const TYPE: &'static str = "preview.requested.v1"; }
/// # async fn render(page: u64) -> std::io::Result<()> { Ok(()) }
/// # async fn run(messaging: Messaging) -> Result<(), Error> {
/// use std::time::Duration;
///
/// messaging
///     .subscription("previews")
///     .prefetch(2)
///     .concurrency(2)
///     .handler_timeout(Duration::from_mins(10))
///     .time_to_live(Duration::from_hours(1))
///     .max_length(10_000) // then publishing fails, for all who want this event
///     .on("editor", |job: PreviewRequested, _| async move { Ok(render(job.page).await?) })
///     .start()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is consumed until it is started"]
pub struct Subscription {
    messaging: Messaging,
    name: String,
    handlers: HashMap<&'static str, ErasedHandler>,
    batch: Option<(&'static str, BatchHandler)>,
    batch_size: usize,
    batch_wait: Duration,
    events: Vec<(ServiceName, String)>,
    retired: Vec<(ServiceName, String)>,
    options: QueueOptions,
    parks_keys: bool,
    prefetch: u16,
    concurrency: usize,
    handler_timeout: Duration,
    problem: Option<Error>,
}

impl Subscription {
    pub(crate) fn new(messaging: &Messaging, name: &str) -> Self {
        let config = &messaging.inner().config;
        Self {
            messaging: messaging.clone(),
            name: name.to_owned(),
            handlers: HashMap::new(),
            batch: None,
            batch_size: 100,
            batch_wait: Duration::from_millis(200),
            events: Vec::new(),
            retired: Vec::new(),
            options: QueueOptions::default(),
            parks_keys: false,
            prefetch: config.prefetch,
            concurrency: config.concurrency,
            handler_timeout: config.handler_timeout,
            problem: None,
        }
    }

    /// Handles an event that the service `publisher` publishes. One handler for each event type.
    ///
    /// The message is acknowledged when the handler has returned `Ok`; a handler can run twice for
    /// one message (crash, lost connection), so effects go through the inbox or are idempotent. A
    /// handler that exceeds `MAESTRO_MESSAGING_HANDLER_TIMEOUT` is dropped at its next await, and
    /// that, a panic, and an `Err` are failures of this message alone.
    pub fn on<E, F, Fut>(mut self, publisher: &str, handler: F) -> Self
    where
        E: Event,
        F: Fn(E, MessageContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.receive::<E>(publisher);
        if self.handlers.insert(E::TYPE, erase(handler)).is_some() {
            self.note(&format!("two handlers for `{}`", E::TYPE));
        }
        self
    }

    /// Handles events of one type many at a time, at most [`batch_size`](Self::batch_size) of them,
    /// and no later than [`batch_wait`](Self::batch_wait) after the first came. All are acknowledged
    /// when the handler has returned `Ok`. A batch that fails is handled again one event at a time,
    /// so that a bad event fails alone. Such a subscription has no other handler.
    ///
    /// ```no_run
    /// # use maestro_messaging::{Error, Event, Messaging};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Viewed { page: u64 }
    /// # impl Event for Viewed { const TYPE: &'static str = "page.viewed.v1"; }
    /// # async fn insert(pages: Vec<u64>) -> std::io::Result<()> { Ok(()) }
    /// # async fn run(messaging: Messaging) -> Result<(), Error> {
    /// use std::time::Duration;
    /// use maestro_messaging::Received;
    ///
    /// messaging
    ///     .subscription("statistics")
    ///     .batch_size(200)
    ///     .batch_wait(Duration::from_secs(1)) // nobody looks at it sooner
    ///     .on_batch("shop", |batch: Vec<Received<Viewed>>| async move {
    ///         Ok(insert(batch.into_iter().map(|received| received.event.page).collect()).await?)
    ///     })
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_batch<E, F, Fut>(mut self, publisher: &str, handler: F) -> Self
    where
        E: Event,
        F: Fn(Vec<Received<E>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.receive::<E>(publisher);
        if self
            .batch
            .replace((E::TYPE, batch::erase(handler)))
            .is_some()
        {
            self.note("two batch handlers");
        }
        self
    }

    /// Most events of a batch; 100 otherwise, and never more than the prefetch.
    pub fn batch_size(mut self, events: usize) -> Self {
        self.batch_size = events.max(1);
        self
    }

    /// Longest time the first event of a batch waits for the others; 200 ms otherwise.
    pub fn batch_wait(mut self, limit: Duration) -> Self {
        self.batch_wait = limit;
        self
    }

    /// Handles events of one key in the order in which they were published, one at a time; events
    /// of different keys run beside each other, and events without a key in any order. One replica
    /// consumes, the others stand by (single active consumer).
    ///
    /// A failed event is retried in place, after the same delays, while its key waits: on the rungs
    /// later events would overtake it. Given up, it goes to the dead-letter queue and its key goes on
    /// without it. Part of the queue's arguments: changing it later needs a new queue.
    pub fn ordered(mut self) -> Self {
        self.options.ordered = true;
        self
    }

    /// Keeps a key waiting whose event failed on every attempt, instead of going on without it: the
    /// event is tried again after the longest delay until it succeeds, events of other keys pass. What
    /// waits counts against the [`prefetch`](Self::prefetch): with that many waiting, all wait. Only
    /// [`ordered`](Self::ordered); what the handler calls poison is dead nevertheless.
    pub fn park_keys(mut self) -> Self {
        self.parks_keys = true;
        self
    }

    /// Stops receiving an event of the service `publisher` that earlier versions of this service
    /// handled: its binding is removed at start. Until then, messages of that type are dead-lettered
    /// as unknown.
    ///
    /// ```no_run
    /// # use maestro_messaging::{Error, Event, Messaging};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v2"; }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderChanged { order_id: String }
    /// # impl Event for OrderChanged { const TYPE: &'static str = "order.changed.v1"; }
    /// # async fn run(messaging: Messaging) -> Result<(), Error> {
    /// messaging
    ///     .subscription("billing")
    ///     .on("shop", |event: OrderPlaced, _| async move { Ok(println!("{}", event.order_id)) })
    ///     .retire::<OrderChanged>("shop")
    ///     .retire_type("shop", "order.placed.v1") // its Rust type is gone
    ///     .start()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn retire<E: Event>(self, publisher: &str) -> Self {
        self.retire_type(publisher, event::type_of::<E>())
    }

    /// The same as [`retire`](Self::retire), for an event whose Rust type has been deleted.
    pub fn retire_type(mut self, publisher: &str, event_type: &str) -> Self {
        if !is_event_type(event_type) {
            self.note(&format!(
                "`{event_type}`, which it retires, is no event type such as `order.placed.v1`"
            ));
        }
        match publisher.parse() {
            Ok(publisher) => self.retired.push((publisher, event_type.to_owned())),
            Err(error) => self.note(&format!("its retired publisher {error}")),
        }
        self
    }

    /// Deliveries held unacknowledged; `MAESTRO_MESSAGING_PREFETCH` otherwise.
    pub fn prefetch(mut self, deliveries: u16) -> Self {
        self.prefetch = deliveries.max(1);
        self
    }

    /// Handlers running at a time; `MAESTRO_MESSAGING_CONCURRENCY` otherwise.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers.max(1);
        self
    }

    /// Longest time a handler may take; `MAESTRO_MESSAGING_HANDLER_TIMEOUT` otherwise.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.handler_timeout = limit;
        self
    }

    /// Messages that wait longer than this are dead-lettered by the broker. Off by default. Part of
    /// the queue's arguments: changing it later needs a new queue.
    pub fn time_to_live(mut self, limit: Duration) -> Self {
        self.options.time_to_live = Some(limit);
        self
    }

    /// A queue with so many messages refuses more. Off by default, and rarely right for events: one
    /// full queue makes the publisher's confirm negative for all. Part of the queue's arguments:
    /// changing it later needs a new queue.
    pub fn max_length(mut self, messages: u64) -> Self {
        self.options.max_length = Some(messages);
        self
    }

    /// Starts consuming in the background and returns at once, whether the broker is up or not.
    /// Fails only on what no retry can mend: names, and two handlers for one event.
    #[expect(
        clippy::unused_async,
        reason = "starting may come to wait for something; callers await it already"
    )]
    pub async fn start(self) -> Result<Consumer, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let inner = self.messaging.inner();
        let name: SubscriptionName = self.name.parse().map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!("starting a subscription: {error}"),
            )
        })?;
        if let Some((publisher, event_type)) = self
            .retired
            .iter()
            .find(|event| self.events.contains(event))
        {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "starting subscription `{name}`: it handles `{event_type}` of `{publisher}`, and retires it"
                ),
            ));
        }
        let wrong = match (self.handlers.is_empty(), &self.batch, self.options.ordered) {
            (true, None, _) => "it handles no event; add `.on(…)`",
            (false, Some(_), _) => "it has a batch handler and others; make it two subscriptions",
            (_, Some(_), true) => "a batch has no order of keys; take one of the two",
            _ if self.parks_keys && !self.options.ordered => {
                "keys are parked where they are ordered"
            }
            _ => "",
        };
        if !wrong.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("starting subscription `{name}`: {wrong}"),
            ));
        }
        let handling = if self.batch.is_some() {
            Handling::Batch {
                size: self.batch_size.min(usize::from(self.prefetch)),
                wait: self.batch_wait,
            }
        } else if self.options.ordered {
            Handling::Ordered
        } else {
            Handling::Each
        };
        let service = inner.service();
        let queue = service.queue(&name);
        let dead_letter_queue = service.dead_letter_queue(&name);
        let topology = Topology::subscription(
            service,
            &name,
            &self.events,
            inner.config.retry_delays(),
            &self.options,
        );
        let retired = self
            .retired
            .iter()
            .map(|(publisher, event_type)| Binding {
                queue: queue.clone(),
                exchange: publisher.events_exchange(),
                routing_key: event_type.clone(),
            })
            .collect();
        let spec = Spec {
            name: name.as_str().into(),
            metrics: inner.metrics.queue(&queue, &dead_letter_queue),
            queue,
            dead_letter_queue,
            topology,
            retired,
            handlers: self.handlers,
            batch: self.batch,
            handling,
            parks_keys: self.parks_keys,
            in_flight: InFlight::default(),
            attendance: Attendance::new(),
            prefetch: self.prefetch,
            concurrency: self.concurrency.min(usize::from(self.prefetch)),
            handler_timeout: self.handler_timeout,
        };
        inner.start_consumer(spec)
    }

    fn receive<E: Event>(&mut self, publisher: &str) {
        let event_type = event::type_of::<E>();
        match publisher.parse() {
            Ok(publisher) => self.events.push((publisher, event_type.to_owned())),
            Err(error) => self.note(&format!("its publisher {error}")),
        }
    }

    fn note(&mut self, problem: &str) {
        let problem = Error::new(
            ErrorKind::Config,
            format!("starting subscription `{}`: {problem}", self.name),
        );
        self.problem.get_or_insert(problem);
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.name)
            .field("events", &self.events)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
