//! What this process knows of a marker on the server. A marker holds the server's time of the last
//! invalidation of a tag, a region or of everything; an entry lives while it was created after every
//! marker that speaks for it. Without I/O.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::clock::Nanos;
use crate::envelope::Micros;

/// One marker. Entries in process memory hold their markers, so a hit compares without a lookup.
#[derive(Debug)]
pub(crate) struct MarkerSlot {
    /// Time of the last invalidation; [`Micros::MAX`] while it is not known.
    value: AtomicU64,
    /// The epoch in which the value was read. Stored after `value`, read before it.
    known: AtomicU64,
    /// When this process last heard of, or asked for, an invalidation, by our clock.
    invalidated: AtomicU64,
    /// Moves with every invalidation.
    generation: Mutex<u64>,
}

impl Default for MarkerSlot {
    fn default() -> Self {
        Self {
            value: AtomicU64::new(Micros::MAX.0),
            known: AtomicU64::new(0),
            invalidated: AtomicU64::new(0),
            generation: Mutex::new(0),
        }
    }
}

impl MarkerSlot {
    /// The value, [`Micros::MAX`] when not known: nothing is newer than that.
    pub(crate) fn value(&self) -> Micros {
        Micros(self.value.load(Ordering::Acquire))
    }

    /// The value, if it was read in this epoch and nothing has changed it since.
    pub(crate) fn known(&self, epoch: u64) -> Option<Micros> {
        if self.known.load(Ordering::Acquire) != epoch {
            return None;
        }
        Some(self.value()).filter(|value| *value != Micros::MAX)
    }

    /// Our time of the last invalidation heard of.
    pub(crate) fn invalidated(&self) -> Nanos {
        self.invalidated.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u64 {
        *self.generation.lock()
    }

    /// The marker has changed, or is about to.
    pub(crate) fn invalidate(&self, now: Nanos) {
        let mut generation = self.generation.lock();
        *generation += 1;
        self.value.store(Micros::MAX.0, Ordering::Release);
        self.invalidated.fetch_max(now, Ordering::AcqRel);
    }

    /// Takes over a value that was read from the server after `generation` and `epoch` were taken;
    /// false when an invalidation came in between.
    pub(crate) fn learn(&self, generation: u64, epoch: u64, value: Micros) -> bool {
        let current = self.generation.lock();
        if *current != generation {
            return false;
        }
        self.value.store(value.0, Ordering::Release);
        self.known.store(epoch, Ordering::Release);
        true
    }
}

/// The markers of tags that are in use: an entry in memory or a call in flight holds each.
#[derive(Debug, Default)]
pub(crate) struct TagTable {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_tag: HashMap<Box<str>, Weak<MarkerSlot>>,
    /// Size at which dead slots are swept out next: amortised, one sweep per doubling.
    sweep_at: usize,
}

impl TagTable {
    /// The marker of a tag, made when nothing holds it yet.
    pub(crate) fn slot(&self, tag: &str) -> Arc<MarkerSlot> {
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.by_tag.get(tag).and_then(Weak::upgrade) {
            return slot;
        }
        if slots.by_tag.len() >= slots.sweep_at {
            slots.by_tag.retain(|_, slot| slot.strong_count() > 0);
            slots.sweep_at = (slots.by_tag.len() * 2).max(1_024);
        }
        let slot = Arc::new(MarkerSlot::default());
        slots.by_tag.insert(tag.into(), Arc::downgrade(&slot));
        slot
    }

    /// The marker of a tag, if anything holds it.
    pub(crate) fn find(&self, tag: &str) -> Option<Arc<MarkerSlot>> {
        self.slots.lock().by_tag.get(tag).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_read_before_an_invalidation_is_not_taken_over() {
        let slot = MarkerSlot::default();
        let before = slot.generation();
        slot.invalidate(7);
        assert!(!slot.learn(before, 1, Micros(10)));
        assert_eq!(slot.value(), Micros::MAX);
        assert_eq!(slot.invalidated(), 7);
        assert!(slot.learn(slot.generation(), 1, Micros(20)));
        assert_eq!(slot.known(1), Some(Micros(20)));
    }

    #[test]
    fn a_value_of_another_epoch_is_not_known() {
        let slot = MarkerSlot::default();
        assert_eq!(slot.known(0), None);
        slot.learn(0, 3, Micros(20));
        assert_eq!(slot.known(4), None);
        assert_eq!(slot.known(3), Some(Micros(20)));
    }

    #[test]
    fn tags_nobody_holds_do_not_pile_up() {
        let table = TagTable::default();
        let held = table.slot("held");
        for n in 0..10_000 {
            table.slot(&n.to_string());
        }
        assert!(table.slots.lock().by_tag.len() <= 1_100);
        assert!(Arc::ptr_eq(&held, &table.slot("held")));
        assert!(table.find("17").is_none());
    }
}
