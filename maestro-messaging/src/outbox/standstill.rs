//! Events that one of their queues does not take. Pure.
//!
//! A publish that is refused, or not confirmed, may have reached other queues, and every retry reaches
//! them again. While a queue is full or without a process, all rows of its event types fail; were each
//! retried for itself, the healthy queues of the same events would get all of them again every few
//! seconds. So a type whose rows fail is tried by one row after a growing pause, and by twice as many
//! with every success. A row that was never sent is not held: the healthy queues get it at once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::chains::Held;

/// What failed and may be stored, by event type.
#[derive(Debug)]
pub(super) struct Standstills<T> {
    by_type: HashMap<String, Standstill<T>>,
    /// A retry that is not answered in this time was forgotten: its bucket went to another relay.
    patience: Duration,
}

#[derive(Debug)]
struct Standstill<T> {
    held: VecDeque<Waiting<T>>,
    backoff: Backoff,
    /// When rows are tried next.
    next: Instant,
    /// How many at a time.
    at_a_time: usize,
    /// Rows being tried.
    trying: Vec<i64>,
    /// Whether one of them has failed.
    failed: bool,
}

#[derive(Debug)]
struct Waiting<T> {
    id: i64,
    bucket: i16,
    held: Held<T>,
}

impl<T> Standstills<T> {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            by_type: HashMap::new(),
            patience,
        }
    }

    /// Whether a row is being tried, so that its end is the end of a try.
    pub(super) fn is_trying(&self, event_type: &str, id: i64) -> bool {
        let of_type = self.by_type.get(event_type);
        of_type.is_some_and(|standstill| standstill.trying.contains(&id))
    }

    /// A row was refused or not confirmed.
    pub(super) fn failed(
        &mut self,
        event_type: &str,
        id: i64,
        bucket: i16,
        held: Held<T>,
        now: Instant,
    ) {
        let standstill = self
            .by_type
            .entry(event_type.to_owned())
            .or_insert_with(|| {
                let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                let next = now + backoff.next();
                Standstill {
                    held: VecDeque::new(),
                    backoff,
                    next,
                    at_a_time: 1,
                    trying: Vec::new(),
                    failed: false,
                }
            });
        standstill.held.push_back(Waiting { id, bucket, held });
        if standstill.trying.contains(&id) {
            standstill.failed = true;
            standstill.answered(id, now);
        }
    }

    /// A row was confirmed.
    pub(super) fn sent(&mut self, event_type: &str, id: i64, now: Instant) {
        let Some(standstill) = self.by_type.get_mut(event_type) else {
            return;
        };
        if standstill.trying.contains(&id) {
            standstill.answered(id, now);
        } else if standstill.trying.is_empty() {
            // A new one passed: no need to wait any longer for a try.
            standstill.next = standstill.next.min(now);
        }
        if standstill.is_over() {
            self.by_type.remove(event_type);
        }
    }

    /// When there is something to try.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_type.values().filter_map(Standstill::due).min()
    }

    /// Takes what is to be tried now, and what is another relay's business.
    pub(super) fn due(&mut self, now: Instant, ours: impl Fn(i16) -> bool) -> Vec<Held<T>> {
        let mut due = Vec::new();
        let patience = self.patience;
        self.by_type.retain(|_, standstill| {
            if standstill.due().is_none_or(|due| due > now) {
                return true;
            }
            if !standstill.trying.is_empty() {
                standstill.failed = true;
                standstill.ended(now);
            }
            let (kept, gone) = std::mem::take(&mut standstill.held)
                .into_iter()
                .partition(|waiting: &Waiting<T>| ours(waiting.bucket));
            standstill.held = kept;
            due.extend(gone.into_iter().map(|waiting: Waiting<T>| waiting.held));
            let count = standstill.at_a_time.min(standstill.held.len());
            for waiting in standstill.held.drain(..count) {
                standstill.trying.push(waiting.id);
                due.push(waiting.held);
            }
            standstill.failed = false;
            standstill.next = now + patience;
            !standstill.is_over()
        });
        due
    }
}

impl<T> Standstill<T> {
    fn due(&self) -> Option<Instant> {
        (!self.is_over()).then_some(self.next)
    }

    fn is_over(&self) -> bool {
        self.held.is_empty() && self.trying.is_empty()
    }

    fn answered(&mut self, id: i64, now: Instant) {
        self.trying.retain(|trying| *trying != id);
        if self.trying.is_empty() {
            self.ended(now);
        }
    }

    /// All that were tried are answered, or will not be.
    fn ended(&mut self, now: Instant) {
        self.trying.clear();
        if self.failed {
            self.at_a_time = 1;
            self.next = now + self.backoff.next();
        } else {
            self.at_a_time = self.at_a_time.saturating_mul(2);
            self.backoff.reset();
            self.next = now;
        }
    }
}

/// A queue that was full for a moment, or a connection that was lost.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// So long goes the type's oldest row on waiting after its queue was mended, if no new one passes.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Rows that fail until `mended`, each answered at once; how often each was sent, the first time
    /// included.
    fn sends(rows: i64, mended: Duration) -> HashMap<i64, u32> {
        let start = Instant::now();
        let mut standstills = Standstills::<()>::new(PATIENCE);
        let mut sends: HashMap<i64, u32> = (0..rows).map(|id| (id, 1)).collect();
        for id in 0..rows {
            standstills.failed("a", id, 0, Held::Key(id.to_string()), start);
        }
        while let Some(now) = standstills.next() {
            for held in standstills.due(now, |_| true) {
                let Held::Key(key) = held else { continue };
                let id: i64 = key.parse().unwrap();
                *sends.entry(id).or_default() += 1;
                if now < start + mended {
                    standstills.failed("a", id, 0, Held::Key(key), now);
                } else {
                    standstills.sent("a", id, now);
                }
            }
        }
        sends
    }

    #[test]
    fn a_standstill_of_an_hour_costs_four_tries_a_minute_and_every_row_one_retry() {
        let sends = sends(1_000, Duration::from_hours(1));
        assert!(sends.values().all(|count| *count >= 2), "all were sent");
        let retries: u32 = sends.values().sum::<u32>() - 1_000;
        // A quarter of a minute at least between two, and the first few faster.
        assert!(retries <= 1_000 + 240 + 10, "{retries}");
    }

    #[test]
    fn what_passes_again_is_sent_in_growing_numbers_and_one_failure_starts_over() {
        let start = Instant::now();
        let mut standstills = Standstills::<()>::new(PATIENCE);
        for id in 0..20 {
            standstills.failed("a", id, 0, Held::Key(id.to_string()), start);
        }
        let mut sizes = Vec::new();
        let mut id = 0;
        for refused in [false, false, false, true, false] {
            let now = standstills.next().unwrap();
            let due = standstills.due(now, |_| true);
            sizes.push(due.len());
            for (at, held) in due.into_iter().enumerate() {
                if refused && at == 3 {
                    standstills.failed("a", id, 0, held, now);
                } else {
                    standstills.sent("a", id, now);
                }
                id += 1;
            }
        }
        assert_eq!(sizes, [1, 2, 4, 8, 1]);
    }

    #[test]
    fn a_new_row_that_passes_ends_the_pause() {
        let start = Instant::now();
        let mut standstills = Standstills::<()>::new(PATIENCE);
        standstills.failed("a", 1, 0, Held::Key("1".into()), start);
        assert!(standstills.next().unwrap() > start);
        standstills.sent("b", 2, start);
        assert!(
            standstills.next().unwrap() > start,
            "another type says nothing"
        );
        standstills.sent("a", 3, start);
        assert_eq!(standstills.next(), Some(start));
    }

    #[test]
    fn a_try_that_is_never_answered_and_rows_of_lost_buckets_hold_nothing_up() {
        let start = Instant::now();
        let mut standstills = Standstills::<()>::new(PATIENCE);
        for id in 0..4 {
            let bucket = i16::from(id >= 2);
            standstills.failed("a", id, bucket, Held::Key(id.to_string()), start);
        }
        let first = standstills.next().unwrap();
        assert_eq!(standstills.due(first, |_| true).len(), 1);
        // Nobody answers it; meanwhile bucket 1 went to another relay.
        let second = standstills.next().unwrap();
        assert_eq!(second, first + PATIENCE);
        let due: Vec<_> = standstills.due(second, |bucket| bucket == 0);
        assert_eq!(due.len(), 3, "two are given up, one is tried: {due:?}");
        standstills.sent("a", 1, second);
        assert_eq!(standstills.next(), None);
    }

    proptest! {
        #[test]
        fn every_row_comes_through_in_the_end(rows in 1_i64..50, seconds in 0_u64..600) {
            let sends = sends(rows, Duration::from_secs(seconds));
            prop_assert!(sends.values().all(|count| *count >= 2));
        }
    }
}
