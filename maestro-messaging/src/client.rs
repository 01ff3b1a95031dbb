//! The handle services hold.

use std::sync::Arc;
use std::time::Duration;

use maestro_config::ServiceName;
use maestro_metrics::Registry;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::MessagingConfig;
use crate::consumer::{ConsumerTask, Spec};
use crate::dead_letters::DeadLetters;
use crate::error::{Error, ErrorKind};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::publish::{self, Publish, Receipt};
use crate::running::{self, Consumer, Drained};
use crate::subscription::Subscription;
use crate::transport::Transport;

/// A connection to the platform's message broker. Cheap to clone; all clones are one client.
///
/// It connects in the background and for as long as it lives: a broker that is down, restarts or
/// moves makes calls wait and health degrade, never the start fail.
///
/// ```no_run
/// # use maestro_messaging::{Event, Messaging, MessagingConfig};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
/// # async fn run(config: MessagingConfig) -> Result<(), maestro_messaging::Error> {
/// let messaging = Messaging::connect(config).await?;
/// let receipt = messaging.publish(&OrderPlaced { order_id: "7".into() }).await?;
/// println!("stored as {}, routed: {}", receipt.message_id(), receipt.routed());
/// messaging.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Messaging {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Arc<MessagingConfig>,
    pub(crate) broker: Box<dyn Transport>,
    pub(crate) metrics: Arc<Metrics>,
    /// The events exchange, for spans.
    pub(crate) exchange: String,
    pub(crate) consumer_tag: String,
    /// Cancelled when the client closes.
    pub(crate) closing: CancellationToken,
    consumers: Mutex<Vec<Running>>,
    pub(crate) background: Mutex<Vec<JoinHandle<()>>>,
}

struct Running {
    consumer: Consumer,
    task: JoinHandle<()>,
}

impl Messaging {
    /// Starts the client. Returns at once: the broker may come up later.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if a setting cannot be used.
    pub async fn connect(config: MessagingConfig) -> Result<Self, Error> {
        Self::builder(config).connect().await
    }

    /// Options that are code, not configuration.
    pub fn builder(config: MessagingConfig) -> crate::builder::Builder {
        crate::builder::Builder::new(config)
    }

    pub(crate) fn start(
        config: MessagingConfig,
        registry: &Registry,
        broker: impl FnOnce(&Arc<MessagingConfig>) -> Box<dyn Transport>,
    ) -> Self {
        let service = config.identity.service();
        let exchange = service.events_exchange();
        // The same service runs many times; the broker shows this beside each consumer.
        let consumer_tag = format!(
            "{}@{}-{}",
            service,
            crate::headers::truncated(config.identity.instance(), 100),
            Uuid::now_v7().simple()
        );
        let metrics = Arc::new(Metrics::new(registry, exchange.clone()));
        let config = Arc::new(config);
        let inner = Arc::new(Inner {
            broker: broker(&config),
            config,
            metrics,
            exchange,
            consumer_tag,
            closing: CancellationToken::new(),
            consumers: Mutex::new(Vec::new()),
            background: Mutex::new(Vec::new()),
        });
        crate::monitor::start(&inner);
        Self { inner }
    }

    /// Publishes an event; `.await` resolves when the broker has it on disk in every queue that
    /// wants it, or with an error that says whether it may be stored
    /// ([`Error::may_be_stored`]).
    ///
    /// Trace, correlation id and tenant of the work in hand travel along. To publish together with
    /// a change in the database use the outbox instead.
    pub fn publish<'a, E: Event>(&'a self, event: &'a E) -> Publish<'a, E> {
        Publish::new(self, event)
    }

    /// Publishes many events at once, all in flight together; one result for each, in order.
    ///
    /// Order among them is not promised when the connection is lost on the way.
    pub async fn publish_batch<'e, E: Event>(
        &self,
        events: impl IntoIterator<Item = &'e E, IntoIter: Send>,
    ) -> Vec<Result<Receipt, Error>> {
        publish::publish_batch(self, events.into_iter()).await
    }

    /// Begins a subscription: one durable queue `<service>.<name>`, shared by all replicas.
    pub fn subscription(&self, name: &str) -> Subscription {
        Subscription::new(self, name)
    }

    /// The dead letters of a subscription of this service.
    pub fn dead_letters(&self, subscription: &str) -> DeadLetters {
        DeadLetters::new(self, subscription)
    }

    /// Drains every consumer; bounded by `MAESTRO_MESSAGING_DRAIN_TIMEOUT`.
    pub async fn drain(&self) -> Drained {
        let consumers: Vec<_> = self
            .inner
            .consumers
            .lock()
            .iter()
            .map(|running| running.consumer.clone())
            .collect();
        for consumer in &consumers {
            consumer.drain.cancel();
        }
        let mut total = Drained::default();
        for consumer in consumers {
            let drained = consumer.drain().await;
            total.handed_back += drained.handed_back;
            total.abandoned += drained.abandoned;
        }
        total
    }

    /// Drains the consumers, lets publishes in flight finish, closes the connections, and ends every
    /// task. All clones are closed with it.
    pub async fn close(&self) {
        self.inner.closing.cancel();
        self.drain().await;
        let running = std::mem::take(&mut *self.inner.consumers.lock());
        for running in running {
            // It has reported its end already.
            let _ = running.task.await;
        }
        let background = std::mem::take(&mut *self.inner.background.lock());
        for task in &background {
            task.abort();
        }
        for task in background {
            let _ = task.await;
        }
        self.inner
            .broker
            .close(CLOSE_PATIENCE.min(self.inner.config.confirm_timeout))
            .await;
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl std::fmt::Debug for Messaging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messaging")
            .field("service", self.inner.service())
            .field("connectivity", &self.inner.broker.connectivity())
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn service(&self) -> &ServiceName {
        self.config.identity.service()
    }

    pub(crate) fn start_consumer(self: &Arc<Self>, spec: Spec) -> Result<Consumer, Error> {
        let mut consumers = self.consumers.lock();
        let taken = consumers
            .iter()
            .any(|running| *running.consumer.queue == *spec.queue && !running.consumer.has_ended());
        if taken {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "starting subscription `{}`: it runs already in this process",
                    spec.name
                ),
            ));
        }
        let spec = Arc::new(spec);
        let (consumer, task) = running::spawn(&spec, |state, drain| {
            ConsumerTask::new(Arc::clone(self), Arc::clone(&spec), state, drain)
        });
        consumers.push(Running {
            consumer: consumer.clone(),
            task,
        });
        Ok(consumer)
    }

    pub(crate) fn consumers(&self) -> Vec<Consumer> {
        self.consumers
            .lock()
            .iter()
            .filter(|running| !running.consumer.has_ended())
            .map(|running| running.consumer.clone())
            .collect()
    }
}

/// What is in flight at the end is confirmed in this time or reported as unconfirmed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
