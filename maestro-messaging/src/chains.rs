//! Work in order of its keys: one in flight for each key, any number of keys at a time. Pure.
//!
//! The outbox relays this way (a broker may refuse the first of two messages and store the second),
//! and an ordered subscription handles this way.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::Instant;

/// Rows (or deliveries) by key, each known by an id.
#[derive(Debug)]
pub(crate) struct Chains<T> {
    by_key: HashMap<String, Chain<T>>,
    /// Chains whose first row can be published, in the order in which they became so.
    ready: VecDeque<String>,
    /// Rows without a key: each for itself.
    single: VecDeque<Item<T>>,
    known: HashSet<i64>,
    /// Rows held after a failure, and those behind them.
    blocked: usize,
}

#[derive(Debug)]
struct Chain<T> {
    rows: VecDeque<Item<T>>,
    busy: bool,
    held: bool,
}

/// A row on its way.
#[derive(Debug)]
pub(crate) struct Item<T> {
    pub(crate) id: i64,
    pub(crate) bucket: i16,
    pub(crate) key: Option<String>,
    pub(crate) row: T,
    pub(crate) failures: u32,
}

impl<T> Chains<T> {
    pub(crate) fn new() -> Self {
        Self {
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            single: VecDeque::new(),
            known: HashSet::new(),
            blocked: 0,
        }
    }

    /// Rows in memory, those in flight and those to be deleted included.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Of those, the ones that wait for a [`retry`](Self::retry).
    pub(crate) fn blocked(&self) -> usize {
        self.blocked
    }

    pub(crate) fn known(&self) -> Vec<i64> {
        self.known.iter().copied().collect()
    }

    /// Whether [`next`](Self::next) has anything, if everything is allowed.
    pub(crate) fn is_ready(&self) -> bool {
        !self.single.is_empty() || !self.ready.is_empty()
    }

    /// Takes everything that was not begun, in the order of ids.
    pub(crate) fn take_waiting(&mut self) -> Vec<Item<T>> {
        let chains = std::mem::take(&mut self.by_key);
        let mut waiting: Vec<_> = std::mem::take(&mut self.single).into();
        waiting.extend(chains.into_values().flat_map(|chain| chain.rows));
        waiting.sort_by_key(|item| item.id);
        self.ready.clear();
        self.known.clear();
        self.blocked = 0;
        waiting
    }

    /// Adds a row; rows come in the order of their ids.
    pub(crate) fn add(&mut self, id: i64, bucket: i16, key: Option<String>, row: T) {
        if !self.known.insert(id) {
            return;
        }
        let item = Item {
            id,
            bucket,
            key,
            row,
            failures: 0,
        };
        let Some(key) = item.key.clone() else {
            self.single.push_back(item);
            return;
        };
        let chain = self.by_key.entry(key.clone()).or_insert_with(|| Chain {
            rows: VecDeque::new(),
            busy: false,
            held: false,
        });
        if chain.rows.is_empty() && !chain.busy {
            self.ready.push_back(key);
        }
        self.blocked += usize::from(chain.held);
        chain.rows.push_back(item);
    }

    /// Notes a row that is not to be published, so that it is not read again and again.
    pub(crate) fn skip(&mut self, id: i64) {
        self.known.insert(id);
    }

    /// The next row to publish, if its bucket allows it. What is not allowed is forgotten: its
    /// bucket went to somebody else, who reads it from the table.
    pub(crate) fn next(&mut self, allowed: impl Fn(i16) -> bool) -> Option<Item<T>> {
        while let Some(item) = self.single.pop_front() {
            if allowed(item.bucket) {
                return Some(item);
            }
            self.known.remove(&item.id);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(chain) = self.by_key.get_mut(&key) else {
                continue;
            };
            let Some(item) = chain.rows.pop_front() else {
                self.by_key.remove(&key);
                continue;
            };
            if allowed(item.bucket) {
                chain.busy = true;
                return Some(item);
            }
            self.known.remove(&item.id);
            for item in &chain.rows {
                self.known.remove(&item.id);
            }
            self.by_key.remove(&key);
        }
        None
    }

    /// A row was confirmed: the next of its key may go. The row stays known until it is deleted.
    pub(crate) fn sent(&mut self, key: Option<&str>) {
        if let Some(key) = key {
            self.free(key);
        }
    }

    /// A row failed. With a key it comes first again and the rest of its key waits with it, until
    /// [`retry`](Self::retry).
    pub(crate) fn hold(&mut self, mut item: Item<T>) -> Held<T> {
        item.failures = item.failures.saturating_add(1);
        let Some(key) = item.key.clone() else {
            self.blocked += 1;
            return Held::Single(item);
        };
        if let Some(chain) = self.by_key.get_mut(&key) {
            chain.rows.push_front(item);
            chain.held = true;
            self.blocked += chain.rows.len();
        }
        Held::Key(key)
    }

    /// What was held may try again.
    pub(crate) fn retry(&mut self, held: Held<T>) {
        match held {
            Held::Key(key) => self.free(&key),
            Held::Single(item) => {
                self.blocked -= 1;
                self.single.push_back(item);
            }
        }
    }

    /// Rows that were deleted.
    pub(crate) fn forget(&mut self, ids: &[i64]) {
        for id in ids {
            self.known.remove(id);
        }
    }

    fn free(&mut self, key: &str) {
        if let Some(chain) = self.by_key.get_mut(key) {
            chain.busy = false;
            if std::mem::take(&mut chain.held) {
                self.blocked -= chain.rows.len();
            }
            if chain.rows.is_empty() {
                self.by_key.remove(key);
            } else {
                self.ready.push_back(key.to_owned());
            }
        }
    }
}

/// What waits after a failure.
#[derive(Debug)]
pub(crate) enum Held<T> {
    Key(String),
    Single(Item<T>),
}

/// What waits after a failure, by time.
#[derive(Debug)]
pub(crate) struct Waiting<T>(Vec<(Instant, Held<T>)>);

impl<T> Waiting<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, until: Instant, held: Held<T>) {
        self.0.push((until, held));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(until, _)| *until).min()
    }

    /// Takes what is due.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Held<T>> {
        let (due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.0 = waiting;
        due.into_iter().map(|(_, held)| held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chains(rows: &[(i64, Option<&str>)]) -> Chains<()> {
        let mut chains = Chains::new();
        for (id, key) in rows {
            chains.add(*id, 0, key.map(str::to_owned), ());
        }
        chains
    }

    #[test]
    fn one_row_of_a_key_is_in_flight_and_the_next_waits_for_its_confirm() {
        let mut chains = chains(&[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, None)]);
        let mut started = Vec::new();
        while let Some(item) = chains.next(|_| true) {
            started.push(item.id);
        }
        assert_eq!(started, [4, 1, 3]);
        chains.sent(Some("a"));
        assert_eq!(chains.next(|_| true).unwrap().id, 2);
        assert!(chains.next(|_| true).is_none());
    }

    #[test]
    fn a_failed_row_comes_again_before_the_rest_of_its_key() {
        let mut chains = chains(&[(1, Some("a")), (2, Some("a"))]);
        let first = chains.next(|_| true).unwrap();
        let held = chains.hold(first);
        assert!(chains.next(|_| true).is_none());
        chains.add(3, 0, Some("a".to_owned()), ());
        assert_eq!(chains.blocked(), 3);
        chains.retry(held);
        assert_eq!(chains.blocked(), 0);
        let again = chains.next(|_| true).unwrap();
        assert_eq!((again.id, again.failures), (1, 1));
    }

    #[test]
    fn rows_of_a_lost_bucket_are_forgotten_and_can_come_again() {
        let mut chains = chains(&[(1, Some("a")), (2, Some("a")), (3, None)]);
        assert!(chains.next(|_| false).is_none());
        assert_eq!(chains.len(), 0);
        chains.add(1, 0, Some("a".to_owned()), ());
        assert_eq!(chains.next(|_| true).unwrap().id, 1);
    }

    proptest! {
        #[test]
        fn every_row_is_sent_once_and_in_order_of_its_key(
            keys in proptest::collection::vec(proptest::option::of(0_u8..4), 1..60),
            fates in proptest::collection::vec(proptest::bool::weighted(0.8), 1..50),
            seed in any::<u64>(),
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut chains = Chains::new();
            for (id, key) in (0_i64..).zip(&keys) {
                chains.add(id, 0, key.map(|key| key.to_string()), ());
            }
            let mut flying = Vec::new();
            let mut sent: Vec<i64> = Vec::new();
            let mut step = 0;
            loop {
                while let Some(item) = chains.next(|_| true) {
                    flying.push(item);
                }
                if flying.is_empty() {
                    break;
                }
                let item = flying.swap_remove(random.usize(0..flying.len()));
                step += 1;
                // After enough failures everything succeeds, so that the test ends.
                if fates[step % fates.len()] || step > 500 {
                    sent.push(item.id);
                    chains.sent(item.key.as_deref());
                    chains.forget(&[item.id]);
                } else {
                    let held = chains.hold(item);
                    chains.retry(held);
                }
            }
            prop_assert_eq!(sent.len(), keys.len());
            prop_assert_eq!((chains.len(), chains.blocked()), (0, 0));
            for key in keys.iter().flatten() {
                let of_key: Vec<_> = sent.iter().copied().filter(|id| keys[usize::try_from(*id).unwrap()] == Some(*key)).collect();
                prop_assert!(of_key.is_sorted(), "{of_key:?}");
            }
        }
    }
}
