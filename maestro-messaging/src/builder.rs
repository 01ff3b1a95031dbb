//! Options that are code, not configuration.

use maestro_metrics::Registry;

use crate::client::Messaging;
use crate::config::MessagingConfig;
use crate::error::Error;

/// Builds a [`Messaging`].
#[must_use = "nothing is connected until `connect` is called"]
#[derive(Debug)]
pub struct Builder {
    config: MessagingConfig,
    registry: Option<Registry>,
}

impl Builder {
    pub(crate) fn new(config: MessagingConfig) -> Self {
        Self {
            config,
            registry: None,
        }
    }

    /// Records metrics in this registry; in one of its own otherwise.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Starts the client. Returns at once: the broker may come up later.
    #[expect(
        clippy::unused_async,
        reason = "the in-memory broker and later checks need it; callers await it already"
    )]
    pub async fn connect(self) -> Result<Messaging, Error> {
        let registry = self.registry.unwrap_or_else(Registry::detached);
        Ok(Messaging::start(self.config, &registry))
    }
}
