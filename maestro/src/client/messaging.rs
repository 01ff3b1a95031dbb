//! RabbitMQ as a client of the service.

use maestro_config::Identity;
use maestro_messaging::{Messaging, MessagingConfig};
use maestro_metrics::{DrainStep, HealthCheck, Registry};

use super::sealed::Sealed;
use crate::error::Error;

impl Sealed for Messaging {
    type Config = MessagingConfig;

    async fn boot(
        config: MessagingConfig,
        _: &Identity,
        registry: &Registry,
    ) -> Result<Self, Error> {
        Ok(Messaging::builder(config)
            .registry(registry)
            .connect()
            .await?)
    }

    fn health(&self) -> Vec<HealthCheck> {
        vec![self.health_check()]
    }

    fn close(&self) -> Vec<DrainStep> {
        self.drain_steps()
    }

    fn as_messaging(&self) -> Option<&Messaging> {
        Some(self)
    }
}
