//! Reading an entry from Redis: the value, the markers that speak for it, and what both come to.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::{Nanos, micros};
use crate::codec;
use crate::coherence::{LocalEntry, Ticket};
use crate::envelope::{Encoding, Envelope, Micros};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Marker};
use crate::marker::MarkerSlot;
use crate::region::RegionInner;
use crate::server::parse_number;

/// What Redis holds for an entry.
pub(crate) enum Found<T> {
    /// A current value, or the current knowledge that there is none.
    Current {
        value: Option<Arc<T>>,
        /// Whether it is to be loaded anew meanwhile.
        aging: bool,
    },
    /// A value past its lifetime that may stand in for a failed load.
    Stale(Arc<T>),
    /// Nothing that can be used.
    Nothing,
    /// Something that was removed or invalidated: nothing older may be served either.
    Invalidated,
}

/// An entry that was read, with what speaks for it.
pub(crate) struct Read<'a> {
    pub(crate) id: &'a str,
    /// Taken before it was asked for.
    pub(crate) ticket: &'a Ticket,
    pub(crate) envelope: &'a Envelope<'a>,
    /// Stored size.
    pub(crate) bytes: usize,
    /// The newest of its markers.
    pub(crate) newest: Micros,
    /// Of the journal, before it was asked for.
    pub(crate) deliveries: u64,
    /// The markers of its tags.
    pub(crate) tags: Vec<Arc<MarkerSlot>>,
}

/// A marker that is to be read with the value.
pub(crate) struct Asked {
    slot: Slot,
    generation: u64,
    pub(crate) key: Key,
}

pub(crate) enum Slot {
    All,
    Region,
    Tag(Arc<MarkerSlot>),
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> RegionInner<T> {
    /// Reads an entry, compares it with its markers, and keeps a current value in process memory.
    /// A suspect entry that turns out to be the stored one is not decoded again.
    pub(crate) async fn read(
        &self,
        id: &str,
        named: &[String],
        suspect: Option<&(LocalEntry, Option<Arc<T>>)>,
    ) -> Result<Found<T>, Error> {
        let found = self.read_stored(id, named, suspect).await;
        match &found {
            Ok(found) => self.count_found(found),
            Err(_) => self.metrics.redis_error.increment(),
        }
        found
    }

    async fn read_stored(
        &self,
        id: &str,
        named: &[String],
        suspect: Option<&(LocalEntry, Option<Arc<T>>)>,
    ) -> Result<Found<T>, Error> {
        let inner = self.inner();
        let mut judge = Judge::new(self);
        let slots = judge.slots(named);
        let ticket = inner
            .coherence
            .ticket(&self.state, id, &slots, inner.clock.now());
        let Some(bytes) = judge.fetch(id, named, &slots).await? else {
            return Ok(Found::Nothing);
        };
        let Some(envelope) = self.open(&bytes) else {
            return Ok(Found::Nothing);
        };
        if envelope.is_tombstone() {
            return Ok(Found::Invalidated);
        }
        // Held from before their markers are asked for until the entry holds them: an invalidation
        // in between would find nobody to tell.
        let held = judge.slots(&envelope.tags);
        judge.ask_unnamed(&envelope, named, &held).await?;
        let stored = Read {
            id,
            ticket: &ticket,
            envelope: &envelope,
            bytes: bytes.len(),
            newest: judge.newest,
            deliveries: judge.deliveries,
            tags: held,
        };
        Ok(self.settle_read(stored, suspect))
    }

    /// What a stored entry comes to once its markers are known: kept in process memory if it is
    /// still good for something.
    pub(crate) fn settle_read(
        &self,
        read: Read<'_>,
        suspect: Option<&(LocalEntry, Option<Arc<T>>)>,
    ) -> Found<T> {
        let inner = self.inner();
        let envelope = read.envelope;
        let covered =
            inner
                .journal
                .covers(&self.state.name, read.id, &envelope.tags, read.deliveries);
        if covered || envelope.created <= read.newest {
            return Found::Invalidated;
        }
        let mut bytes = read.bytes;
        let value = match suspect {
            _ if envelope.encoding == Encoding::Absent => None,
            Some((entry, Some(value))) if entry.created == envelope.created => {
                Some(Arc::clone(value))
            }
            _ => {
                let limit = self.options.max_value_bytes;
                let Some((value, plain)) = codec::decode::<T>(envelope, limit) else {
                    self.metrics.unusable("type");
                    return Found::Nothing;
                };
                bytes = bytes.max(plain);
                Some(Arc::new(value))
            }
        };
        let now = inner.clock.glance();
        let (fresh_until, stale_until) = self.lifetimes(envelope, now);
        if now < stale_until {
            self.keep(
                read.id,
                read.ticket,
                value.clone(),
                envelope.created,
                fresh_until,
                stale_until,
                read.tags,
                bytes,
                true,
            );
        }
        match value {
            value if now < fresh_until => Found::Current {
                value,
                aging: now >= self.refresh_at(fresh_until),
            },
            Some(value) if now < stale_until => Found::Stale(value),
            _ => Found::Nothing,
        }
    }

    /// Takes stored bytes apart; `None`, counted, when they are no value of ours.
    pub(crate) fn open<'b>(&self, bytes: &'b [u8]) -> Option<Envelope<'b>> {
        Envelope::parse(bytes)
            .map_err(|malformed| self.metrics.unusable(malformed.as_str()))
            .ok()
    }

    pub(crate) fn count_found(&self, found: &Found<T>) {
        match found {
            Found::Current { .. } => self.metrics.redis_hit.increment(),
            Found::Stale(_) => self.metrics.redis_stale.increment(),
            Found::Nothing | Found::Invalidated => self.metrics.redis_miss.increment(),
        }
    }

    /// Until when a value is current, and until when it may stand in, by our clock.
    fn lifetimes(&self, envelope: &Envelope<'_>, now: Nanos) -> (Nanos, Nanos) {
        let clock = &self.inner().clock;
        let fresh_until = clock.local(envelope.expires, now);
        let stale_for = micros(self.options.stale_for);
        let stale_until = clock.local(Micros(envelope.expires.0.saturating_add(stale_for)), now);
        (fresh_until, stale_until)
    }

    /// Whether Redis knows of an invalidation of this key after `began`.
    pub(crate) async fn invalidated_since(
        &self,
        id: &str,
        tags: &[String],
        began: Micros,
    ) -> Result<bool, Error> {
        let entry = self.key(id);
        let markers = self.markers(tags);
        let keys = std::iter::once(&entry).chain(&markers);
        let mut values = self.inner().server.get_many(keys).await?.into_iter();
        let stored = values.next().flatten();
        let newer = stored
            .as_deref()
            .and_then(|bytes| Envelope::parse(bytes).ok())
            .is_some_and(|envelope| envelope.created > began);
        let lost_or_newer = |value: Option<Vec<u8>>| {
            value
                .as_deref()
                .and_then(parse_number)
                .is_none_or(|marker| Micros(marker) >= began)
        };
        Ok(newer || values.any(lost_or_newer))
    }
}

/// Weighs an entry against the markers that speak for it.
pub(crate) struct Judge<'a, T> {
    region: &'a RegionInner<T>,
    pub(crate) epoch: u64,
    pub(crate) deliveries: u64,
    /// Whether invalidations are known to arrive, so that known markers can be relied on.
    live: bool,
    /// The newest of the markers seen.
    pub(crate) newest: Micros,
    /// Markers to be read.
    pub(crate) ask: Vec<Asked>,
}

impl<'a, T: Serialize + DeserializeOwned + Send + Sync + 'static> Judge<'a, T> {
    pub(crate) fn new(region: &'a RegionInner<T>) -> Self {
        let inner = region.inner();
        Self {
            region,
            epoch: inner.coherence.epoch(),
            deliveries: inner.journal.deliveries(),
            live: inner.coherence.is_live(inner.clock.glance()),
            newest: Micros(0),
            ask: Vec::new(),
        }
    }

    pub(crate) fn slots(&self, tags: &[String]) -> Vec<Arc<MarkerSlot>> {
        let table = &self.region.inner().coherence.tags;
        tags.iter().map(|tag| table.slot(tag)).collect()
    }

    /// Reads an entry together with the markers that are not known.
    async fn fetch(
        &mut self,
        id: &str,
        named: &[String],
        slots: &[Arc<MarkerSlot>],
    ) -> Result<Option<Vec<u8>>, Error> {
        let region = self.region;
        let inner = region.inner();
        self.consider_region();
        for (tag, slot) in named.iter().zip(slots) {
            self.consider_tag(tag, slot);
        }
        let entry = region.key(id);
        if self.ask.is_empty() {
            return match inner.server.get(entry).await {
                // Something else writes below our prefix: not a value of ours.
                Err(error) if error.kind() == ErrorKind::WrongType => {
                    region.metrics.unusable("wrong_type");
                    Ok(None)
                }
                read => read,
            };
        }
        let keys = std::iter::once(&entry).chain(self.ask.iter().map(|asked| &asked.key));
        let mut values = inner.server.get_many(keys).await?.into_iter();
        let value = values.next().flatten();
        self.learn(values);
        Ok(value)
    }

    /// Reads the markers of tags that only the header named: one more round trip, unless they are
    /// known already.
    async fn ask_unnamed(
        &mut self,
        envelope: &Envelope<'_>,
        named: &[String],
        held: &[Arc<MarkerSlot>],
    ) -> Result<(), Error> {
        let inner = self.region.inner();
        let tags = envelope.tags.iter().zip(held);
        for (tag, slot) in tags.filter(|(tag, _)| !named.contains(tag)) {
            self.consider_tag(tag, slot);
        }
        if !self.ask.is_empty() {
            let keys = self.ask.iter().map(|asked| &asked.key);
            let values = inner.server.get_many(keys).await?;
            self.learn(values.into_iter());
        }
        Ok(())
    }

    /// The markers that speak for every entry of the region.
    pub(crate) fn consider_region(&mut self) {
        let region = self.region;
        let coherence = &region.inner().coherence;
        self.consider(&coherence.all, Slot::All, Marker::All);
        let name = &region.state.name;
        self.consider(&region.state.marker, Slot::Region, Marker::Region(name));
    }

    /// The marker of one tag.
    pub(crate) fn consider_tag(&mut self, tag: &str, slot: &Arc<MarkerSlot>) {
        self.consider(slot, Slot::Tag(Arc::clone(slot)), Marker::Tag(tag));
    }

    /// A marker's value, if it can be relied on without asking.
    pub(crate) fn known(&self, slot: &MarkerSlot) -> Option<Micros> {
        slot.known(self.epoch).filter(|_| self.live)
    }

    /// Takes a marker that is known into account, and asks for one that is not.
    fn consider(&mut self, slot: &MarkerSlot, which: Slot, marker: Marker<'_>) {
        match self.known(slot) {
            Some(value) => self.newest = self.newest.max(value),
            None => self.ask.push(Asked {
                generation: slot.generation(),
                slot: which,
                key: self.region.inner().keys.marker(marker),
            }),
        }
    }

    /// Takes over the markers that were read. A missing one was lost, and with it perhaps an
    /// invalidation: it is newer than everything.
    pub(crate) fn learn(&mut self, mut values: impl Iterator<Item = Option<Vec<u8>>>) {
        for asked in std::mem::take(&mut self.ask) {
            let value = values.next().flatten();
            let Some(value) = value.as_deref().and_then(parse_number).map(Micros) else {
                self.newest = Micros::MAX;
                continue;
            };
            self.newest = self.newest.max(value);
            let slot = match &asked.slot {
                Slot::All => &self.region.inner().coherence.all,
                Slot::Region => &self.region.state.marker,
                Slot::Tag(slot) => slot,
            };
            slot.learn(asked.generation, self.epoch, value);
        }
    }
}
