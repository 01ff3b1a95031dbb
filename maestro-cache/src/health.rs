//! One check, and one step of the shutdown.

use std::time::{Duration, Instant};

use maestro_metrics::{Criticality, DrainPhase, DrainStep, HealthCheck, HealthStatus, Leftover};

use crate::client::Cache;
use crate::error::Error;

/// Beyond the deadline of the one command that is asked.
const MARGIN: Duration = Duration::from_millis(500);

impl Cache {
    /// The check for the service's health: does Redis answer, and do invalidations arrive? Degrading,
    /// because a service goes on without its cache; one that cannot makes it critical
    /// ([`HealthCheck::criticality`]).
    pub fn health_check(&self) -> HealthCheck {
        // Weak: a check that is still registered must not keep a dropped cache's tasks alive.
        let inner = std::sync::Arc::downgrade(self.inner());
        HealthCheck::new("redis", Criticality::Degrading, move || {
            let inner = inner.upgrade();
            async move {
                let Some(inner) = inner else {
                    return HealthStatus::unhealthy("the cache is gone");
                };
                if let Err(error) = inner.server.ping().await {
                    return HealthStatus::unhealthy(with_cause(&error));
                }
                if !inner.coherence.is_live(inner.clock.now()) {
                    return HealthStatus::degraded(
                        "invalidations do not arrive: every value is read from Redis",
                    );
                }
                HealthStatus::healthy()
            }
        })
        .timeout(self.config().command_timeout + MARGIN)
    }

    /// What to do at shutdown: loads in progress finish, then the connections close.
    ///
    /// ```no_run
    /// # async fn example(cache: &maestro_cache::Cache) {
    /// use std::time::{Duration, Instant};
    ///
    /// // Who has no `maestro::Service` to do it:
    /// let ended = cache.drain_step().run(Instant::now() + Duration::from_secs(10)).await;
    /// if !ended.left.is_none() {
    ///     eprintln!("{} was left with {}", ended.name, ended.left);
    /// }
    /// # }
    /// ```
    pub fn drain_step(&self) -> DrainStep {
        let cache = self.clone();
        DrainStep::new("redis", DrainPhase::Pools, move |deadline| async move {
            let left = deadline.saturating_duration_since(Instant::now());
            cache.close(left).await;
            let unsent = cache.inner().journal.len() as u64;
            Leftover::of(unsent, "invalidations that Redis has not acknowledged")
        })
    }
}

/// The error, and what it was caused by when that is ours: the driver's own words are for the log.
fn with_cause(error: &Error) -> String {
    match error.cause::<Error>() {
        Some(cause) => format!("{error}; {cause}"),
        None => error.to_string(),
    }
}
