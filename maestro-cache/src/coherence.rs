//! When a value in process memory may be served without asking Redis. No I/O and no clock of its
//! own: connections report events, callers pass the time, and tests walk every interleaving.
//!
//! Three things guard an entry:
//! - its *generation*: an invalidation of a key moves it; a value read before is not kept;
//! - the *epoch* of its region: it moves when the connection for invalidations is lost or made, when
//!   some database is flushed, and when the region is cleared; entries of an older epoch are
//!   *suspect*: they are compared with Redis before they are served again, not thrown away;
//! - the *lease*: a heartbeat on that connection proves that every invalidation finished before it
//!   was sent has been applied here. The lease runs out one heartbeat and its deadline later, which
//!   is the bound on staleness, also when the process itself was stopped.

use std::any::Any;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};

use crate::clock::Nanos;
use crate::envelope::Micros;
use crate::key::{Invalidated, Marker, Name};
use crate::marker::{MarkerSlot, TagTable};

/// Locks that order "invalidate" and "keep" of one key. Two keys on one lock only cost a read.
const STRIPES: usize = if cfg!(test) { 4 } else { 1_024 };
/// Counted for every entry on top of its value: key, bookkeeping and the table's slot.
const ENTRY_OVERHEAD: u64 = 256;

/// A region's part of the coherence state.
#[derive(Debug)]
pub(crate) struct RegionState {
    pub(crate) name: Box<str>,
    id: u32,
    epoch: AtomicU64,
    pub(crate) marker: MarkerSlot,
}

impl RegionState {
    #[inline]
    fn key<'a>(&self, id: &'a Name<'a>) -> LocalKeyRef<'a> {
        let region = self.id;
        LocalKeyRef { region, id }
    }
}

/// A value in process memory.
#[derive(Clone)]
pub(crate) struct LocalEntry {
    /// `None`: known to be absent.
    pub(crate) value: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) created: Micros,
    /// Until then the value is current.
    pub(crate) fresh_until: Nanos,
    /// From then on it is to be loaded anew while it serves.
    pub(crate) refresh_at: Nanos,
    /// Until then it may stand in when a load fails.
    pub(crate) stale_until: Nanos,
    pub(crate) tags: Option<Arc<[Arc<MarkerSlot>]>>,
    epoch: u64,
    taken: Nanos,
    weight: u64,
}

/// What is to be kept, before the bookkeeping.
pub(crate) struct Keep {
    pub(crate) value: Option<Arc<dyn Any + Send + Sync>>,
    pub(crate) created: Micros,
    pub(crate) fresh_until: Nanos,
    pub(crate) refresh_at: Nanos,
    pub(crate) stale_until: Nanos,
    pub(crate) tags: Vec<Arc<MarkerSlot>>,
    /// Memory the value is thought to take, in bytes.
    pub(crate) bytes: u64,
    /// Whether it was read from Redis and compared with its markers; what was loaded during an
    /// outage was not.
    pub(crate) verified: bool,
}

/// What is known of a key before it is read.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    stripe: usize,
    generation: u64,
    region_epoch: u64,
    taken: Nanos,
    tags: Vec<(Arc<MarkerSlot>, u64)>,
}

impl Ticket {
    /// When it was taken, by our clock.
    pub(crate) fn taken(&self) -> Nanos {
        self.taken
    }
}

/// What process memory holds for a key.
pub(crate) enum Lookup {
    /// Coherent and current. Of the entry only what a hit is asked for: it is moved about.
    Hit {
        value: Option<Arc<dyn Any + Send + Sync>>,
        refresh_at: Nanos,
    },
    /// Something, but not to be served without a look at Redis.
    Suspect(LocalEntry),
    Miss,
}

#[derive(PartialEq, Eq)]
struct LocalKey {
    region: u32,
    id: LocalId,
}

#[derive(PartialEq, Eq)]
enum LocalId {
    Number(u64),
    Text(Box<[u8]>),
}

struct LocalKeyRef<'a> {
    region: u32,
    id: &'a Name<'a>,
}

impl Hash for LocalKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let id = match &self.id {
            LocalId::Number(number) => Name::Number(*number),
            LocalId::Text(text) => Name::Text(text),
        };
        let (region, id) = (self.region, &id);
        LocalKeyRef { region, id }.hash(state);
    }
}

impl Hash for LocalKeyRef<'_> {
    /// The number of the region last: where an id ends needs no mark then.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.id {
            Name::Number(number) => state.write_u64(*number),
            Name::Text(text) => state.write(text),
        }
        state.write_u32(self.region);
    }
}

impl Equivalent<LocalKey> for LocalKeyRef<'_> {
    #[inline]
    fn equivalent(&self, key: &LocalKey) -> bool {
        self.region == key.region
            && match (self.id, &key.id) {
                (Name::Number(a), LocalId::Number(b)) => a == b,
                (Name::Text(a), LocalId::Text(b)) => **a == **b,
                _ => false,
            }
    }
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<LocalKey, LocalEntry> for ByWeight {
    fn weight(&self, _: &LocalKey, entry: &LocalEntry) -> u64 {
        entry.weight
    }
}

type Store = Cache<
    LocalKey,
    LocalEntry,
    ByWeight,
    DefaultHashBuilder,
    DefaultLifecycle<LocalKey, LocalEntry>,
>;

/// The coherence state of one cache.
pub(crate) struct Coherence {
    epoch: AtomicU64,
    lease_until: AtomicU64,
    stripes: Box<[Mutex<u64>]>,
    hasher: DefaultHashBuilder,
    regions: RwLock<HashMap<Box<str>, Arc<RegionState>>>,
    pub(crate) tags: TagTable,
    pub(crate) all: MarkerSlot,
    store: Option<Store>,
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coherence")
            .field("epoch", &self.epoch)
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

impl Coherence {
    /// `capacity` in bytes; 0 keeps nothing.
    pub(crate) fn new(capacity: u64) -> Self {
        let items = usize::try_from(capacity / (ENTRY_OVERHEAD * 8)).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .weight_capacity(capacity)
            .estimated_items_capacity(items.clamp(16, 1 << 20))
            .build();
        let store = options.ok().filter(|_| capacity > 0).map(|options| {
            Cache::with_options(
                options,
                ByWeight,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            )
        });
        Self {
            epoch: AtomicU64::new(1),
            lease_until: AtomicU64::new(0),
            stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            hasher: DefaultHashBuilder::default(),
            regions: RwLock::default(),
            tags: TagTable::default(),
            all: MarkerSlot::default(),
            store,
        }
    }

    /// The state of a region, made at first use.
    pub(crate) fn region(&self, name: &str) -> Arc<RegionState> {
        let mut regions = self.regions.write();
        if let Some(region) = regions.get(name) {
            return Arc::clone(region);
        }
        let region = Arc::new(RegionState {
            name: name.into(),
            id: u32::try_from(regions.len()).unwrap_or(u32::MAX),
            epoch: AtomicU64::new(1),
            marker: MarkerSlot::default(),
        });
        regions.insert(name.into(), Arc::clone(&region));
        region
    }

    // Events of the connection for invalidations.

    /// Invalidations arrive from now on.
    pub(crate) fn connected(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.suspect_all();
    }

    /// Invalidations may be missed from now on.
    pub(crate) fn disconnected(&self) {
        self.lease_until.store(0, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.suspect_all();
    }

    /// Some database of the server was flushed: perhaps ours, perhaps a neighbour's.
    pub(crate) fn flushed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.suspect_all();
    }

    /// A heartbeat was answered: everything finished before it was sent has been applied.
    pub(crate) fn lease(&self, until: Nanos) {
        self.lease_until.fetch_max(until, Ordering::AcqRel);
    }

    /// A key has changed, or is about to be changed by us.
    pub(crate) fn invalidate(&self, what: Invalidated<'_>, now: Nanos) {
        match what {
            Invalidated::Entry { region, id } => {
                let state = self.regions.read().get(region).map(Arc::clone);
                if let Some(state) = state {
                    self.invalidate_entry(&state, id);
                }
            }
            Invalidated::Marker(Marker::All) => {
                self.all.invalidate(now);
                self.suspect_all();
            }
            Invalidated::Marker(Marker::Region(region)) => {
                let state = self.regions.read().get(region).map(Arc::clone);
                if let Some(state) = state {
                    state.marker.invalidate(now);
                    state.epoch.fetch_add(1, Ordering::AcqRel);
                }
            }
            Invalidated::Marker(Marker::Tag(tag)) => {
                if let Some(slot) = self.tags.find(tag) {
                    slot.invalidate(now);
                }
            }
        }
    }

    pub(crate) fn invalidate_entry(&self, region: &RegionState, id: &str) {
        let id = Name::of(id);
        let key = region.key(&id);
        let mut generation = self.stripe(self.stripe_of(&key)).lock();
        *generation += 1;
        if let Some(store) = &self.store {
            store.remove(&key);
        }
    }

    fn suspect_all(&self) {
        for region in self.regions.read().values() {
            region.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    // Reading.

    /// True while invalidations are known to arrive.
    #[inline]
    pub(crate) fn is_live(&self, now: Nanos) -> bool {
        now < self.lease_until.load(Ordering::Acquire)
    }

    /// Looks a key up in process memory. Inlined into the caller of each type, and the key by reference:
    /// what is copied between two functions right after it was put together makes a processor wait as
    /// long as for an atomic addition.
    #[inline]
    pub(crate) fn lookup(&self, region: &RegionState, id: &Name<'_>, now: Nanos) -> Lookup {
        let key = region.key(id);
        let Some(entry) = self.store.as_ref().and_then(|store| store.get(&key)) else {
            return Lookup::Miss;
        };
        if entry.epoch == region.epoch.load(Ordering::Acquire)
            && now < entry.fresh_until
            && self.is_live(now)
            && entry
                .tags
                .as_ref()
                .is_none_or(|tags| tags.iter().all(|tag| entry.created > tag.value()))
        {
            return Lookup::Hit {
                value: entry.value,
                refresh_at: entry.refresh_at,
            };
        }
        self.no_hit(region, entry, now)
    }

    #[cold]
    fn no_hit(&self, region: &RegionState, entry: LocalEntry, now: Nanos) -> Lookup {
        if now < entry.stale_until && self.not_invalidated(region, &entry) {
            return Lookup::Suspect(entry);
        }
        Lookup::Miss
    }

    /// Whether no invalidation that this process heard of is later than the entry.
    fn not_invalidated(&self, region: &RegionState, entry: &LocalEntry) -> bool {
        let later = |slot: &MarkerSlot| slot.invalidated() >= entry.taken;
        !later(&self.all)
            && !later(&region.marker)
            && !entry
                .tags
                .as_ref()
                .is_some_and(|tags| tags.iter().any(|tag| later(tag)))
    }

    /// Taken before a read; tells afterwards whether the key was invalidated meanwhile.
    pub(crate) fn ticket(
        &self,
        region: &RegionState,
        id: &str,
        tags: &[Arc<MarkerSlot>],
        now: Nanos,
    ) -> Ticket {
        let stripe = self.stripe_of(&region.key(&Name::of(id)));
        Ticket {
            stripe,
            generation: *self.stripe(stripe).lock(),
            region_epoch: region.epoch.load(Ordering::Acquire),
            taken: now,
            tags: tags
                .iter()
                .map(|slot| (Arc::clone(slot), slot.generation()))
                .collect(),
        }
    }

    /// Whether nothing has invalidated the key since the ticket was taken.
    pub(crate) fn is_current(&self, ticket: &Ticket, region: &RegionState) -> bool {
        *self.stripe(ticket.stripe).lock() == ticket.generation
            && region.epoch.load(Ordering::Acquire) == ticket.region_epoch
            && ticket
                .tags
                .iter()
                .all(|(slot, generation)| slot.generation() == *generation)
    }

    /// The connection's epoch: markers read in an older one are not known any more.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Keeps a value that was read, unless its key was invalidated since the ticket was taken.
    pub(crate) fn keep(&self, region: &RegionState, id: &str, ticket: &Ticket, keep: Keep) {
        let Some(store) = &self.store else { return };
        let generation = self.stripe(ticket.stripe).lock();
        if *generation != ticket.generation {
            return;
        }
        // An epoch that moved meanwhile leaves the entry suspect; 0 is never a region's epoch.
        let coherent = keep.verified && region.epoch.load(Ordering::Acquire) == ticket.region_epoch;
        let entry = LocalEntry {
            value: keep.value,
            created: keep.created,
            fresh_until: keep.fresh_until,
            refresh_at: keep.refresh_at,
            stale_until: keep.stale_until.max(keep.fresh_until),
            tags: (!keep.tags.is_empty()).then(|| keep.tags.into()),
            epoch: if coherent { ticket.region_epoch } else { 0 },
            taken: ticket.taken,
            weight: keep
                .bytes
                .saturating_add(ENTRY_OVERHEAD)
                .saturating_add(id.len() as u64),
        };
        let key = LocalKey {
            region: region.id,
            id: match Name::of(id) {
                Name::Number(number) => LocalId::Number(number),
                Name::Text(text) => LocalId::Text(text.into()),
            },
        };
        // Inside the lock: an invalidation comes before the check above or finds the entry.
        store.insert(key, entry);
    }

    /// Entries in process memory.
    pub(crate) fn len(&self) -> usize {
        self.store.as_ref().map_or(0, Cache::len)
    }

    /// Bytes counted for them.
    pub(crate) fn weight(&self) -> u64 {
        self.store.as_ref().map_or(0, Cache::weight)
    }

    fn stripe_of(&self, key: &LocalKeyRef<'_>) -> usize {
        let hash = self.hasher.hash_one(key);
        usize::try_from(hash % STRIPES as u64).unwrap_or(0)
    }

    /// An index is always the remainder of a division by the length.
    fn stripe(&self, index: usize) -> &Mutex<u64> {
        &self.stripes[index]
    }
}

#[cfg(test)]
mod tests;
