//! One call that boots a Maestro service.
//!
//! [`Service::builder`] reads every `MAESTRO_*` table in one go, sets up logs, traces and metrics,
//! and builds the clients that are asked for; [`Service::serve`] runs the service's routes with
//! request metrics, correlation ids, `/metrics` and `/health*`, and stops it in order.
//!
//! ```no_run
//! use axum::routing::get;
//! use axum::Router;
//! use maestro::Service;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), maestro::Error> {
//!     let service = Service::builder().db().cache().messaging().start().await?;
//!     let db = service.db().clone();
//!     let app = Router::new().route(
//!         "/now",
//!         get(move || async move {
//!             let now: String = sqlx::query_scalar("select now()::text").fetch_one(&db).await?;
//!             Ok::<_, maestro::Problem>(now)
//!         }),
//!     );
//!     service.serve(app).await
//! }
//! ```
//!
//! Servers may be down when the service starts: it is live at once, becomes ready by itself, and
//! waits without end. What waiting cannot mend (a wrong environment, a migration that fails) ends the
//! process with the reason.

mod builder;
mod client;
mod drain;
mod error;
mod launch;
mod problem;
#[cfg(all(feature = "db", feature = "messaging"))]
mod relay;
mod routes;
mod server;
mod service;
mod settings;
mod signals;
#[cfg(feature = "messaging")]
mod work;

pub use builder::ServiceBuilder;
pub use client::{Client, NoConfig};
pub use drain::DrainReport;
pub use error::{Error, ErrorKind};
#[cfg(feature = "cache")]
pub use maestro_cache as cache;
pub use maestro_config as config;
#[cfg(feature = "db")]
pub use maestro_db as db;
#[cfg(feature = "messaging")]
pub use maestro_messaging as messaging;
pub use maestro_metrics as metrics;
pub use problem::Problem;
pub use service::Service;
pub use settings::ServiceConfig;

/// The service in the README compiles.
#[cfg(all(doctest, feature = "db", feature = "cache"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The guide's snippets compile.
#[cfg(all(doctest, feature = "db", feature = "cache", feature = "messaging"))]
#[doc = include_str!("../../docs/service.md")]
struct Guide;
