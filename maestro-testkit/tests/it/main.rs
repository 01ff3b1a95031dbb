//! The test kit against real servers.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests and what they share say what they expect by panicking"
)]

mod clients;
mod dedicated;
mod links;
mod sandboxes;
mod sharing;
mod sources;
mod templates;
mod tied;
