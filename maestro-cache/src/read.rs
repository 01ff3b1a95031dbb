//! Reading an entry from Redis: the value, the markers that speak for it, and what both come to.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::nanos;
use crate::codec;
use crate::coherence::LocalEntry;
use crate::envelope::{Encoding, Envelope, Micros};
use crate::error::{Error, ErrorKind};
use crate::key::{Key, Marker};
use crate::marker::MarkerSlot;
use crate::region::RegionInner;
use crate::server::parse_number;

/// What Redis holds for an entry.
pub(crate) enum Found<T> {
    /// A current value, or the current knowledge that there is none.
    Current(Option<Arc<T>>),
    /// A value past its lifetime that may stand in for a failed load.
    Stale(Arc<T>),
    /// Nothing that can be used.
    Nothing,
    /// Something that was removed or invalidated: nothing older may be served either.
    Invalidated,
}

/// A marker that is to be read with the value.
struct Asked {
    slot: Slot,
    generation: u64,
    key: Key,
}

enum Slot {
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
        let inner = self.inner();
        let coherence = &inner.coherence;
        let now = inner.clock.now();
        let live = coherence.is_live(now);
        let epoch = coherence.epoch();
        let named_slots: Vec<_> = named.iter().map(|tag| coherence.tags.slot(tag)).collect();
        let ticket = coherence.ticket(&self.state, id, &named_slots, now);

        let mut newest = Micros(0);
        let mut ask = Vec::new();
        let known = |slot: &MarkerSlot| slot.known(epoch).filter(|_| live);
        let keys = &inner.keys;
        match known(&coherence.all) {
            Some(value) => newest = newest.max(value),
            None => ask.push(Asked {
                generation: coherence.all.generation(),
                slot: Slot::All,
                key: keys.marker(Marker::All),
            }),
        }
        match known(&self.state.marker) {
            Some(value) => newest = newest.max(value),
            None => ask.push(Asked {
                generation: self.state.marker.generation(),
                slot: Slot::Region,
                key: keys.marker(Marker::Region(&self.state.name)),
            }),
        }
        self.ask_tags(named, &named_slots, known, &mut newest, &mut ask);

        let entry = self.key(id);
        let bytes = if ask.is_empty() {
            match inner.server.get(&entry).await {
                // Something else writes below our prefix: not a value of ours.
                Err(error) if error.kind() == ErrorKind::WrongType => None,
                read => read?,
            }
        } else {
            let all = std::iter::once(&entry).chain(ask.iter().map(|asked| &asked.key));
            let mut values = inner.server.get_many(all).await?.into_iter();
            let value = values.next().flatten();
            newest = newest.max(self.learn(epoch, ask, values));
            value
        };
        let Some(bytes) = bytes else {
            return Ok(Found::Nothing);
        };
        let envelope = match Envelope::parse(&bytes) {
            Ok(envelope) => envelope,
            Err(malformed) => {
                tracing::debug!(region = %self.state.name, %malformed, "a stored value counts as a miss");
                return Ok(Found::Nothing);
            }
        };
        if envelope.encoding == Encoding::Tombstone {
            return Ok(Found::Invalidated);
        }

        // Tags learnt from the header: one more round trip, unless they are known already.
        let unnamed: Vec<String> = envelope
            .tags
            .iter()
            .filter(|tag| !named.contains(tag))
            .cloned()
            .collect();
        let unnamed_slots: Vec<_> = unnamed.iter().map(|tag| coherence.tags.slot(tag)).collect();
        let mut ask = Vec::new();
        self.ask_tags(&unnamed, &unnamed_slots, known, &mut newest, &mut ask);
        if !ask.is_empty() {
            let asked = ask.iter().map(|asked| &asked.key);
            let values = inner.server.get_many(asked).await?;
            newest = newest.max(self.learn(epoch, ask, values.into_iter()));
        }
        let covered = inner.journal.covers(&self.state.name, id, &envelope.tags);
        if covered || envelope.created <= newest {
            return Ok(Found::Invalidated);
        }

        let now = inner.clock.now();
        let fresh_until = inner.clock.local(envelope.expires, now);
        let stale_from = inner
            .clock
            .server_now(now)
            .0
            .saturating_sub(envelope.expires.0);
        let stale_until = if fresh_until > 0 {
            fresh_until.saturating_add(nanos(self.options.stale_for))
        } else {
            now.saturating_add(nanos(self.options.stale_for))
                .saturating_sub(stale_from.saturating_mul(1_000))
        };
        let value = match suspect {
            _ if envelope.encoding == Encoding::Absent => None,
            Some((entry, Some(value))) if entry.created == envelope.created => {
                Some(Arc::clone(value))
            }
            _ => match codec::decode::<T>(&envelope) {
                Some(value) => Some(Arc::new(value)),
                None => {
                    tracing::debug!(region = %self.state.name, "a stored value that does not fit its type counts as a miss");
                    return Ok(Found::Nothing);
                }
            },
        };
        let tags = envelope
            .tags
            .iter()
            .map(|tag| coherence.tags.slot(tag))
            .collect();
        if now < stale_until || now < fresh_until {
            self.keep(
                id,
                &ticket,
                value.clone(),
                envelope.created,
                fresh_until,
                stale_until,
                tags,
                bytes.len(),
                true,
            );
        }
        Ok(match value {
            value if now < fresh_until => Found::Current(value),
            Some(value) if now < stale_until => Found::Stale(value),
            _ => Found::Nothing,
        })
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

    fn ask_tags(
        &self,
        tags: &[String],
        slots: &[Arc<MarkerSlot>],
        known: impl Fn(&MarkerSlot) -> Option<Micros>,
        newest: &mut Micros,
        ask: &mut Vec<Asked>,
    ) {
        for (tag, slot) in tags.iter().zip(slots) {
            match known(slot) {
                Some(value) => *newest = (*newest).max(value),
                None => ask.push(Asked {
                    generation: slot.generation(),
                    slot: Slot::Tag(Arc::clone(slot)),
                    key: self.inner().keys.marker(Marker::Tag(tag)),
                }),
            }
        }
    }

    /// Takes over the markers that were read, and returns the newest. A missing marker was lost, and
    /// with it perhaps an invalidation: it is newer than everything.
    fn learn(
        &self,
        epoch: u64,
        asked: Vec<Asked>,
        values: impl Iterator<Item = Option<Vec<u8>>>,
    ) -> Micros {
        let mut newest = Micros(0);
        let mut values = values.fuse();
        for asked in asked {
            let value = values.next().flatten();
            let Some(value) = value.as_deref().and_then(parse_number).map(Micros) else {
                newest = Micros::MAX;
                continue;
            };
            newest = newest.max(value);
            let slot = match &asked.slot {
                Slot::All => &self.inner().coherence.all,
                Slot::Region => &self.state.marker,
                Slot::Tag(slot) => slot,
            };
            slot.learn(asked.generation, epoch, value);
        }
        newest
    }
}
