//! The cache against a real server.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a step that fails is the test's message, and counters are whole numbers"
)]

mod place;

mod coherence;
mod outage;
mod refusals;
mod regions;
