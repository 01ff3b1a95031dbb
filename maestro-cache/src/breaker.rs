//! Circuit breaker: after five failures within thirty seconds callers are told at once that the
//! server is away, until a probe succeeds. Knows no clock and no server: time is passed in.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backoff;

/// Failures within [`WINDOW`] that open the breaker.
const FAILURES: usize = 5;
/// How long a failure counts.
const WINDOW: Duration = Duration::from_secs(30);

/// What a failure or a success changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Opened,
    Closed,
}

/// Times are durations since the cache was created.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Read on every call: an open breaker costs one load.
    open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: VecDeque<Duration>,
    opened: Option<Duration>,
    next_probe: Duration,
}

impl Breaker {
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Notes that the server did not answer.
    pub(crate) fn failure(&self, now: Duration, jitter: f64) -> Option<Transition> {
        let mut state = self.state.lock();
        if let Some(opened) = state.opened {
            // A failed probe: the next one is further away, the longer the outage.
            state.next_probe = now + backoff::pause(3, now.saturating_sub(opened), jitter);
            return None;
        }
        state.failures.push_back(now);
        while state
            .failures
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > WINDOW)
        {
            state.failures.pop_front();
        }
        if state.failures.len() < FAILURES {
            return None;
        }
        state.failures.clear();
        state.opened = Some(now);
        state.next_probe = now + backoff::pause(3, Duration::ZERO, jitter);
        self.open.store(true, Ordering::Release);
        Some(Transition::Opened)
    }

    /// When the next probe is due; `None` while closed.
    pub(crate) fn next_probe(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.opened.map(|_| state.next_probe)
    }

    /// Notes that a probe, or a new connection, was answered.
    pub(crate) fn answered(&self) -> Option<Transition> {
        if !self.is_open() {
            return None;
        }
        let mut state = self.state.lock();
        state.opened.take()?;
        state.failures.clear();
        self.open.store(false, Ordering::Release);
        Some(Transition::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn five_failures_in_thirty_seconds_open_it() {
        let breaker = Breaker::default();
        for second in 0..4 {
            assert_eq!(breaker.failure(at(second), 0.5), None);
            assert!(!breaker.is_open());
        }
        assert_eq!(breaker.failure(at(29), 0.5), Some(Transition::Opened));
        assert!(breaker.is_open());
    }

    #[test]
    fn failures_further_apart_do_not_open_it() {
        let breaker = Breaker::default();
        for n in 0..100 {
            assert_eq!(breaker.failure(at(n * 8), 0.5), None);
        }
    }

    #[test]
    fn probes_are_one_second_to_one_minute_apart_and_an_answer_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            breaker.failure(at(10), 0.5);
        }
        let mut now = breaker.next_probe().unwrap();
        assert_eq!(now, at(11));
        for _ in 0..60 {
            assert_eq!(breaker.failure(now, 0.5), None);
            let next = breaker.next_probe().unwrap();
            assert!(
                next >= now + at(1) && next <= now + at(60),
                "{now:?} to {next:?}"
            );
            now = next;
        }
        assert_eq!(breaker.answered(), Some(Transition::Closed));
        assert!(!breaker.is_open());
        assert_eq!(breaker.next_probe(), None);
        assert_eq!(breaker.answered(), None);
    }
}
