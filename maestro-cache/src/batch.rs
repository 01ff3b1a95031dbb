//! Many entries at once: what is asked for together goes to the server together, in one round trip.
//!
//! Futures are collected in loops: the compiler does not see that a stream of closures which borrow
//! is `Send`, and then nobody could spawn a task that calls these.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Outcome;
use crate::codec;
use crate::coherence::{LocalEntry, Ticket};
use crate::envelope::{Envelope, Micros};
use crate::error::Error;
use crate::gather::KEYS_A_COMMAND;
use crate::key::{EntryId, Key, Marker};
use crate::marker::MarkerSlot;
use crate::read::{Found, Judge, Read};
use crate::region::{Local, Region, RegionInner, check};

/// Removals in one script, each of which costs the server three commands.
const REMOVALS_A_SCRIPT: usize = 200;
/// Writes of one call that wait for their answers at a time: more would only queue in our memory.
const WRITES_AT_A_TIME: usize = 256;

/// One of many that process memory does not answer.
struct Wanted<'a, T> {
    /// Its place among all that were asked for.
    index: usize,
    id: &'a str,
    suspect: Option<(LocalEntry, Option<Arc<T>>)>,
    ticket: Ticket,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Region<T> {
    /// Reads many values: from process memory, and what is not there from Redis in one round trip.
    /// Answers in the order of the ids, `None` where there is no value.
    ///
    /// Entries whose tags this process has not met yet cost one more round trip for all of them
    /// together.
    ///
    /// ```no_run
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Report;
    /// # async fn read(reports: &maestro_cache::Region<Report>) -> Result<(), maestro_cache::Error> {
    /// let found = reports.get_many([1_u64, 2, 3]).await?;
    /// assert_eq!(found.len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Region::get`]; while Redis is away, when process memory does not hold all of them.
    pub async fn get_many<'a, I>(&self, ids: I) -> Result<Vec<Option<Arc<T>>>, Error>
    where
        I: IntoIterator,
        I::Item: Into<EntryId<'a>>,
    {
        let ids: Vec<EntryId<'_>> = ids.into_iter().map(Into::into).collect();
        for id in &ids {
            check(id.length(), &[])?;
        }
        self.0.get_many(&ids).await
    }

    /// Writes many values as [`Region::put`] does, pipelined on one connection. All are encoded
    /// before the first is sent, so that a value that cannot be stored leaves nothing half done;
    /// what the server refuses does not keep the others from being written.
    ///
    /// [`Outcome::Deferred`] when that is the outcome of at least one.
    ///
    /// # Errors
    /// As [`Region::put`]: the first refusal.
    pub async fn put_many<'a, I, K, V>(&self, values: I) -> Result<Outcome, Error>
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<EntryId<'a>>,
        V: Borrow<T>,
    {
        let region = &self.0;
        let mut encoded = Vec::new();
        for (id, value) in values {
            let id = id.into();
            check(id.length(), &[])?;
            let value = codec::encode(self.name(), value.borrow(), &region.options)?;
            encoded.push((id, value));
        }
        let mut outcomes = Vec::with_capacity(encoded.len());
        for chunk in encoded.chunks(WRITES_AT_A_TIME) {
            let mut writes = Vec::with_capacity(chunk.len());
            for (id, encoded) in chunk {
                writes.push(region.put_encoded(id.as_str(), &[], encoded));
            }
            outcomes.extend(join_all(writes).await);
        }
        all(outcomes)
    }

    /// Removes many values as [`Region::remove`] does, in one round trip.
    ///
    /// [`Outcome::Deferred`] when that is the outcome of at least one.
    ///
    /// # Errors
    /// As [`Region::remove`]: the first refusal.
    pub async fn remove_many<'a, I>(&self, ids: I) -> Result<Outcome, Error>
    where
        I: IntoIterator,
        I::Item: Into<EntryId<'a>>,
    {
        let ids: Vec<EntryId<'_>> = ids.into_iter().map(Into::into).collect();
        for id in &ids {
            check(id.length(), &[])?;
        }
        let mut removals = Vec::new();
        for chunk in ids.chunks(REMOVALS_A_SCRIPT) {
            removals.push(self.0.remove_chunk(chunk));
        }
        let outcomes = join_all(removals).await;
        all(outcomes)
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> RegionInner<T> {
    async fn get_many(&self, ids: &[EntryId<'_>]) -> Result<Vec<Option<Arc<T>>>, Error> {
        let inner = self.inner();
        let now = inner.clock.now();
        let mut values = vec![None; ids.len()];
        let mut wanted = Vec::new();
        for (index, (id, slot)) in ids.iter().zip(&mut values).enumerate() {
            let suspect = match self.local(id, now) {
                Local::Hit { value, .. } => {
                    *slot = value;
                    continue;
                }
                Local::Suspect { entry, value } => Some((entry, value)),
                Local::Miss => None,
            };
            let id = id.as_str();
            let ticket = inner.coherence.ticket(&self.state, id, &[], now);
            wanted.push(Wanted {
                index,
                id,
                suspect,
                ticket,
            });
        }
        let mut reads = Vec::new();
        for chunk in wanted.chunks(KEYS_A_COMMAND) {
            reads.push(self.read_chunk(chunk));
        }
        let read = join_all(reads).await;
        for (wanted, found) in wanted.chunks(KEYS_A_COMMAND).zip(read) {
            match found {
                Ok(found) => {
                    for (wanted, found) in wanted.iter().zip(found) {
                        if let (Some(slot), Found::Current { value, .. }) =
                            (values.get_mut(wanted.index), found)
                        {
                            *slot = value;
                        }
                    }
                }
                Err(error) => {
                    for wanted in wanted {
                        let current = wanted.suspect.as_ref().filter(|(entry, _)| {
                            error.kind().is_outage() && now < entry.fresh_until
                        });
                        match (values.get_mut(wanted.index), current) {
                            (Some(slot), Some((_, value))) => slot.clone_from(value),
                            _ => return Err(error),
                        }
                    }
                }
            }
        }
        Ok(values)
    }

    /// Reads entries with the markers that speak for all of them, then the markers of their tags.
    async fn read_chunk(&self, wanted: &[Wanted<'_, T>]) -> Result<Vec<Found<T>>, Error> {
        let found = self.read_chunk_stored(wanted).await;
        match &found {
            Ok(found) => found.iter().for_each(|found| self.count_found(found)),
            Err(_) => self.metrics.redis_error.add(wanted.len() as u64),
        }
        found
    }

    async fn read_chunk_stored(&self, wanted: &[Wanted<'_, T>]) -> Result<Vec<Found<T>>, Error> {
        let inner = self.inner();
        let mut judge = Judge::new(self);
        judge.consider_region();
        let markers = judge.ask.len();
        let entries: Vec<Key> = wanted.iter().map(|wanted| self.key(wanted.id)).collect();
        let asked = judge.ask.iter().map(|asked| &asked.key);
        let keys: Vec<&Key> = asked.chain(&entries).collect();
        let mut read = inner.server.get_many(keys).await?.into_iter();
        judge.learn(read.by_ref().take(markers));
        let stored: Vec<Option<Vec<u8>>> = read.collect();

        let envelopes: Vec<Option<Envelope<'_>>> = stored
            .iter()
            .map(|bytes| self.open(bytes.as_deref()?))
            .collect();
        let tags = self.tag_markers(&judge, &envelopes).await?;
        let found = wanted.iter().zip(&stored).zip(&envelopes);
        let found = found.map(|((wanted, bytes), envelope)| {
            let (Some(bytes), Some(envelope)) = (bytes, envelope) else {
                return Found::Nothing;
            };
            if envelope.is_tombstone() {
                return Found::Invalidated;
            }
            let known = |tag: &String| tags.get(tag.as_str());
            let markers: Vec<_> = envelope.tags.iter().filter_map(known).collect();
            let newest = markers.iter().map(|(_, value)| *value).max();
            let read = Read {
                id: wanted.id,
                ticket: &wanted.ticket,
                envelope,
                bytes: bytes.len(),
                newest: judge.newest.max(newest.unwrap_or_default()),
                deliveries: judge.deliveries,
                tags: markers.iter().map(|(slot, _)| Arc::clone(slot)).collect(),
            };
            self.settle_read(read, wanted.suspect.as_ref())
        });
        Ok(found.collect())
    }

    /// The markers of all tags of these entries; those that are not known are read together.
    async fn tag_markers<'e>(
        &self,
        judge: &Judge<'_, T>,
        envelopes: &'e [Option<Envelope<'_>>],
    ) -> Result<HashMap<&'e str, (Arc<MarkerSlot>, Micros)>, Error> {
        let inner = self.inner();
        let mut markers = HashMap::new();
        let mut ask = Vec::new();
        for tag in envelopes.iter().flatten().flat_map(|e| &e.tags) {
            let Slot::Vacant(vacant) = markers.entry(tag.as_str()) else {
                continue;
            };
            let slot = inner.coherence.tags.slot(tag);
            let known = judge.known(&slot);
            if known.is_none() {
                ask.push((tag, slot.generation(), inner.keys.marker(Marker::Tag(tag))));
            }
            // A marker that turns out to be lost is newer than everything.
            vacant.insert((slot, known.unwrap_or(Micros::MAX)));
        }
        let mut reads = Vec::new();
        for chunk in ask.chunks(KEYS_A_COMMAND) {
            let keys: Vec<&Key> = chunk.iter().map(|(_, _, key)| key).collect();
            reads.push(inner.server.get_many(keys));
        }
        let values = try_join_all(reads).await?;
        for ((tag, generation, _), value) in ask.iter().zip(values.into_iter().flatten()) {
            let value = value.as_deref().and_then(crate::server::parse_number);
            if let (Some(value), Some((slot, known))) =
                (value.map(Micros), markers.get_mut(tag.as_str()))
            {
                *known = value;
                slot.learn(*generation, judge.epoch, value);
            }
        }
        Ok(markers)
    }

    async fn remove_chunk(&self, ids: &[EntryId<'_>]) -> Result<Outcome, Error> {
        let inner = self.inner();
        let forget = || {
            for id in ids {
                inner.coherence.invalidate_entry(&self.state, id.as_str());
            }
        };
        forget();
        let keys: Vec<Key> = ids.iter().map(|id| self.key(id.as_str())).collect();
        let sent = inner.server.remove(&keys, self.options.tombstone()).await;
        forget();
        let outcomes = ids
            .iter()
            .map(|id| inner.settle(sent.clone(), || self.deferred(id.as_str())));
        all(outcomes.collect())
    }
}

/// What many outcomes come to: the first error, else whether anything is still to be said to Redis.
fn all(outcomes: Vec<Result<Outcome, Error>>) -> Result<Outcome, Error> {
    let mut total = Outcome::Acknowledged;
    for outcome in outcomes {
        if outcome? == Outcome::Deferred {
            total = Outcome::Deferred;
        }
    }
    Ok(total)
}
