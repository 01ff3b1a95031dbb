//! PostgreSQL for Maestro services, on sqlx.
#![doc = ""]

mod builder;
mod client;
mod config;
mod connect;
mod error;
mod executor;
mod health;
mod metrics;
mod migrate;
mod observe;
mod outlet;
mod pool;
mod retry;
mod statement;
mod transaction;

pub use builder::DbBuilder;
pub use client::Db;
pub use config::{DbConfig, Pooler};
pub use error::{Error, ErrorKind};
pub use metrics::CATALOGUE;
pub use migrate::{AppliedMigration, Drift, MigrateOptions, MigrationReport};
pub use pool::PoolReport;
pub use transaction::{Isolation, Savepoint, Transaction, TransactionOptions};
