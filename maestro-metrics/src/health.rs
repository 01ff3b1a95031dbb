//! Health of what a service depends on: one check for each, asked in the background.

mod background;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use background::{Answer, CheckReport, HealthRegistry, HealthReport, Probe};

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HealthState {
    /// Works.
    Healthy,
    /// Works with less than it should.
    Degraded,
    /// Does not work.
    Unhealthy,
}

impl HealthState {
    /// The word in reports and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer of a check: a state and, unless all is well, the reason (never with a secret: it is
/// shown to whoever may ask for the service's health).
///
/// ```
/// use maestro_metrics::{HealthState, HealthStatus};
///
/// let status = HealthStatus::degraded("answers, but took 800 ms");
/// assert_eq!(status.state(), HealthState::Degraded);
/// assert_eq!(status.reason(), Some("answers, but took 800 ms"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthStatus {
    state: HealthState,
    reason: Option<String>,
}

impl HealthStatus {
    /// All is well.
    pub const fn healthy() -> Self {
        Self {
            state: HealthState::Healthy,
            reason: None,
        }
    }

    /// It works with less than it should.
    pub fn degraded(reason: impl Into<String>) -> Self {
        Self {
            state: HealthState::Degraded,
            reason: Some(reason.into()),
        }
    }

    /// It does not work.
    pub fn unhealthy(reason: impl Into<String>) -> Self {
        Self {
            state: HealthState::Unhealthy,
            reason: Some(reason.into()),
        }
    }

    /// The state.
    pub const fn state(&self) -> HealthState {
        self.state
    }

    /// Why it is not well.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// What the service is without the thing checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Criticality {
    /// Not ready: it gets no requests until the thing is back (the database).
    Critical,
    /// Ready and degraded (the cache, the broker behind an outbox).
    Degrading,
}

/// One check, as a client hands it out.
///
/// ```
/// use std::time::Duration;
/// use maestro_metrics::{Criticality, HealthCheck, HealthStatus};
///
/// # #[derive(Clone)] struct Client;
/// # impl Client { async fn ping(&self) -> Result<(), String> { Ok(()) } }
/// # let client = Client;
/// let check = HealthCheck::new("redis", Criticality::Degrading, move || {
///     let client = client.clone();
///     async move {
///         match client.ping().await {
///             Ok(()) => HealthStatus::healthy(),
///             Err(error) => HealthStatus::unhealthy(error.to_string()),
///         }
///     }
/// })
/// .timeout(Duration::from_secs(1))
/// .period(Duration::from_secs(10));
/// assert_eq!((check.name(), check.is_critical()), ("redis", false));
/// assert_eq!(check.interval(), Duration::from_secs(10));
/// ```
#[derive(Clone)]
pub struct HealthCheck {
    name: Arc<str>,
    criticality: Criticality,
    timeout: Duration,
    period: Duration,
    check: Arc<dyn Fn() -> CheckFuture + Send + Sync>,
}

type CheckFuture = Pin<Box<dyn Future<Output = HealthStatus> + Send>>;

impl HealthCheck {
    /// A check. The future is dropped when it exceeds the timeout, so it must not leave anything
    /// half-done.
    pub fn new<F>(
        name: impl Into<Arc<str>>,
        criticality: Criticality,
        check: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = HealthStatus> + Send + 'static,
    {
        Self {
            name: name.into(),
            criticality,
            timeout: DEFAULT_TIMEOUT,
            period: DEFAULT_PERIOD,
            check: Arc::new(move || Box::pin(check())),
        }
    }

    /// How long one run may take; 2 s otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Time from the end of one run to the start of the next; 5 s otherwise.
    #[must_use]
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Another criticality: a service that cannot work without its cache makes it critical.
    #[must_use]
    pub fn criticality(mut self, criticality: Criticality) -> Self {
        self.criticality = criticality;
        self
    }

    /// The name of the thing checked.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the service is without it.
    pub const fn is_critical(&self) -> bool {
        matches!(self.criticality, Criticality::Critical)
    }

    /// Time between two runs.
    pub const fn interval(&self) -> Duration {
        self.period
    }

    /// Runs it once; unhealthy when it exceeds its timeout.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use maestro_metrics::{Criticality, HealthCheck, HealthState, HealthStatus};
    ///
    /// let check = HealthCheck::new("licence", Criticality::Degrading, || async {
    ///     HealthStatus::unhealthy("ended yesterday")
    /// })
    /// .criticality(Criticality::Critical); // of a client, in a service that cannot do without
    /// assert_eq!(check.run().await.state(), HealthState::Unhealthy);
    /// # }
    /// ```
    pub async fn run(&self) -> HealthStatus {
        let start = Instant::now();
        match tokio::time::timeout(self.timeout, (self.check)()).await {
            Ok(status) => status,
            Err(_) => HealthStatus::unhealthy(format!(
                "no answer within {:?} (limit {:?})",
                start.elapsed(),
                self.timeout
            )),
        }
    }

    /// One line for a change, none while nothing changes.
    fn say(&self, before: Option<HealthState>, now: &HealthStatus) {
        if before == Some(now.state()) {
            return;
        }
        let (check, reason) = (self.name(), now.reason().unwrap_or_default());
        match (before, now.state()) {
            (None, HealthState::Healthy) => tracing::debug!(check, "healthy"),
            (Some(_), HealthState::Healthy) => tracing::info!(check, "healthy again"),
            (_, state) => tracing::warn!(check, state = state.as_str(), reason, "not healthy"),
        }
    }
}

impl fmt::Debug for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheck")
            .field("name", &self.name)
            .field("criticality", &self.criticality)
            .field("timeout", &self.timeout)
            .field("period", &self.period)
            .finish_non_exhaustive()
    }
}

/// A server that has not answered a ping in this time would not serve a request either.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
/// Short beside the load balancers' usual 10 s, long beside the cost of a ping.
const DEFAULT_PERIOD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_unhealthy_after_its_timeout() {
        let check = HealthCheck::new("postgres", Criticality::Critical, std::future::pending)
            .timeout(Duration::from_millis(50));
        let status = check.run().await;
        assert_eq!(status.state(), HealthState::Unhealthy);
        assert!(
            status.reason().unwrap().contains("limit 50ms"),
            "{status:?}"
        );
    }
}
