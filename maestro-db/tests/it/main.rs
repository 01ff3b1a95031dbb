//! maestro-db on real servers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests say what they expect as the tests do"
)]

mod bulk;
mod cancellation;
mod catalogue;
mod coordination;
mod driver;
mod executor;
mod faults;
mod leaks;
mod macros;
mod migrations;
mod observe;
mod pgbouncer;
mod pool;
mod provisioning;
mod replica;
mod rotation;
mod schemas;
mod support;
mod tenant_data;
mod tenants;
mod thousand;
mod tls;
mod transactions;
