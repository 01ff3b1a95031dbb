//! Loads that failed a moment ago.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::clock::Nanos;

/// Failed loads that a stale value stands in for, remembered so that a failing origin is not asked
/// by every caller.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<Box<str>, Nanos>>);

/// Failures remembered; beyond that the oldest knowledge goes.
const MAX_FAILURES: usize = 10_000;

impl Failures {
    pub(crate) fn note(&self, id: &str, retry_at: Nanos, now: Nanos) {
        let mut failures = self.0.lock();
        if failures.len() >= MAX_FAILURES {
            failures.retain(|_, retry_at| *retry_at > now);
        }
        if failures.len() < MAX_FAILURES {
            failures.insert(id.into(), retry_at);
        }
    }

    pub(crate) fn is_pausing(&self, id: &str, now: Nanos) -> bool {
        self.0
            .lock()
            .get(id)
            .is_some_and(|retry_at| now < *retry_at)
    }

    pub(crate) fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }
}
