//! Options of a cache that are code and not configuration.

use maestro_metrics::Registry;

use crate::client::Cache;
use crate::config::CacheConfig;
use crate::error::Error;

/// Builds a [`Cache`].
///
/// ```no_run
/// # async fn example(config: maestro_cache::CacheConfig) -> Result<(), maestro_cache::Error> {
/// use maestro_cache::Cache;
/// use maestro_metrics::Registry;
///
/// let registry = Registry::detached();
/// let cache = Cache::builder(config).registry(&registry).connect().await?;
/// # let _ = cache;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is connected until `connect` is called"]
pub struct CacheBuilder {
    config: CacheConfig,
    registry: Option<Registry>,
}

impl CacheBuilder {
    pub(crate) fn new(config: CacheConfig) -> Self {
        Self {
            config,
            registry: None,
        }
    }

    /// Where metrics are recorded; a registry of its own otherwise.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// Uses a Redis in memory in place of the server; the URL of the settings is not used.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use maestro_cache::{Cache, CacheConfig, MemoryRedis};
    /// use maestro_config::Environment;
    ///
    /// let config = Environment::from_pairs([
    ///     ("MAESTRO_SERVICE_NAME", "orders"),
    ///     ("MAESTRO_CACHE_URL", "redis://memory/0"),
    ///     ("MAESTRO_CACHE_LOCAL_CAPACITY", "0"), // every read reaches the server
    /// ])
    /// .read::<CacheConfig>()?;
    /// let cache = Cache::builder(config).in_memory(&MemoryRedis::new()).connect().await?;
    /// let downloads = cache.counter("downloads", std::time::Duration::from_hours(24))?;
    /// assert_eq!(downloads.add("report-7", 1).await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "memory")]
    pub fn in_memory(mut self, redis: &crate::memory::MemoryRedis) -> Self {
        self.config.double = Some(std::sync::Arc::new(redis.clone()));
        self
    }

    /// As [`Cache::connect`].
    pub async fn connect(self) -> Result<Cache, Error> {
        let registry = self.registry.unwrap_or_else(Registry::detached);
        Cache::start(self.config, &registry).await
    }
}
