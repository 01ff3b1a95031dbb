//! Redis as a client of the service.

use maestro_cache::{Cache, CacheConfig};
use maestro_config::Identity;
use maestro_metrics::{DrainStep, HealthCheck, Registry};

use super::sealed::Sealed;
use crate::error::Error;

impl Sealed for Cache {
    type Config = CacheConfig;

    async fn boot(config: CacheConfig, _: &Identity, registry: &Registry) -> Result<Self, Error> {
        Ok(Cache::builder(config).registry(registry).connect().await?)
    }

    fn health(&self) -> Vec<HealthCheck> {
        vec![self.health_check()]
    }

    fn close(&self) -> Vec<DrainStep> {
        vec![self.drain_step()]
    }
}
