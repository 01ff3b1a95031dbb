//! How long the news of a change takes: the time from sending one of our own writes to hearing of it
//! on the connection for invalidations.

use std::hash::BuildHasher;
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::DefaultHashBuilder;

use crate::clock::Nanos;

/// Writes under way that are remembered; more at a time overwrite each other and are not measured.
const REMEMBERED: usize = 64;

/// The last writes of this process.
#[derive(Debug)]
pub(crate) struct Lag {
    hasher: DefaultHashBuilder,
    sent: Mutex<[(u64, Nanos); REMEMBERED]>,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            sent: Mutex::new([(0, 0); REMEMBERED]),
        }
    }
}

impl Lag {
    pub(crate) fn sent(&self, region: &str, id: &str, now: Nanos) {
        let hash = self.hasher.hash_one((region, id));
        if let Some(slot) = self.sent.lock().get_mut(index(hash)) {
            *slot = (hash, now);
        }
    }

    /// The time since this key was written here, when it was and that has not been heard of yet.
    pub(crate) fn heard(&self, region: &str, id: &str, now: Nanos) -> Option<Duration> {
        let hash = self.hasher.hash_one((region, id));
        let mut sent = self.sent.lock();
        let slot = sent.get_mut(index(hash))?;
        if slot.0 != hash || slot.1 == 0 {
            return None;
        }
        let at = std::mem::take(&mut slot.1);
        Some(Duration::from_nanos(now.saturating_sub(at)))
    }
}

fn index(hash: u64) -> usize {
    usize::try_from(hash % REMEMBERED as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_news_of_our_own_write_is_measured() {
        let lag = Lag::default();
        assert_eq!(lag.heard("report", "1", 5), None);
        lag.sent("report", "1", 5);
        assert_eq!(lag.heard("report", "2", 8), None);
        assert_eq!(lag.heard("report", "1", 8), Some(Duration::from_nanos(3)));
        assert_eq!(lag.heard("report", "1", 9), None);
    }
}
