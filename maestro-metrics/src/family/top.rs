//! Which values of a label are the busiest: those keep a series of their own.
//!
//! Lookups of a value that has a series are counted exactly, lookups of all others in a sketch of
//! fixed size, so that a hundred thousand tenants cost no more than a few. Both age with the number
//! of lookups and not with time: what was busy long ago gives way, and tests need no clock. A value
//! takes the place of the least busy one when it is clearly busier, and rarely: every change of
//! places is a new series in Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::OVERFLOW;

/// The rules of one label.
pub(super) struct Contest {
    /// Which label.
    pub(super) label: usize,
    keep: usize,
    sketch: Sketch,
    /// Estimates up to this one are not worth a look at the least busy value.
    bar: AtomicU32,
    /// Until when nobody changes places, in milliseconds since `born`.
    opens: AtomicU64,
    born: Instant,
}

/// Who has series; under the family's lock.
#[derive(Default)]
pub(super) struct Members {
    kept: HashMap<Box<str>, Arc<Score>>,
    /// Lost their place, and are shown by one more scrape, so that no count is lost between two.
    leaving: HashMap<Box<str>, Arc<Score>>,
    /// When the places changed so far would have been spent evenly, in milliseconds.
    spent: u64,
}

impl Members {
    pub(super) fn leaving(&self) -> Vec<Box<str>> {
        self.leaving.keys().cloned().collect()
    }
}

/// How often a value with a series was looked up, lately.
pub(super) struct Score {
    lookups: AtomicU32,
    /// More would only be a longer memory, and a line that threads fight over.
    enough: u32,
}

impl Score {
    pub(super) fn raise(&self) {
        if self.lookups.load(Ordering::Relaxed) < self.enough {
            self.lookups.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One change of places in this time on average. Each makes a series that Prometheus keeps in memory
/// for two hours.
const EVERY: Duration = Duration::from_secs(10);
/// A value must be this many times as busy as the one whose place it takes, or two of the same kind
/// would take turns.
const CLEARLY: u32 = 2;
/// And be seen this often: a sketch that has seen little knows nothing.
const AT_LEAST: u32 = 8;

impl Contest {
    pub(super) fn new(label: usize, keep: usize) -> Self {
        Self {
            label,
            keep,
            sketch: Sketch::new(8 * keep),
            bar: AtomicU32::new(AT_LEAST),
            opens: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Whether a value that was looked up has a place or may get one. Counts the lookup.
    pub(super) fn may_enter(&self, members: &Members, value: &str, hash: u64) -> bool {
        if value == OVERFLOW || members.kept.len() < self.keep || members.kept.contains_key(value) {
            return true;
        }
        let (estimate, aged) = self.sketch.note(hash);
        if aged {
            for score in members.kept.values() {
                let halved = score.lookups.load(Ordering::Relaxed) / 2;
                score.lookups.store(halved, Ordering::Relaxed);
            }
            let bar = self.bar.load(Ordering::Relaxed) / 2;
            self.bar.store(bar.max(AT_LEAST), Ordering::Relaxed);
        }
        estimate > self.bar.load(Ordering::Relaxed)
            && self.now() >= self.opens.load(Ordering::Relaxed)
    }

    /// The score of a value that has a place or gets one now.
    pub(super) fn enter(
        &self,
        members: &mut Members,
        value: &str,
        hash: u64,
    ) -> Option<Arc<Score>> {
        if let Some(score) = members.kept.get(value) {
            score.raise();
            return Some(Arc::clone(score));
        }
        let estimate = if members.kept.len() < self.keep {
            1
        } else {
            let estimate = self.sketch.estimate(hash);
            self.replace(members, estimate)?;
            estimate
        };
        let score = members.leaving.remove(value).unwrap_or_else(|| {
            Arc::new(Score {
                lookups: AtomicU32::new(0),
                enough: self.sketch.memory,
            })
        });
        score.lookups.store(estimate, Ordering::Relaxed);
        members.kept.insert(value.into(), Arc::clone(&score));
        Some(score)
    }

    /// Makes room for a value of this estimate, if it is clearly busier than the least busy one.
    fn replace(&self, members: &mut Members, estimate: u32) -> Option<()> {
        let (least, score) = members
            .kept
            .iter()
            .map(|(value, score)| (value, score.lookups.load(Ordering::Relaxed)))
            .min_by_key(|(_, score)| *score)?;
        let bar = CLEARLY * (score + self.sketch.noise()) + AT_LEAST;
        self.bar.store(bar, Ordering::Relaxed);
        if estimate <= bar {
            return None;
        }
        let now = self.now();
        if now < self.opens.load(Ordering::Relaxed) {
            return None;
        }
        if members.leaving.len() >= self.keep {
            // Nobody scrapes.
            self.opens.store(u64::MAX, Ordering::Relaxed);
            return None;
        }
        let least = least.clone();
        if let Some(score) = members.kept.remove(&least) {
            members.leaving.insert(least, score);
        }
        let every = millis(EVERY);
        let at_once = self.keep.div_ceil(2) as u64;
        members.spent = members.spent.max(now) + every;
        self.opens.store(
            members.spent.saturating_sub(at_once * every),
            Ordering::Relaxed,
        );
        Some(())
    }

    /// After a scrape: which of the values it has shown for the last time have no place still.
    pub(super) fn dismiss(&self, members: &mut Members, shown: &[Box<str>]) -> Vec<Box<str>> {
        let gone = shown
            .iter()
            .filter(|value| members.leaving.remove(*value).is_some());
        let gone = gone.cloned().collect();
        let at_once = self.keep.div_ceil(2) as u64;
        self.opens.store(
            members.spent.saturating_sub(at_once * millis(EVERY)),
            Ordering::Relaxed,
        );
        gone
    }

    fn now(&self) -> u64 {
        millis(self.born.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Counts lookups by hash in a fixed number of cells: a count-min sketch with conservative updates.
/// An estimate is never too low, and too high by [`noise`](Self::noise) at most as a rule. Threads
/// that race lose a count now and then, which does not matter.
struct Sketch {
    cells: Box<[AtomicU32]>,
    width: usize,
    seen: AtomicU32,
    /// After this many lookups, everything is halved.
    memory: u32,
}

const ROWS: usize = 4;

impl Sketch {
    fn new(width: usize) -> Self {
        // At most 128 KiB.
        let width = width.next_power_of_two().clamp(256, 8_192);
        Self {
            cells: (0..ROWS * width).map(|_| AtomicU32::new(0)).collect(),
            width,
            seen: AtomicU32::new(0),
            memory: u32::try_from(16 * width).unwrap_or(u32::MAX),
        }
    }

    /// The estimate for this value, this lookup included, and whether everything was halved.
    fn note(&self, hash: u64) -> (u32, bool) {
        let estimate = self.estimate(hash) + 1;
        for cell in self.cells_of(hash) {
            cell.fetch_max(estimate, Ordering::Relaxed);
        }
        let aged = self.seen.fetch_add(1, Ordering::Relaxed) + 1 == self.memory;
        if aged {
            for cell in &self.cells {
                cell.store(cell.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
            self.seen.store(self.memory / 2, Ordering::Relaxed);
        }
        (estimate, aged)
    }

    fn estimate(&self, hash: u64) -> u32 {
        let counts = self.cells_of(hash);
        let counts = counts.map(|cell| cell.load(Ordering::Relaxed));
        counts.min().unwrap_or(0)
    }

    /// What a value that was never looked up may have.
    fn noise(&self) -> u32 {
        self.seen.load(Ordering::Relaxed) / u32::try_from(self.width).unwrap_or(u32::MAX)
    }

    fn cells_of(&self, hash: u64) -> impl Iterator<Item = &AtomicU32> {
        // An odd step visits every column.
        let (first, step) = (hash & 0xFFFF, (hash >> 32) & 0xFFFF | 1);
        (0..ROWS).map(move |row| {
            let column = usize::try_from(first + row as u64 * step).unwrap_or(0) & (self.width - 1);
            &self.cells[row * self.width + column]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash, Hasher};

    use super::*;

    /// The same in every run.
    fn hash(value: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn an_estimate_is_never_too_low_and_rarely_much_too_high() {
        let sketch = Sketch::new(256);
        let values: Vec<String> = (0..1_000).map(|i| format!("tenant-{i}")).collect();
        let hashes: Vec<u64> = values.iter().map(|value| hash(value)).collect();
        for hash in &hashes {
            sketch.note(*hash);
        }
        for _ in 0..500 {
            sketch.note(hashes[7]);
        }
        assert!(sketch.estimate(hashes[7]) >= 501);
        assert!(hashes.iter().all(|hash| sketch.estimate(*hash) >= 1));
        let wrong = hashes
            .iter()
            .filter(|hash| sketch.estimate(**hash) > 1 + 2 * sketch.noise())
            .count();
        assert!(wrong < 50, "{wrong} of 1,000 are far too high");
    }

    #[test]
    fn what_was_busy_long_ago_is_forgotten() {
        let sketch = Sketch::new(256);
        let busy = hash("busy");
        for _ in 0..1_000 {
            sketch.note(busy);
        }
        for i in 0..8 * u64::from(sketch.memory) {
            sketch.note(hash(&i.to_string()));
        }
        let estimate = sketch.estimate(busy);
        assert!(estimate < 100, "{estimate}");
    }
}
