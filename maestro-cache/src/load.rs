//! Loading a value that neither process memory nor Redis holds: once for all who wait, within
//! deadlines, with a stale value standing in when the load fails.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;

use maestro_metrics::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::clock::nanos;
use crate::codec::{self, Encoded};
use crate::coherence::LocalEntry;
use crate::envelope::{Micros, tags_field};
use crate::error::{Error, ErrorKind};
use crate::flight::{Flight, Landing, Pilot, Place};
use crate::marker::MarkerSlot;
use crate::options::WhenDown;
use crate::read::Found;
use crate::region::{Entry, Local, RegionInner, check};
use crate::server::{Stored, Write};
use crate::tracking;
use crate::turn::Turn;

type LoadError = Box<dyn StdError + Send + Sync>;

/// Brings a value; called at most once, in a task of its own.
pub(crate) trait Loader<T>: Send + 'static {
    fn bring(self) -> impl Future<Output = Result<Option<T>, LoadError>> + Send;
}

impl<T, F, Fut> Loader<T> for F
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<Option<T>, LoadError>> + Send + 'static,
{
    fn bring(self) -> impl Future<Output = Result<Option<T>, LoadError>> + Send {
        self()
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Entry<'_, T> {
    pub(crate) async fn load(
        self,
        optional: bool,
        loader: impl Loader<T>,
    ) -> Result<Option<Arc<T>>, Error> {
        let region = &self.region.0;
        let inner = region.inner();
        let now = inner.clock.glance();
        let suspect = match region.local(&self.id, now) {
            Local::Hit { value, aging } if optional || value.is_some() => {
                if aging {
                    self.refresh(optional, value.clone(), loader);
                }
                return Ok(value);
            }
            Local::Suspect { entry, value } if optional || value.is_some() => {
                if now < entry.fresh_until && !inner.server.link.is_up() {
                    return Ok(value);
                }
                Some((entry, value))
            }
            _ => None,
        };
        // Boxed: whoever gets a hit would otherwise move the whole future of a load about.
        Box::pin(self.fly(optional, suspect, loader)).await
    }

    /// Waits for a load: one under way, or one of its own.
    async fn fly(
        &self,
        optional: bool,
        suspect: Option<(LocalEntry, Option<Arc<T>>)>,
        loader: impl Loader<T>,
    ) -> Result<Option<Arc<T>>, Error> {
        let region = &self.region.0;
        let inner = region.inner();
        check(self.id.length(), &self.tags)?;
        let tags = self.tags.iter();
        let slots: Vec<_> = tags.map(|tag| inner.coherence.tags.slot(tag)).collect();
        let flight = self.board(optional, &slots, suspect, loader).await;
        match flight.landing(region.options.soft_timeout).await {
            Landing::Result(result) => result,
            Landing::Stale(value) => {
                region.metrics.stale_served.increment();
                Ok(Some(value))
            }
        }
    }

    /// Joins a load under way, or starts one.
    async fn board(
        &self,
        optional: bool,
        slots: &[Arc<MarkerSlot>],
        suspect: Option<(LocalEntry, Option<Arc<T>>)>,
        loader: impl Loader<T>,
    ) -> Arc<Flight<T>> {
        let region = &self.region.0;
        let id = self.id.as_str();
        let inner = region.inner();
        let mut refused: Option<Arc<Flight<T>>> = None;
        loop {
            let board = || {
                let now = inner.clock.now();
                inner.coherence.ticket(&region.state, id, slots, now)
            };
            match region.flights.join(id, optional, refused.as_ref(), board) {
                Place::Passenger(flight) => {
                    if self.may_join(&flight, slots).await {
                        return flight;
                    }
                    refused = Some(flight);
                }
                Place::Pilot(flight, pilot) => {
                    let task = self.task(optional, slots, pilot);
                    let work = Context::current().scope(task.run(suspect, loader));
                    inner.loads.spawn(work.instrument(tracing::Span::current()));
                    return flight;
                }
            }
        }
    }

    fn task(&self, optional: bool, slots: &[Arc<MarkerSlot>], pilot: Pilot<T>) -> Load<T> {
        Load {
            region: Arc::clone(&self.region.0),
            id: self.id.as_str().into(),
            tags: self.tags.clone(),
            slots: slots.to_vec(),
            optional,
            pilot,
        }
    }

    /// Loads a value that is current and will not be for long, in the background; unless that is under
    /// way, failed a moment ago, or Redis is away.
    fn refresh(&self, optional: bool, value: Option<Arc<T>>, loader: impl Loader<T>) {
        let region = &self.region.0;
        let (inner, id) = (region.inner(), self.id.as_str());
        let now = inner.clock.now();
        if !inner.server.link.is_up()
            || region.failures.is_pausing(id, now)
            || check(id.len(), &self.tags).is_err()
        {
            return;
        }
        let tags = self.tags.iter();
        let slots: Vec<_> = tags.map(|tag| inner.coherence.tags.slot(tag)).collect();
        let board = || inner.coherence.ticket(&region.state, id, &slots, now);
        if let Place::Pilot(_, pilot) = region.flights.join(id, optional, None, board) {
            let work = self.task(optional, &slots, pilot).renew(value, loader);
            let work = Context::current().scope(work);
            inner.loads.spawn(work.instrument(tracing::Span::current()));
        }
    }

    /// Whether a load under way began after the last invalidation of the key. Mostly known without
    /// asking; a marker that was only just made looks like an invalidation, and Redis is asked.
    async fn may_join(&self, flight: &Flight<T>, slots: &[Arc<MarkerSlot>]) -> bool {
        let region = &self.region.0;
        let inner = region.inner();
        let arrived = inner.clock.now();
        // When nobody can be asked, a flight is joined while a value of its age would serve from memory.
        let oldest = arrived.saturating_sub(nanos(tracking::bound(&inner.server.link.config)));
        let is_current = || {
            let ticket = flight.ticket();
            // That nothing was heard means something only while news arrives; or when the flight was
            // found to be current after this caller came.
            let told = inner.coherence.is_live(inner.clock.now())
                || ticket.taken() >= arrived
                || !inner.server.link.is_up() && ticket.taken() >= oldest;
            told && inner.coherence.is_current(&ticket, &region.state)
        };
        if is_current() {
            return true;
        }
        let _one_asks = flight.verifying.lock().await;
        if is_current() {
            return true;
        }
        let Some(began) = flight.began().await else {
            return false;
        };
        let now = inner.clock.now();
        let id = self.id.as_str();
        let ticket = inner.coherence.ticket(&region.state, id, slots, now);
        let newer = region.invalidated_since(id, &self.tags, began).await;
        let valid = matches!(newer, Ok(false));
        if valid {
            flight.renew(ticket);
        }
        valid
    }
}

/// One load, in a task of its own.
pub(crate) struct Load<T> {
    pub(crate) region: Arc<RegionInner<T>>,
    pub(crate) id: Box<str>,
    pub(crate) tags: Vec<String>,
    slots: Vec<Arc<MarkerSlot>>,
    pub(crate) optional: bool,
    pilot: Pilot<T>,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Load<T> {
    async fn run(self, suspect: Option<(LocalEntry, Option<Arc<T>>)>, loader: impl Loader<T>) {
        let inner = self.region.inner();
        let mut stale = suspect.as_ref().and_then(|(_, value)| value.clone());
        let mut up = inner.server.link.is_up();
        if up {
            let current = suspect
                .as_ref()
                .filter(|(entry, _)| inner.clock.now() < entry.fresh_until);
            match self
                .region
                .read(&self.id, &self.tags, suspect.as_ref())
                .await
            {
                Ok(Found::Current { value, aging }) if self.optional || value.is_some() => {
                    if !aging || self.is_pausing() {
                        return self.pilot.finish(Ok(value));
                    }
                    if let Some(next) = self.landed(value.clone()) {
                        next.renew(value, loader).await;
                    }
                    return;
                }
                Ok(Found::Stale(value)) => stale = Some(value),
                Ok(Found::Current { .. } | Found::Invalidated) => stale = None,
                Ok(Found::Nothing) => {}
                Err(error) => {
                    tracing::debug!(%error, "loading without Redis");
                    up = false;
                    if let Some((_, value)) = current {
                        return self.pilot.finish(Ok(value.clone()));
                    }
                }
            }
        }
        if let Some(stale) = &stale {
            self.pilot.offer_stale(stale);
            let pausing = self.is_pausing();
            let rather_stale = matches!(self.region.options.when_down, WhenDown::ServeStale { .. });
            if pausing || (!up && rather_stale) {
                self.region.metrics.stale_served.increment();
                return self.pilot.finish(Ok(Some(Arc::clone(stale))));
            }
        }
        if !up && self.region.options.when_down == WhenDown::Fail {
            return self.pilot.finish(Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "a value of region `{}` was not loaded: Redis at {} is away, and the region says to fail then",
                    self.region.state.name,
                    inner.server.link.config.server()
                ),
            )));
        }
        let turn = match self.region.options.one_load.filter(|_| up) {
            Some(wait) => match self.take_turn(wait).await {
                Turn::Brought(value) => return self.pilot.finish(Ok(value)),
                Turn::Ours(turn) => turn,
            },
            None => None,
        };
        match self.load(up, loader).await {
            Ok((value, began)) => {
                self.region.failures.forget(&self.id);
                let value = value.map(Arc::new);
                self.pilot.publish(Ok(value.clone()));
                self.store(value, began).await;
            }
            Err(error) => match stale {
                Some(value) => {
                    tracing::warn!(region = %self.region.state.name, %error, "a load failed; a stale value stands in");
                    self.note_failure();
                    self.region.metrics.stale_served.increment();
                    self.pilot.finish(Ok(Some(value)));
                }
                None => self.pilot.finish(Err(error)),
            },
        }
        if let Some(turn) = turn {
            turn.end().await;
        }
    }

    /// Ends the flight with a value that was there, and begins the next one, unless somebody has.
    fn landed(self, value: Option<Arc<T>>) -> Option<Self> {
        let (region, id, slots) = (self.region, self.id, self.slots);
        self.pilot.finish(Ok(value));
        let inner = region.inner();
        let board = || {
            let now = inner.clock.now();
            inner.coherence.ticket(&region.state, &id, &slots, now)
        };
        let Place::Pilot(_, pilot) = region.flights.join(&id, self.optional, None, board) else {
            return None;
        };
        Some(Self {
            id,
            slots,
            pilot,
            region,
            tags: self.tags,
            optional: self.optional,
        })
    }

    /// Loads a value that is current, and goes on serving it when that fails.
    async fn renew(self, current: Option<Arc<T>>, loader: impl Loader<T>) {
        let mut turn = None;
        if self.region.options.one_load.is_some() {
            turn = self.try_turn().await;
            if turn.is_none() {
                // Another process is at it: its news will come.
                return self.pilot.finish(Ok(current));
            }
        }
        match self.load(true, loader).await {
            Ok((value, began)) => {
                let value = value.map(Arc::new);
                self.pilot.publish(Ok(value.clone()));
                self.store(value, began).await;
            }
            Err(error) => {
                tracing::warn!(region = %self.region.state.name, %error, "an early load failed; the value serves on");
                self.note_failure();
                self.pilot.finish(Ok(current));
            }
        }
        if let Some(turn) = turn {
            turn.end().await;
        }
    }

    fn is_pausing(&self) -> bool {
        let now = self.region.inner().clock.now();
        self.region.failures.is_pausing(&self.id, now)
    }

    fn note_failure(&self) {
        let now = self.region.inner().clock.now();
        let retry_at = now.saturating_add(nanos(self.region.options.retry_failed_after));
        self.region.failures.note(&self.id, retry_at, now);
    }

    /// Calls the loader, under the deadline and within the number of loads allowed.
    async fn load(
        &self,
        up: bool,
        loader: impl Loader<T>,
    ) -> Result<(Option<T>, Option<Micros>), Error> {
        let region = &self.region;
        let limit = region.options.load_timeout;
        let deadline = Instant::now() + limit;
        let permits: &Semaphore = if up {
            &region.loads
        } else {
            &region.loads_when_down
        };
        let permit = timeout_at(deadline, permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "a value of region `{}` was not loaded within {limit:?}: too many loads were running; look at how long they take",
                    region.state.name
                ),
            ));
        };
        // After the wait for a permit: the earlier it is, the more invalidations refuse the value.
        let inner = region.inner();
        let now = inner.clock.now();
        let ticket = inner
            .coherence
            .ticket(&region.state, &self.id, &self.slots, now);
        let began = if up {
            let markers = region.markers(&self.tags);
            inner.server.begin(&markers).await.ok()
        } else {
            None
        };
        self.pilot.loading(ticket, began);
        let started = Instant::now();
        let loaded = match timeout_at(deadline, loader.bring()).await {
            Ok(Ok(value)) => Ok((value, began)),
            Ok(Err(error)) => Err(Error::with_source(
                ErrorKind::Load,
                format!(
                    "a value of region `{}` could not be loaded",
                    region.state.name
                ),
                error,
            )),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "a value of region `{}` was not loaded within {limit:?}: look at what its loader waits for, or raise `load_timeout`",
                    region.state.name
                ),
            )),
        };
        match &loaded {
            Ok(_) => region.metrics.loaded.observe_duration(started.elapsed()),
            Err(error) => region
                .metrics
                .load_failed(error.kind())
                .observe_duration(started.elapsed()),
        }
        loaded
    }

    /// Stores what was loaded, unless it was invalidated meanwhile.
    async fn store(&self, value: Option<Arc<T>>, began: Option<Micros>) {
        let region = &self.region;
        let inner = region.inner();
        let ttl = match &value {
            Some(_) => region.options.ttl,
            None => region.options.absent_ttl,
        };
        let ttl = region.jittered(ttl);
        let encoded = match &value {
            None => Ok(Encoded::absent()),
            Some(value) => codec::encode(&region.state.name, value.as_ref(), &region.options),
        };
        let encoded = match encoded {
            Ok(encoded) => encoded,
            Err(error) => {
                region.metrics.unstored(error.kind().as_str());
                tracing::warn!(%error, "a loaded value is not cached");
                return;
            }
        };
        let stored = match began {
            None => None,
            Some(began) => {
                let write = Write {
                    entry: &region.key(&self.id),
                    markers: &region.markers(&self.tags),
                    began: Some(began),
                    letters: encoded.letters(),
                    ttl,
                    stale_for: value
                        .as_ref()
                        .map_or(std::time::Duration::ZERO, |_| region.options.stale_for),
                    tags: &tags_field(&self.tags),
                    payload: &encoded.payload,
                    longest_load: region.options.load_timeout,
                };
                Some(inner.server.store(write).await)
            }
        };
        match stored {
            Some(Ok(Stored::At(_))) => {}
            Some(Ok(refused)) => {
                region.metrics.unstored(refused.as_str());
            }
            Some(Err(error)) if !error.kind().is_outage() => {
                region.metrics.unstored(error.kind().as_str());
                tracing::warn!(region = %region.state.name, %error, "a loaded value was not stored");
            }
            // Redis is away: the value serves this process until it is back or a minute has passed.
            None | Some(Err(_)) => self.keep_unverified(value, &encoded, ttl),
        }
    }

    fn keep_unverified(&self, value: Option<Arc<T>>, encoded: &Encoded, ttl: std::time::Duration) {
        let inner = self.region.inner();
        let now = inner.clock.now();
        let fresh_until = now.saturating_add(nanos(ttl));
        self.region.keep(
            &self.id,
            &self.pilot.ticket(),
            value,
            inner.clock.server_now(now),
            fresh_until,
            fresh_until.saturating_add(nanos(self.region.options.stale_for)),
            self.slots.clone(),
            encoded.payload.len(),
            false,
        );
    }
}
