//! Options that are code, not configuration.

use maestro_metrics::Registry;

use crate::amqp::Broker;
use crate::client::Messaging;
use crate::config::MessagingConfig;
use crate::error::Error;
use crate::transport::Transport;

/// Builds a [`Messaging`].
///
/// ```no_run
/// # async fn example(config: maestro_messaging::MessagingConfig) -> Result<(), maestro_messaging::Error> {
/// use maestro_messaging::Messaging;
/// use maestro_metrics::Registry;
///
/// let registry = Registry::detached();
/// let messaging = Messaging::builder(config).registry(&registry).connect().await?;
/// # let _ = messaging;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is connected until `connect` is called"]
#[derive(Debug)]
pub struct Builder {
    config: MessagingConfig,
    registry: Option<Registry>,
    transport: Option<Box<dyn Transport>>,
}

impl Builder {
    pub(crate) fn new(config: MessagingConfig) -> Self {
        Self {
            config,
            registry: None,
            transport: None,
        }
    }

    /// Records metrics in this registry; in one of its own otherwise.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Uses a broker in memory in place of the server; the URL of the settings is not used.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use maestro_config::Environment;
    /// use maestro_messaging::{MemoryBroker, Messaging, MessagingConfig};
    ///
    /// let config = Environment::from_pairs([
    ///     ("MAESTRO_SERVICE_NAME", "shop"),
    ///     ("MAESTRO_ENVIRONMENT", "test"),
    ///     ("MAESTRO_MESSAGING_URL", "amqp://memory:memory@localhost/memory"),
    ///     ("MAESTRO_MESSAGING_RETRY_DELAYS", "10ms,20ms"), // a test does not wait a minute
    /// ])
    /// .read::<MessagingConfig>()?;
    /// let broker = MemoryBroker::new();
    /// let messaging = Messaging::builder(config).in_memory(&broker).connect().await?;
    /// messaging.close().await;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "memory")]
    pub fn in_memory(mut self, broker: &crate::memory::MemoryBroker) -> Self {
        self.transport = Some(Box::new(broker.transport(self.config.identity.service())));
        self
    }

    /// Starts the client. Returns at once: the broker may come up later.
    #[expect(
        clippy::unused_async,
        reason = "later checks may need it; callers await it already"
    )]
    pub async fn connect(self) -> Result<Messaging, Error> {
        let registry = self.registry.unwrap_or_else(Registry::detached);
        let transport = self.transport;
        Ok(Messaging::start(self.config, &registry, |config| {
            transport.unwrap_or_else(|| Box::new(Broker::start(config)))
        }))
    }
}
