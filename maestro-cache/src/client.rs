//! The handle services hold.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builder::CacheBuilder;
use crate::clock::Clock;
use crate::coherence::Coherence;
use crate::config::CacheConfig;
use crate::error::{Error, ErrorKind};
use crate::journal::{Deferred, Journal};
use crate::key::{self, EntryId, Invalidated, Keyspace, Marker};
use crate::link::Link;
use crate::mender;
use crate::metrics::Metrics;
use crate::options::{Options, RegionBuilder};
use crate::region::{Region, RegionInner};
use crate::server::Server;
use maestro_metrics::Registry;

/// How far a change has come.
///
/// ```no_run
/// # async fn example(names: &maestro_cache::Region<String>) -> Result<(), maestro_cache::Error> {
/// if !names.remove(7_u64).await?.is_acknowledged() {
///     tracing::warn!("Redis is away: other replicas learn of it when it is back");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Redis has acknowledged it: it holds for every process.
    Acknowledged,
    /// Redis is away. It holds in this process, and is sent when Redis is back, before this process
    /// believes what Redis says about it. Should this process end first, others may serve the old
    /// value until its lifetime is over.
    Deferred,
}

impl Outcome {
    /// True when Redis has acknowledged the change.
    pub const fn is_acknowledged(self) -> bool {
        matches!(self, Self::Acknowledged)
    }
}

/// A service's Redis: cheap to clone, shared by all tasks.
///
/// Its connections close when the last clone, and the last region made from it, are dropped; or
/// with [`Cache::close`].
///
/// ```no_run
/// # async fn example(config: maestro_cache::CacheConfig) -> Result<(), maestro_cache::Error> {
/// use std::time::Duration;
/// use maestro_cache::Cache;
///
/// let cache = Cache::connect(config).await?;
/// let names = cache.region::<String>("name").build()?;
/// println!("`{}` under {} at {}", names.name(), cache.config().prefix(), cache.config().server());
///
/// names.put(7_u64, "Ada".to_owned()).await?;
/// cache.clear().await?; // the service's own entries, in every process
/// cache.close(Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) keys: Keyspace,
    pub(crate) clock: Arc<Clock>,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) server: Server,
    pub(crate) metrics: Arc<Metrics>,
    /// They need the connections, and so end before `tasks` do.
    pub(crate) loads: TaskTracker,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    regions: Mutex<HashMap<String, Registered>>,
}

/// A region that was built: its name stands for one type and one set of options.
struct Registered {
    type_id: TypeId,
    type_name: &'static str,
    options: Options,
    inner: Weak<dyn Any + Send + Sync>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("server", &self.config().server())
            .field("prefix", &self.config().prefix)
            .field("up", &self.0.server.link.is_up())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Connects, and keeps the connection alive from then on.
    ///
    /// Waits for the first attempt, at most for `MAESTRO_CACHE_CONNECT_TIMEOUT`: with a server that
    /// answers, process memory serves from the first read on. A server that is down is no error: the
    /// cache starts without it and finds it when it is there. Must be called in a tokio runtime.
    ///
    /// ```no_run
    /// # async fn start(environment: &maestro_config::Environment) -> Result<(), Box<dyn std::error::Error>> {
    /// use maestro_cache::{Cache, CacheConfig};
    ///
    /// let cache = Cache::connect(environment.read::<CacheConfig>()?).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what no waiting can mend.
    pub async fn connect(config: CacheConfig) -> Result<Self, Error> {
        Self::builder(config).connect().await
    }

    /// A cache with options.
    pub fn builder(config: CacheConfig) -> CacheBuilder {
        CacheBuilder::new(config)
    }

    pub(crate) async fn start(config: CacheConfig, registry: &Registry) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new(registry, &config));
        let clock = Arc::new(Clock::start());
        let keys = Keyspace::new(&config.prefix);
        let coherence = Arc::new(Coherence::new(config.local_capacity));
        metrics.observe_local(&coherence);
        let journal = Arc::new(Journal::new(metrics.deferred.clone()));
        let connect_timeout = config.connect_timeout;
        let connections = config.connections;
        let link = Arc::new(Link::new(config, Arc::clone(&clock), Arc::clone(&metrics)));
        let server = Server::new(Arc::clone(&link));
        let (tracking, mut tracked) = watch::channel(false);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for index in 0..connections {
            tasks.spawn(Arc::clone(&link).supervise(index, stop.clone()));
        }
        tasks.spawn(crate::tracking::run(
            Arc::clone(&link),
            keys.clone(),
            Arc::clone(&coherence),
            tracking,
            stop.clone(),
        ));
        tasks.spawn(mender::run(
            server.clone(),
            keys.clone(),
            Arc::clone(&journal),
            stop.clone(),
        ));
        let cache = Self(Arc::new(Inner {
            keys,
            clock,
            coherence,
            journal,
            server,
            metrics,
            loads: TaskTracker::new(),
            tasks,
            stop,
            regions: Mutex::default(),
        }));
        let first_attempts = async {
            link.settled().await;
            // Gone only when the runtime is shutting down.
            let _ = tracked.wait_for(|settled| *settled).await;
        };
        // What is not connected in time goes on connecting.
        let _ = tokio::time::timeout(connect_timeout, first_attempts).await;
        match link.last_error() {
            Some(error) if error.kind() == ErrorKind::Config => Err(error),
            _ => Ok(cache),
        }
    }

    /// Begins a region: values of one type under one name.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Report;
    /// # fn build(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
    /// let reports = cache
    ///     .region::<Report>("report")
    ///     .ttl(Duration::from_mins(5))
    ///     .stale_for(Duration::from_hours(1))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn region<T: Serialize + DeserializeOwned + Send + Sync + 'static>(
        &self,
        name: &str,
    ) -> RegionBuilder<T> {
        RegionBuilder::new(self.clone(), name)
    }

    /// Invalidates every entry with this tag, in every process.
    ///
    /// Dropping the future leaves it open whether the server was told; this process no longer serves
    /// such entries from memory.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a tag above 1,024 bytes, or a refusal of the server. A server that
    /// is away is no error: see [`Outcome::Deferred`].
    pub async fn invalidate_tag<'a>(&self, tag: impl Into<EntryId<'a>>) -> Result<Outcome, Error> {
        let tag = tag.into();
        key::check_name("a tag", tag.as_str())?;
        self.mark(Deferred::Tag(tag.as_str().into())).await
    }

    /// Invalidates every entry of the service, in every process. Nothing is deleted on the server:
    /// values no longer count, and go with their lifetimes.
    ///
    /// Errors and cancellation as for [`Cache::invalidate_tag`].
    pub async fn clear(&self) -> Result<Outcome, Error> {
        self.mark(Deferred::All).await
    }

    /// Stops the background work and closes the connections. Loads in progress may finish and store
    /// what they loaded, at most for `limit`; then they are abandoned and their callers get an error.
    pub async fn close(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.0.loads.close();
        // Loads end by their own deadline; what remains after `limit` is theirs to lose.
        let _ = tokio::time::timeout_at(deadline, self.0.loads.wait()).await;
        self.0.stop.cancel();
        self.0.tasks.close();
        let _ = tokio::time::timeout_at(deadline, self.0.tasks.wait()).await;
    }

    /// The registry metrics are recorded in, to join to another.
    pub fn registry(&self) -> &Registry {
        &self.0.metrics.registry
    }

    /// The settings in use.
    pub fn config(&self) -> &CacheConfig {
        &self.0.server.link.config
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Invalidates what a marker speaks for, here before and after the server knows.
    pub(crate) async fn mark(&self, what: Deferred) -> Result<Outcome, Error> {
        let inner = &self.0;
        let Some(marker) = what.marker() else {
            return Err(Error::new(ErrorKind::Config, "an entry has no marker"));
        };
        inner.invalidate_here(marker);
        let for_ever = !matches!(marker, Marker::Tag(_));
        let key = inner.keys.marker(marker);
        let sent = inner.server.mark(&[(key, for_ever)]).await;
        inner.invalidate_here(marker);
        inner.settle(sent, || what.clone())
    }

    pub(crate) fn open_region<T: Serialize + DeserializeOwned + Send + Sync + 'static>(
        &self,
        name: &str,
        options: Options,
    ) -> Result<Region<T>, Error> {
        let mut regions = self.0.regions.lock();
        if let Some(known) = regions.get(name) {
            if known.type_id != TypeId::of::<T>() {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "region `{name}` holds {}, so it cannot be built for {}: give one of them another name",
                        known.type_name,
                        std::any::type_name::<T>()
                    ),
                ));
            }
            if known.options != options {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "region `{name}` was built before with other options: build it once and clone the handle"
                    ),
                ));
            }
            let inner = known.inner.upgrade();
            if let Some(inner) = inner.and_then(|inner| inner.downcast::<RegionInner<T>>().ok()) {
                return Ok(Region(inner));
            }
        }
        let inner = Arc::new(RegionInner::<T>::new(self.clone(), name, options.clone()));
        let weak = Arc::downgrade(&inner);
        regions.insert(
            name.to_owned(),
            Registered {
                type_id: TypeId::of::<T>(),
                type_name: std::any::type_name::<T>(),
                options,
                inner: weak,
            },
        );
        Ok(Region(inner))
    }
}

impl Inner {
    fn invalidate_here(&self, marker: Marker<'_>) {
        self.coherence
            .invalidate(Invalidated::Marker(marker), self.clock.now());
    }

    /// What a change came to: one the server could not take is noted and sent later.
    pub(crate) fn settle(
        &self,
        sent: Result<(), Error>,
        what: impl FnOnce() -> Deferred,
    ) -> Result<Outcome, Error> {
        match sent {
            Ok(()) => Ok(Outcome::Acknowledged),
            Err(error) if error.kind().is_outage() || error.kind() == ErrorKind::OutOfMemory => {
                self.journal.add(what());
                tracing::debug!(%error, "an invalidation is sent when Redis is back");
                Ok(Outcome::Deferred)
            }
            Err(error) => Err(error),
        }
    }
}
