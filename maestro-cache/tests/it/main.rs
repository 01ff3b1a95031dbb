//! The cache against a real server.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a step that fails is the test's message, and counters are whole numbers"
)]

mod place;

mod batches;
mod bounds;
mod catalogue;
mod coherence;
mod conformance;
mod isolation;
mod limits;
mod loads;
mod locks;
mod outage;
mod processes;
mod promotion;
mod python;
mod refusals;
mod regions;
mod security;
mod toolbox;
