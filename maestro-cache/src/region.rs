//! A region: values of one type under one name.

use std::any::Any;
use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::client::{Cache, Inner, Outcome};
use crate::clock::{Nanos, nanos};
use crate::codec;
use crate::coherence::{Keep, LocalEntry, Lookup, RegionState};
use crate::envelope::tags_field;
use crate::error::{Error, ErrorKind};
use crate::failures::Failures;
use crate::flight::Flights;
use crate::journal::Deferred;
use crate::key::{EntryId, Key, MAX_TAGS, Marker, check_length, check_name};
use crate::metrics::RegionMetrics;
use crate::options::{Options, WhenDown};
use crate::read::Found;
use crate::server::{Stored, Write};

/// Values of one type under one name; made by [`Cache::region`]. Cheap to clone.
pub struct Region<T>(pub(crate) Arc<RegionInner<T>>);

impl<T> Clone for Region<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("name", &self.0.state.name)
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

pub(crate) struct RegionInner<T> {
    pub(crate) cache: Cache,
    pub(crate) state: Arc<RegionState>,
    pub(crate) options: Options,
    pub(crate) flights: Arc<Flights<T>>,
    pub(crate) loads: Semaphore,
    pub(crate) loads_when_down: Semaphore,
    pub(crate) failures: Failures,
    pub(crate) metrics: RegionMetrics,
}

/// What process memory says about a value.
pub(crate) enum Local<T> {
    /// Current: to be served.
    Hit {
        value: Option<Arc<T>>,
        /// Whether it is to be loaded anew meanwhile.
        aging: bool,
    },
    /// Not to be served before Redis has been asked, unless Redis is away.
    Suspect {
        entry: LocalEntry,
        value: Option<Arc<T>>,
    },
    Miss,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> RegionInner<T> {
    pub(crate) fn new(cache: Cache, name: &str, options: Options) -> Self {
        let down = match options.when_down {
            WhenDown::Load { at_most } | WhenDown::ServeStale { at_most } => at_most,
            WhenDown::Fail => 1,
        };
        Self {
            state: cache.inner().coherence.region(name),
            flights: Arc::default(),
            loads: Semaphore::new(options.max_loads.min(Semaphore::MAX_PERMITS)),
            loads_when_down: Semaphore::new(down.min(Semaphore::MAX_PERMITS)),
            failures: Failures::default(),
            metrics: cache.inner().metrics.region(name),
            cache,
            options,
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        self.cache.inner()
    }

    /// `now` may be a glance at the clock.
    #[inline]
    pub(crate) fn local(&self, id: &EntryId<'_>, now: Nanos) -> Local<T> {
        let coherence = &self.inner().coherence;
        match coherence.lookup(&self.state, &id.name(), now) {
            Lookup::Hit { value, refresh_at } => {
                self.metrics.local_hit.increment();
                let aging = now >= refresh_at;
                match typed(value) {
                    Ok(value) => Local::Hit { value, aging },
                    Err(()) => Local::Miss,
                }
            }
            Lookup::Suspect(entry) => {
                self.metrics.local_miss.increment();
                match typed(entry.value.clone()) {
                    Ok(value) => Local::Suspect { entry, value },
                    Err(()) => Local::Miss,
                }
            }
            Lookup::Miss => {
                self.metrics.local_miss.increment();
                Local::Miss
            }
        }
    }

    pub(crate) fn key(&self, id: &str) -> Key {
        self.inner().keys.entry(&self.state.name, id)
    }

    /// The markers that speak for an entry with these tags, in the order the scripts expect.
    pub(crate) fn markers(&self, tags: &[String]) -> Vec<Key> {
        let keys = &self.inner().keys;
        [Marker::All, Marker::Region(&self.state.name)]
            .into_iter()
            .chain(tags.iter().map(|tag| Marker::Tag(tag)))
            .map(|marker| keys.marker(marker))
            .collect()
    }

    /// A lifetime, shortened at random.
    pub(crate) fn jittered(&self, ttl: std::time::Duration) -> std::time::Duration {
        ttl.mul_f64(1.0 - self.options.jitter * fastrand::f64())
    }

    /// When a value that is current until then is to be loaded anew: drawn at random, so that of many
    /// processes mostly one does it.
    pub(crate) fn refresh_at(&self, fresh_until: Nanos) -> Nanos {
        let early = self.options.early_refresh;
        if early.is_zero() {
            return Nanos::MAX;
        }
        fresh_until.saturating_sub(nanos(early.mul_f64(0.5 + 0.5 * fastrand::f64())))
    }

    pub(crate) fn deferred(&self, id: &str) -> Deferred {
        Deferred::Entry {
            region: self.state.name.as_ref().into(),
            id: id.into(),
        }
    }

    async fn get(&self, id: &EntryId<'_>, tags: &[String]) -> Result<Option<Arc<T>>, Error> {
        check(id.length(), tags)?;
        let now = self.inner().clock.glance();
        let suspect = match self.local(id, now) {
            Local::Hit { value, .. } => return Ok(value),
            Local::Suspect { entry, value } => Some((entry, value)),
            Local::Miss => None,
        };
        // Boxed: whoever gets a hit would otherwise move the whole future of a read about.
        Box::pin(self.ask(id.as_str(), tags, suspect, now)).await
    }

    /// Asks Redis for what process memory does not hold, or is not sure of.
    async fn ask(
        &self,
        id: &str,
        tags: &[String],
        suspect: Option<(LocalEntry, Option<Arc<T>>)>,
        now: Nanos,
    ) -> Result<Option<Arc<T>>, Error> {
        match self.read(id, tags, suspect.as_ref()).await {
            Ok(Found::Current { value, .. }) => Ok(value),
            Ok(Found::Stale(_) | Found::Nothing | Found::Invalidated) => Ok(None),
            Err(error) if error.kind().is_outage() => match suspect {
                Some((entry, value)) if now < entry.fresh_until => Ok(value),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    async fn put(&self, id: &str, tags: &[String], value: &T) -> Result<Outcome, Error>
    where
        T: Serialize,
    {
        check(id.len(), tags)?;
        let encoded = codec::encode(&self.state.name, value, &self.options)?;
        self.put_encoded(id, tags, &encoded).await
    }

    pub(crate) async fn put_encoded(
        &self,
        id: &str,
        tags: &[String],
        encoded: &codec::Encoded,
    ) -> Result<Outcome, Error> {
        let inner = self.inner();
        let name = &self.state.name;
        let field = tags_field(tags);
        inner.coherence.invalidate_entry(&self.state, id);
        let lag = &inner.server.link.lag;
        lag.sent(name, id, inner.clock.now());
        let stored = inner
            .server
            .store(Write {
                entry: &self.key(id),
                markers: &self.markers(tags),
                began: None,
                letters: encoded.letters(),
                ttl: self.jittered(self.options.ttl),
                stale_for: self.options.stale_for,
                tags: &field,
                payload: &encoded.payload,
                longest_load: self.options.load_timeout,
            })
            .await;
        inner.coherence.invalidate_entry(&self.state, id);
        let sent = match stored {
            Ok(Stored::At(_)) => Ok(()),
            Ok(refused) => Err(Error::new(
                ErrorKind::Server,
                format!(
                    "a value of region `{name}` was refused as {refused:?}: the server's clock was set back; it will be taken when the clock has caught up"
                ),
            )),
            Err(error) => Err(error),
        };
        // What was there before is not what the caller wants read: it goes when Redis is back.
        inner.settle(sent, || self.deferred(id))
    }

    async fn remove(&self, id: &str) -> Result<Outcome, Error> {
        check(id.len(), &[])?;
        let inner = self.inner();
        inner.coherence.invalidate_entry(&self.state, id);
        let lag = &inner.server.link.lag;
        lag.sent(&self.state.name, id, inner.clock.now());
        let sent = inner
            .server
            .remove(&[self.key(id)], self.options.tombstone())
            .await;
        inner.coherence.invalidate_entry(&self.state, id);
        inner.settle(sent, || self.deferred(id))
    }

    /// Keeps a value in process memory, if this region does.
    #[expect(
        clippy::too_many_arguments,
        reason = "one value with all its lifetimes"
    )]
    pub(crate) fn keep(
        &self,
        id: &str,
        ticket: &crate::coherence::Ticket,
        value: Option<Arc<T>>,
        created: crate::envelope::Micros,
        fresh_until: Nanos,
        stale_until: Nanos,
        tags: Vec<Arc<crate::marker::MarkerSlot>>,
        stored_bytes: usize,
        verified: bool,
    ) {
        let inner = self.inner();
        if self.options.local_ttl.is_zero() {
            return;
        }
        // From before the value was asked for: how long the answer took is part of its age.
        let cap = ticket.taken().saturating_add(nanos(self.options.local_ttl));
        let bytes = self
            .options
            .memory_factor
            .saturating_mul(stored_bytes as u64);
        inner.coherence.keep(
            &self.state,
            id,
            ticket,
            Keep {
                value: value.map(|value| value as Arc<dyn Any + Send + Sync>),
                created,
                fresh_until: fresh_until.min(cap),
                refresh_at: self.refresh_at(fresh_until),
                stale_until,
                tags,
                bytes,
                verified,
            },
        );
    }
}

/// The value of an entry in memory; an error when it is of another type.
fn typed<T: Send + Sync + 'static>(
    value: Option<Arc<dyn Any + Send + Sync>>,
) -> Result<Option<Arc<T>>, ()> {
    value
        .map(|value| value.downcast().map_err(|_| ()))
        .transpose()
}

/// Checks what a caller chose before it becomes a name on the server: an id of so many bytes, and tags.
#[inline]
pub(crate) fn check(id: usize, tags: &[String]) -> Result<(), Error> {
    check_length("an id", id)?;
    if tags.is_empty() {
        return Ok(());
    }
    check_tags(tags)
}

fn check_tags(tags: &[String]) -> Result<(), Error> {
    for tag in tags {
        check_name("a tag", tag)?;
    }
    if tags.len() > MAX_TAGS {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "{} tags on an entry were refused: at most {MAX_TAGS}",
                tags.len()
            ),
        ));
    }
    Ok(())
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Region<T> {
    /// The name it was built with.
    pub fn name(&self) -> &str {
        &self.0.state.name
    }

    /// One entry of the region, to be read or loaded.
    pub fn entry<'a>(&'a self, id: impl Into<EntryId<'a>>) -> Entry<'a, T> {
        Entry {
            region: self,
            id: id.into(),
            tags: Vec::new(),
        }
    }

    /// Reads a value: from process memory, else from Redis. `None` when there is none, or when what
    /// is there is not of this type. What many tasks read at the same time is asked for in one command.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] when Redis is away and process memory
    /// holds nothing current: whether there is a value is not known then.
    pub async fn get<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<Option<Arc<T>>, Error> {
        self.0.get(&id.into(), &[]).await
    }

    /// Writes a value, over whatever is there; loads that are under way no longer count.
    ///
    /// Dropping the future leaves it open whether the server was told.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Codec`], or a refusal of the server. A server that is
    /// away is no error: the old value is invalidated when it is back, see [`Outcome::Deferred`].
    pub async fn put<'a>(
        &self,
        id: impl Into<EntryId<'a>>,
        value: impl Borrow<T>,
    ) -> Result<Outcome, Error> {
        self.0.put(id.into().as_str(), &[], value.borrow()).await
    }

    /// Removes a value, in every process; loads that are under way no longer count.
    ///
    /// Dropping the future leaves it open whether the server was told; this process no longer serves
    /// the value from memory.
    ///
    /// # Errors
    /// A refusal of the server. A server that is away is no error: see [`Outcome::Deferred`].
    pub async fn remove<'a>(&self, id: impl Into<EntryId<'a>>) -> Result<Outcome, Error> {
        self.0.remove(id.into().as_str()).await
    }

    /// Invalidates every value of the region, in every process. Nothing is deleted on the server:
    /// values no longer count, and go with their lifetimes.
    ///
    /// Errors and cancellation as for [`Region::remove`].
    pub async fn clear(&self) -> Result<Outcome, Error> {
        let region = self.0.state.name.as_ref().into();
        self.0.cache.mark(Deferred::Region(region)).await
    }
}

/// One entry of a region; made by [`Region::entry`].
#[derive(Debug)]
#[must_use]
pub struct Entry<'a, T> {
    pub(crate) region: &'a Region<T>,
    pub(crate) id: EntryId<'a>,
    pub(crate) tags: Vec<String>,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Entry<'_, T> {
    /// Adds a tag, by which [`Cache::invalidate_tag`] finds the entry; at most 16.
    pub fn tag<'t>(mut self, tag: impl Into<EntryId<'t>>) -> Self {
        self.tags.push(tag.into().as_str().to_owned());
        self
    }

    /// As [`Region::get`]. Tags named here are compared in the same round trip.
    pub async fn get(self) -> Result<Option<Arc<T>>, Error> {
        self.region.0.get(&self.id, &self.tags).await
    }

    /// As [`Region::put`], with the tags.
    pub async fn put(self, value: impl Borrow<T>) -> Result<Outcome, Error> {
        let inner = &self.region.0;
        inner
            .put(self.id.as_str(), &self.tags, value.borrow())
            .await
    }

    /// As [`Region::remove`].
    pub async fn remove(self) -> Result<Outcome, Error> {
        self.region.0.remove(self.id.as_str()).await
    }

    /// The value: from process memory, else from Redis, else from the loader, which is called once
    /// however many callers wait for it.
    ///
    /// The load runs in a task of its own under the region's `load_timeout`: a caller that goes away
    /// does not stop it for the others. Redis being away is never an error here, unless the region
    /// says [`WhenDown::Fail`].
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Report;
    /// # async fn load(id: u64) -> Result<Report, std::io::Error> { Ok(Report) }
    /// # async fn read(reports: &maestro_cache::Region<Report>, id: u64) -> Result<(), maestro_cache::Error> {
    /// let report: Arc<Report> = reports
    ///     .entry(id)
    ///     .tag("project-7")
    ///     .get_or_load(move || async move { load(id).await })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Load`] when the loader fails and no stale value may stand in;
    /// [`ErrorKind::Timeout`] when it takes longer than `load_timeout`; [`ErrorKind::Overloaded`]
    /// when no load could begin in that time.
    pub async fn get_or_load<F, Fut, E>(self, loader: F) -> Result<Arc<T>, Error>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let loader = move || async move { loader().await.map(Some).map_err(Into::into) };
        let value = self.load(false, loader).await?;
        value.ok_or_else(|| Error::new(ErrorKind::Load, "the load brought no value"))
    }

    /// As [`Entry::get_or_load`] for values that may not exist: that there is none is remembered for
    /// the region's `absent_ttl`.
    pub async fn get_or_load_optional<F, Fut, E>(self, loader: F) -> Result<Option<Arc<T>>, Error>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let loader = move || async move { loader().await.map_err(Into::into) };
        self.load(true, loader).await
    }
}
