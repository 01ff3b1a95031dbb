//! A broker in memory, for unit tests of services: what they publish, subscribe to, retry and
//! dead-letter behaves as on RabbitMQ, in microseconds and without a server.

mod client;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use maestro_config::{Environment, ServiceName};
use tokio::time::Instant;

use crate::client::Messaging;
use crate::config::MessagingConfig;
use crate::error::{Error, ErrorKind};
use crate::topology::Topology;

use client::Client;
use state::Shared;

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
/// assert!(broker.ready("shop.billing").is_some());
/// broker.delete_queue("shop.billing");
/// assert!(broker.ready("shop.billing").is_none());
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
    ///
    /// ```
    /// # use maestro_messaging::{Event, MemoryBroker};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), maestro_messaging::Error> {
    /// use std::time::Duration;
    ///
    /// let broker = MemoryBroker::new();
    /// let messaging = broker.connect("shop").await?;
    /// let order = OrderPlaced { order_id: "7".into() };
    ///
    /// broker.stop();
    /// let refused = messaging.publish(&order).deadline(Duration::from_millis(10)).await;
    /// assert!(refused.is_err_and(|error| error.is_transient()));
    /// broker.start();
    /// messaging.publish(&order).await?;
    /// # messaging.close().await;
    /// # Ok(())
    /// # }
    /// ```
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
        Client::new(&self.shared)
    }
}
