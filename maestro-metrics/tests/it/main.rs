//! What services rely on, seen from outside: real sockets, a collector that misbehaves, a real
//! Prometheus.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail the test they help"
)]

mod cardinality;
mod catalogue;
mod collector;
mod faults;
mod health;
mod logs;
mod outbound;
mod prometheus;
mod rotel;
mod secrets;
mod server;
mod service;
mod traces;
