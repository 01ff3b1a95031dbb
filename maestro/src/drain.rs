//! Shutdown as a list of steps under one deadline.

use std::fmt;
use std::time::{Duration, Instant};

use maestro_metrics::{DrainStep, Drained};

/// How the shutdown ended, step by step.
///
/// ```no_run
/// use axum::Router;
/// use maestro::{DrainReport, Service};
///
/// # async fn example(listener: tokio::net::TcpListener) -> Result<(), maestro::Error> {
/// let service = Service::builder().start().await?;
/// let report: DrainReport = service.serve_on(listener, Router::new()).await?;
/// for step in &report.steps {
///     println!("{} took {:?}: {}", step.name, step.took, step.left);
/// }
/// assert!(report.is_clean());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DrainReport {
    /// Every step, in the order they ran.
    pub steps: Vec<Drained>,
}

impl DrainReport {
    /// True when no step left anything behind.
    pub fn is_clean(&self) -> bool {
        self.steps.iter().all(|step| step.left.is_none())
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "all {} steps finished", self.steps.len());
        }
        let mut separator = "";
        for step in self.steps.iter().filter(|step| !step.left.is_none()) {
            write!(f, "{separator}{}: {}", step.name, step.left)?;
            separator = "; ";
        }
        Ok(())
    }
}

/// Runs steps one after the other and keeps the account.
///
/// A step that reaches the deadline is dropped, and every later one still gets [`LAST_CHANCE`]: a
/// consumer that hangs must not cost the telemetry that explains it.
pub(crate) struct Drain {
    deadline: Instant,
    report: DrainReport,
}

/// What a step gets that begins after the deadline: enough to flush a buffer, too short to notice.
const LAST_CHANCE: Duration = Duration::from_millis(250);

impl Drain {
    pub(crate) fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            report: DrainReport::default(),
        }
    }

    pub(crate) async fn run(&mut self, step: DrainStep) {
        let deadline = self
            .deadline
            .max(tokio::time::Instant::now().into_std() + LAST_CHANCE);
        let (name, phase) = (step.name().to_owned(), step.phase().as_str());
        tracing::debug!(step = name, phase, "shutdown: step begins");
        let drained = step.run(deadline).await;
        let took_ms = drained.took.as_millis();
        if drained.left.is_none() {
            tracing::info!(step = name, phase, took_ms, "shutdown: step finished");
        } else {
            tracing::warn!(step = name, phase, took_ms, left = %drained.left, "shutdown: step left something behind");
        }
        self.report.steps.push(drained);
    }

    pub(crate) fn finish(self) -> DrainReport {
        self.report
    }
}

#[cfg(test)]
mod tests {
    use maestro_metrics::{DrainPhase, Leftover};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_is_named_and_the_later_ones_still_run() {
        let mut drain = Drain::until(Instant::now() + Duration::from_secs(5));
        drain
            .run(DrainStep::new("http", DrainPhase::Requests, |_| async {
                Leftover::none()
            }))
            .await;
        drain
            .run(DrainStep::new("billing", DrainPhase::Consumers, |_| {
                std::future::pending()
            }))
            .await;
        let late = |_| async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Leftover::none()
        };
        drain
            .run(DrainStep::new("pool", DrainPhase::Pools, late))
            .await;
        drain
            .run(DrainStep::new("traces", DrainPhase::Telemetry, |_| async {
                Leftover::of(3, "spans")
            }))
            .await;
        let report = drain.finish();
        assert_eq!(
            report.to_string(),
            "billing: did not end by the deadline; traces: 3 spans"
        );
        assert!(!report.is_clean());
    }
}
