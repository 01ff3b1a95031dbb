//! Who holds which connection since when, for the report of an exhausted pool.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::statement::Statement;

/// What a connection is being used for.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// One statement on the pool.
    Statement(Arc<Statement>),
    /// A transaction, begun there.
    Transaction(&'static Location<'static>),
    /// This crate itself.
    Internal(&'static str),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Statement(statement) => write!(f, "statement `{}`", statement.summary),
            Self::Transaction(location) => write!(f, "transaction begun at {location}"),
            Self::Internal(what) => f.write_str(what),
        }
    }
}

/// All connections of a pool.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    slots: Mutex<Vec<Weak<Slot>>>,
    active: Arc<AtomicUsize>,
}

/// One connection's entry; lives as long as the connection.
#[derive(Debug)]
pub(crate) struct Slot {
    held: Mutex<Option<(Instant, Holder)>>,
    active: Arc<AtomicUsize>,
}

impl Roster {
    pub(crate) fn slot(&self) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            held: Mutex::new(None),
            active: Arc::clone(&self.active),
        });
        let mut slots = self.slots.lock();
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    /// The holder that has had its connection for the longest time.
    pub(crate) fn longest(&self) -> Option<(Duration, Holder)> {
        let slots: Vec<_> = self.slots.lock().iter().filter_map(Weak::upgrade).collect();
        slots
            .iter()
            .filter_map(|slot| slot.held.lock().clone())
            .min_by_key(|(since, _)| *since)
            .map(|(since, holder)| (since.elapsed(), holder))
    }
}

impl Slot {
    pub(crate) fn take(&self, holder: Holder) {
        let before = self.held.lock().replace((Instant::now(), holder));
        if before.is_none() {
            self.active.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How long it was held.
    pub(crate) fn release(&self) -> Option<Duration> {
        let (since, _) = self.held.lock().take()?;
        self.active.fetch_sub(1, Ordering::AcqRel);
        Some(since.elapsed())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_holder_is_the_one_that_came_first() {
        let roster = Roster::default();
        let (first, second) = (roster.slot(), roster.slot());
        assert!(roster.longest().is_none());
        first.take(Holder::Internal("first"));
        second.take(Holder::Internal("second"));
        assert_eq!(roster.active(), 2);
        assert_eq!(roster.longest().unwrap().1.to_string(), "first");
        first.release();
        assert_eq!(roster.longest().unwrap().1.to_string(), "second");
        assert_eq!(roster.active(), 1);
    }

    #[test]
    fn a_connection_that_is_closed_while_held_is_no_longer_counted() {
        let roster = Roster::default();
        let slot = roster.slot();
        slot.take(Holder::Internal("gone"));
        drop(slot);
        assert_eq!(roster.active(), 0);
        assert!(roster.longest().is_none());
    }
}
