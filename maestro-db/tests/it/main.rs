//! maestro-db on real servers.

mod cancellation;
mod executor;
mod faults;
mod macros;
mod migrations;
mod pgbouncer;
mod pool;
mod support;
mod transactions;
