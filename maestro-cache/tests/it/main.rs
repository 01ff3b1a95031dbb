//! The cache against a real server.

#![expect(
    clippy::unwrap_used,
    reason = "a step of a test that fails is the test's message"
)]

mod place;

mod regions;
