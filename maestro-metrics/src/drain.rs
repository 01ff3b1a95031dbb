//! Ending in order: what each part of a service does when the service stops, and what it left.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// When in the shutdown a step runs. Steps of one phase run together; the next phase starts when
/// all have ended or the deadline of the whole is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DrainPhase {
    /// Requests in flight finish.
    Requests,
    /// Consumers stop taking messages and finish those in hand.
    Consumers,
    /// Background work of the service itself finishes.
    Work,
    /// What was written for sending is sent.
    Outbox,
    /// Connections are closed.
    Pools,
    /// Traces and logs are flushed.
    Telemetry,
}

impl DrainPhase {
    /// The word in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Consumers => "consumers",
            Self::Work => "work",
            Self::Outbox => "outbox",
            Self::Pools => "pools",
            Self::Telemetry => "telemetry",
        }
    }
}

/// One thing to do at shutdown, as a client hands it out.
///
/// ```
/// use std::time::{Duration, Instant};
/// use maestro_metrics::{DrainPhase, DrainStep, Leftover};
///
/// # #[derive(Clone)] struct Consumer;
/// # impl Consumer { async fn stop(&self, deadline: Instant) -> u64 { 0 } }
/// # let consumer = Consumer;
/// let step = DrainStep::new("orders.place", DrainPhase::Consumers, move |deadline| async move {
///     Leftover::of(consumer.stop(deadline).await, "messages still in handlers")
/// });
///
/// assert_eq!((step.name(), step.phase()), ("orders.place", DrainPhase::Consumers));
/// # async fn end(step: DrainStep) {
/// let ended = step.run(Instant::now() + Duration::from_secs(30)).await; // the service does this
/// println!("{} took {:?} and left {}", ended.name, ended.took, ended.left);
/// # }
/// ```
pub struct DrainStep {
    name: String,
    phase: DrainPhase,
    run: Box<dyn FnOnce(Instant) -> DrainFuture + Send>,
}

type DrainFuture = Pin<Box<dyn Future<Output = Leftover> + Send>>;

impl DrainStep {
    /// A step. `run` gets the deadline of the whole shutdown and should return by then with what it
    /// had to leave; its future is dropped when it does not.
    pub fn new<F>(
        name: impl Into<String>,
        phase: DrainPhase,
        run: impl FnOnce(Instant) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Leftover> + Send + 'static,
    {
        Self {
            name: name.into(),
            phase,
            run: Box::new(move |deadline| Box::pin(run(deadline))),
        }
    }

    /// What is drained.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it runs.
    pub const fn phase(&self) -> DrainPhase {
        self.phase
    }

    /// Runs it, bounded by the deadline. Dropping the future abandons the step.
    pub async fn run(self, deadline: Instant) -> Drained {
        let start = Instant::now();
        let left = match tokio::time::timeout_at(deadline.into(), (self.run)(deadline)).await {
            Ok(left) => left,
            Err(_) => Leftover::unknown("did not end by the deadline"),
        };
        Drained {
            name: self.name,
            phase: self.phase,
            took: start.elapsed(),
            left,
        }
    }
}

impl fmt::Debug for DrainStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainStep")
            .field("name", &self.name)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// What a step had to leave undone.
///
/// ```
/// use maestro_metrics::Leftover;
///
/// let left = Leftover::of(3, "messages").and(0, "rows");
/// assert_eq!(left.to_string(), "3 messages");
/// assert!(Leftover::of(0, "messages").is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    left: Vec<(Option<u64>, String)>,
}

impl Leftover {
    /// Nothing: all was done.
    pub const fn none() -> Self {
        Self { left: Vec::new() }
    }

    /// `count` things; nothing when it is 0.
    pub fn of(count: u64, what: impl Into<String>) -> Self {
        Self::none().and(count, what)
    }

    /// Something that cannot be counted.
    pub fn unknown(what: impl Into<String>) -> Self {
        Self {
            left: vec![(None, what.into())],
        }
    }

    /// And `count` things more; nothing more when it is 0.
    #[must_use]
    pub fn and(mut self, count: u64, what: impl Into<String>) -> Self {
        if count > 0 {
            self.left.push((Some(count), what.into()));
        }
        self
    }

    /// True when nothing was left.
    pub fn is_none(&self) -> bool {
        self.left.is_empty()
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left.is_empty() {
            return f.write_str("nothing left");
        }
        for (i, (count, what)) in self.left.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match count {
                Some(count) => write!(f, "{count} {what}")?,
                None => f.write_str(what)?,
            }
        }
        Ok(())
    }
}

/// How a step ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Drained {
    /// What was drained.
    pub name: String,
    /// In which phase.
    pub phase: DrainPhase,
    /// How long it took.
    pub took: Duration,
    /// What it left.
    pub left: Leftover,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_ends_at_the_deadline_and_says_so() {
        let step = DrainStep::new("consumers", DrainPhase::Consumers, |_| {
            std::future::pending()
        });
        let drained = step.run(Instant::now() + Duration::from_secs(1)).await;
        assert_eq!(drained.left.to_string(), "did not end by the deadline");
    }

    #[test]
    fn leftovers_are_listed_with_their_numbers() {
        let left = Leftover::of(3, "messages").and(0, "rows").and(1, "span");
        assert_eq!(left.to_string(), "3 messages, 1 span");
        assert!(Leftover::of(0, "messages").is_none());
    }
}
