//! Invalidations that the server has not acknowledged. They hold in this process at once, and are
//! sent when the server is back; until then what Redis says about them is not believed. Without I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use maestro_metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::key::Marker;

/// Entries noted one by one. Beyond that their region is noted as a whole: memory stays bounded,
/// and more is invalidated than was asked for, never less.
const MAX_ENTRIES: usize = 10_000;
/// Tags noted one by one; beyond that everything is noted.
const MAX_TAGS: usize = 10_000;

/// What is still to be said to the server.
#[derive(Debug)]
pub(crate) struct Journal {
    pending: Mutex<Pending>,
    /// Read before the lock: nearly always 0.
    size: AtomicUsize,
    /// Counts what was acknowledged: a read that crossed a delivery may hold what it took away.
    deliveries: AtomicU64,
    pub(crate) added: Notify,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct Pending {
    entries: HashMap<Arc<str>, HashMap<Box<str>, u64>>,
    regions: HashMap<Arc<str>, u64>,
    tags: HashMap<Box<str>, u64>,
    all: Option<u64>,
    entry_count: usize,
    /// Numbers additions, so that one that came while a batch was sent is not taken for sent.
    serial: u64,
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Deferred {
    Entry { region: Arc<str>, id: Box<str> },
    Region(Arc<str>),
    Tag(Box<str>),
    All,
}

impl Deferred {
    /// The marker to write; `None` for an entry.
    pub(crate) fn marker(&self) -> Option<Marker<'_>> {
        match self {
            Self::Entry { .. } => None,
            Self::Region(region) => Some(Marker::Region(region)),
            Self::Tag(tag) => Some(Marker::Tag(tag)),
            Self::All => Some(Marker::All),
        }
    }
}

impl Journal {
    pub(crate) fn new(gauge: Gauge) -> Self {
        Self {
            pending: Mutex::default(),
            size: AtomicUsize::new(0),
            deliveries: AtomicU64::new(0),
            added: Notify::new(),
            gauge,
        }
    }

    fn measure(&self, pending: &Pending) {
        let size = pending.len();
        self.size.store(size, Ordering::Release);
        self.gauge.set(size as f64);
    }

    /// Notes an invalidation that failed.
    pub(crate) fn add(&self, what: Deferred) {
        let mut pending = self.pending.lock();
        pending.serial += 1;
        let serial = pending.serial;
        match what {
            Deferred::Entry { region, id } => pending.add_entry(region, id, serial),
            Deferred::Region(region) => {
                pending.regions.insert(region, serial);
            }
            Deferred::Tag(tag) => {
                if pending.tags.len() >= MAX_TAGS && !pending.tags.contains_key(&tag) {
                    pending.tags.clear();
                    pending.all = Some(serial);
                } else {
                    pending.tags.insert(tag, serial);
                }
            }
            Deferred::All => pending.all = Some(serial),
        }
        self.measure(&pending);
        drop(pending);
        self.added.notify_one();
    }

    /// Taken before a read is sent; [`Journal::covers`] wants it afterwards.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries.load(Ordering::Acquire)
    }

    pub(crate) fn len(&self) -> usize {
        self.size.load(Ordering::Acquire)
    }

    /// Whether what the server said about this entry is known here to be invalidated. What it said
    /// before something was delivered is taken to be.
    pub(crate) fn covers(&self, region: &str, id: &str, tags: &[String], deliveries: u64) -> bool {
        if self.len() == 0 {
            return self.deliveries() != deliveries;
        }
        let pending = self.pending.lock();
        self.deliveries() != deliveries
            || pending.all.is_some()
            || pending.regions.contains_key(region)
            || pending
                .entries
                .get(region)
                .is_some_and(|ids| ids.contains_key(id))
            || tags
                .iter()
                .any(|tag| pending.tags.contains_key(tag.as_str()))
    }

    /// Up to `limit` invalidations to send, each with the number to settle it by.
    pub(crate) fn batch(&self, limit: usize) -> Vec<(Deferred, u64)> {
        let pending = self.pending.lock();
        let all = pending.all.map(|serial| (Deferred::All, serial));
        let regions = pending
            .regions
            .iter()
            .map(|(region, serial)| (Deferred::Region(Arc::clone(region)), *serial));
        let tags = pending
            .tags
            .iter()
            .map(|(tag, serial)| (Deferred::Tag(tag.clone()), *serial));
        let entries = pending.entries.iter().flat_map(|(region, ids)| {
            ids.iter().map(|(id, serial)| {
                let region = Arc::clone(region);
                let id = id.clone();
                (Deferred::Entry { region, id }, *serial)
            })
        });
        all.into_iter()
            .chain(regions)
            .chain(tags)
            .chain(entries)
            .take(limit)
            .collect()
    }

    /// Forgets what was acknowledged, except what was added again since.
    pub(crate) fn settle(&self, sent: &[(Deferred, u64)]) {
        let mut pending = self.pending.lock();
        for (what, serial) in sent {
            pending.settle(what, *serial);
        }
        // Before anybody can see that it is no longer noted.
        self.deliveries.fetch_add(1, Ordering::AcqRel);
        self.measure(&pending);
    }

    /// Whether a region is noted as a whole.
    #[cfg(test)]
    fn has_region(&self, region: &str) -> bool {
        self.pending.lock().regions.contains_key(region)
    }
}

impl Pending {
    fn add_entry(&mut self, region: Arc<str>, id: Box<str>, serial: u64) {
        if let Some(current) = self.regions.get_mut(&region) {
            // The region's marker is written later than now, so it covers this entry too; its
            // number moves, because the marker may be on its way already.
            *current = serial;
            return;
        }
        let full = self.entry_count >= MAX_ENTRIES;
        let ids = self.entries.entry(Arc::clone(&region)).or_default();
        if full && !ids.contains_key(&id) {
            self.entry_count -= ids.len();
            self.entries.remove(&region);
            self.regions.insert(region, serial);
            return;
        }
        if ids.insert(id, serial).is_none() {
            self.entry_count += 1;
        }
    }

    fn settle(&mut self, what: &Deferred, serial: u64) {
        let same = |current: &u64| *current == serial;
        match what {
            Deferred::All => {
                self.all = self.all.filter(|current| !same(current));
            }
            Deferred::Region(region) => {
                if self.regions.get(region).is_some_and(same) {
                    self.regions.remove(region);
                }
            }
            Deferred::Tag(tag) => {
                if self.tags.get(tag).is_some_and(same) {
                    self.tags.remove(tag);
                }
            }
            Deferred::Entry { region, id } => {
                let Some(ids) = self.entries.get_mut(region) else {
                    return;
                };
                if ids.get(id).is_some_and(same) {
                    ids.remove(id);
                    self.entry_count -= 1;
                }
                if ids.is_empty() {
                    self.entries.remove(region);
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.entry_count + self.regions.len() + self.tags.len() + usize::from(self.all.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAUGE: maestro_metrics::Metric<Gauge> = maestro_metrics::Metric::gauge("size", "Size.");

    fn journal() -> Journal {
        Journal::new(maestro_metrics::Registry::detached().metric(&GAUGE))
    }

    fn entry(region: &str, id: &str) -> Deferred {
        Deferred::Entry {
            region: region.into(),
            id: id.into(),
        }
    }

    /// Whether what is read now is covered.
    fn covers(journal: &Journal, region: &str, id: &str, tags: &[String]) -> bool {
        journal.covers(region, id, tags, journal.deliveries())
    }

    #[test]
    fn what_was_read_before_a_delivery_and_is_looked_at_after_it_is_not_believed() {
        let journal = journal();
        journal.add(entry("report", "1"));
        let before = journal.deliveries();
        journal.settle(&journal.batch(10));
        assert!(journal.covers("report", "1", &[], before));
        journal.add(entry("report", "2"));
        assert!(journal.covers("report", "1", &[], before));
        assert!(!covers(&journal, "report", "1", &[]));
    }

    #[test]
    fn what_is_noted_is_covered_until_it_is_settled() {
        let journal = journal();
        assert!(!covers(&journal, "report", "1", &[]));
        journal.add(entry("report", "1"));
        journal.add(Deferred::Tag("p".into()));
        assert!(covers(&journal, "report", "1", &[]));
        assert!(!covers(&journal, "report", "2", &[]));
        assert!(covers(&journal, "other", "2", &["p".to_owned()]));
        let batch = journal.batch(10);
        assert_eq!(batch.len(), 2);
        journal.settle(&batch);
        assert_eq!(journal.len(), 0);
        assert!(!covers(&journal, "report", "1", &["p".to_owned()]));
    }

    #[test]
    fn what_was_noted_again_while_it_was_sent_stays() {
        let journal = journal();
        journal.add(entry("report", "1"));
        journal.add(Deferred::All);
        let batch = journal.batch(10);
        journal.add(entry("report", "1"));
        journal.settle(&batch);
        assert_eq!(journal.len(), 1);
        assert!(covers(&journal, "report", "1", &[]));
    }

    #[test]
    fn beyond_its_bound_it_invalidates_more_not_less() {
        let journal = journal();
        for n in 0..MAX_ENTRIES + 5 {
            journal.add(entry("report", &n.to_string()));
        }
        assert!(journal.len() < 10);
        assert!(journal.has_region("report"));
        assert!(covers(&journal, "report", "17", &[]));
        for n in 0..MAX_TAGS + 5 {
            journal.add(Deferred::Tag(n.to_string().into()));
        }
        assert!(covers(&journal, "unheard", "of", &[]));
    }
}
