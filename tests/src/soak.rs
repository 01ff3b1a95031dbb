//! Randomised fault campaigns: `cargo xtask soak NAME --seed N --minutes M`.
//!
//! A campaign draws what to do from its seed, prints every fault it causes, keeps its ledger outside
//! the SDK, and ends with an error if the ledger does not balance. A short share of each with a fixed
//! seed is a test in `tests/tests/it/soak.rs`.

pub mod backlog;
pub mod cache;
pub mod db;
pub mod drain;
pub mod messaging;

use std::fmt::Display;
use std::time::{Duration, Instant};

/// What a campaign is given.
#[derive(Debug)]
pub struct Plan {
    /// Where all of its random decisions come from.
    pub seed: u64,
    /// How long faults are caused; the campaign then lets everything settle and counts.
    pub length: Duration,
    started: Instant,
}

impl Plan {
    /// A campaign that starts now.
    #[must_use]
    pub fn new(seed: u64, length: Duration) -> Self {
        Self {
            seed,
            length,
            started: Instant::now(),
        }
    }

    /// A source of decisions that depends on the seed and on who asks alone, so that one task's
    /// decisions do not depend on how tasks were scheduled.
    #[must_use]
    pub fn dice(&self, task: u64) -> fastrand::Rng {
        // The odd constant of Fibonacci hashing keeps neighbouring tasks' streams apart.
        fastrand::Rng::with_seed(self.seed ^ task.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Whether it is time to let everything settle.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.started.elapsed() >= self.length
    }

    /// Prints a step of the campaign with the time since its start.
    #[allow(
        clippy::print_stdout,
        reason = "a campaign tells every step, so that a failure can be replayed"
    )]
    pub fn step(&self, what: impl Display) {
        println!("{:8.3}s  {what}", self.started.elapsed().as_secs_f64());
    }
}
