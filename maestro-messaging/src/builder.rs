//! Options that are code, not configuration.

use maestro_metrics::Registry;

use crate::amqp::Broker;
use crate::client::Messaging;
use crate::config::MessagingConfig;
use crate::error::Error;
use crate::transport::Transport;

/// Builds a [`Messaging`].
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
