//! PostgreSQL for Maestro services: sqlx without its holes.
//!
//! [`Db`] is a pool of connections that a service shares. `&Db` is a sqlx executor, and so is
//! `&mut Transaction`; every query, type and macro of sqlx works on them.
//!
//! ```no_run
//! use maestro_config::Environment;
//! use maestro_db::{Db, DbConfig, Error};
//!
//! # #[derive(sqlx::FromRow)] struct Order { id: i64 }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Environment::load()?.read::<DbConfig>()?;
//! let db = Db::connect(config).await?; // waits for the server, says why when it cannot
//!
//! let order: Order = sqlx::query_as("select id from orders where id = $1")
//!     .bind(17_i64)
//!     .fetch_one(&db)
//!     .await?;
//!
//! let mut tx = db.begin().await?;
//! sqlx::query("update orders set state = 'paid' where id = $1")
//!     .bind(order.id)
//!     .execute(&mut tx)
//!     .await?;
//! tx.commit().await?; // an error if the server rolled back
//! # Ok(())
//! # }
//! ```
//!
//! What it adds to sqlx:
//! - A commit that cannot lie: after a statement failed or was cancelled, [`Transaction::commit`]
//!   is an error, where the server would answer `COMMIT` with success and store nothing.
//! - Cancellation that leaves nothing behind: a connection goes back to the pool only when the
//!   server has acknowledged the end of what ran on it; else it is closed.
//! - A pool without a ping per use, which says who holds its connections when none is left.
//! - [`Db::retry`] for transactions that collide, [`Db::migrate`] for replicas that start together.
//! - Errors by what the caller does next ([`ErrorKind`]), a span and a duration per statement.

mod builder;
mod bulk;
mod client;
mod config;
mod connect;
mod copy;
mod direct;
mod election;
mod error;
mod executor;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod health;
mod listen;
mod lock;
mod login;
mod metrics;
mod migrate;
mod observe;
mod outlet;
mod pool;
mod pooler;
mod provision;
mod read;
mod replica;
mod retry;
mod schema;
mod statement;
mod tenant;
mod transaction;

pub use builder::DbBuilder;
pub use bulk::BulkInsert;
pub use client::Db;
pub use config::{DbConfig, Pooler};
pub use copy::{CopyIn, CopyRow};
pub use election::{Election, Leadership};
pub use error::{Error, ErrorKind};
pub use listen::{Event, Listener, Notification};
pub use lock::AdvisoryLock;
pub use metrics::CATALOGUE;
pub use migrate::{
    AppliedMigration, Drift, MigrateOptions, MigrationReport, TenantMigrateOptions,
    TenantMigrationReport,
};
pub use pool::PoolReport;
pub use provision::Provisioner;
pub use read::ReadDb;
pub use tenant::{
    AuditEntry, EraseHook, EraseReceipt, ExportSummary, Finding, Severity, TenantDb, TenantId,
    TenantModel, TenantRecord, TenantState, Tenants,
};
pub use transaction::{Isolation, Savepoint, Transaction, TransactionOptions};

/// The guide's snippets, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/db.md")]
struct Guide;
