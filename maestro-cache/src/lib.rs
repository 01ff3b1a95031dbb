//! Redis for Maestro services: a typed cache in two levels that is right when Redis is gone.
//!
//! Values are kept in process memory and in Redis, under the service's prefix. Process memory is kept
//! coherent by the server, which pushes what has changed; loads run once however many callers wait;
//! what was invalidated while it was loaded never reaches Redis; and while Redis is away the service
//! goes on.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use maestro_cache::{Cache, CacheConfig};
//! # #[derive(serde::Serialize, serde::Deserialize)] struct Report { id: u64 }
//! # async fn load(id: u64) -> Result<Report, std::io::Error> { Ok(Report { id }) }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let environment = maestro_config::Environment::load()?;
//! let cache = Cache::connect(environment.read::<CacheConfig>()?).await?;
//! let reports = cache
//!     .region::<Report>("report")
//!     .ttl(Duration::from_mins(5))
//!     .stale_for(Duration::from_hours(1))
//!     .build()?;
//!
//! let report: Arc<Report> = reports
//!     .entry(7_u64)
//!     .tag("project-7")
//!     .get_or_load(|| load(7))
//!     .await?;
//! reports.put(7_u64, report).await?;
//! reports.remove(7_u64).await?;
//! cache.invalidate_tag("project-7").await?;
//! # Ok(())
//! # }
//! ```

mod backoff;
mod batch;
mod breaker;
mod builder;
mod channel;
mod client;
mod clock;
mod codec;
mod coherence;
mod config;
mod connection;
mod envelope;
mod error;
mod failures;
mod flight;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gather;
mod gcra;
mod health;
mod journal;
mod kept;
mod key;
mod lag;
mod lease;
mod limiter;
mod link;
mod load;
mod lock;
mod marker;
#[cfg(feature = "memory")]
mod memory;
mod mender;
mod metrics;
mod options;
mod read;
mod region;
mod scripts;
mod server;
#[cfg(feature = "tower")]
mod throttle;
mod tracking;
mod turn;
mod warm;

pub use builder::CacheBuilder;
pub use channel::{Received, Subscription};
pub use client::{Cache, Outcome};
pub use codec::Codec;
pub use config::CacheConfig;
pub use error::{Error, ErrorKind};
pub use gcra::{Quota, Verdict};
pub use kept::{Counter, RecentList, Sessions};
pub use key::EntryId;
pub use limiter::{LimitWhenDown, Limiter};
pub use lock::{Lease, Lock};
#[cfg(feature = "memory")]
pub use memory::MemoryRedis;
pub use metrics::CATALOGUE;
pub use options::{RegionBuilder, WhenDown};
pub use region::{Entry, Region};
#[cfg(feature = "tower")]
pub use throttle::{Throttle, ThrottleLayer};
pub use warm::{Warmed, Warming};

/// The guide's snippets, compiled.
#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../../docs/cache.md")]
struct Guide;
