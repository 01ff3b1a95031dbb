//! When to stop asking somebody who does not answer. Pure: it is told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What opens a breaker and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Failures within the window that open it.
    pub(crate) failures: usize,
    pub(crate) window: Duration,
    /// Open for this long at first, twice as long after each probe that fails.
    pub(crate) first_open: Duration,
    pub(crate) longest_open: Duration,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    policy: Policy,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed {
        failures: VecDeque<Instant>,
    },
    Open {
        until: Instant,
        wait: Duration,
    },
    /// One call is on its way to find out. If it is never reported (its future was dropped), the
    /// next one may try after `until`.
    Probing {
        until: Instant,
        wait: Duration,
    },
}

/// A change of state, for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Opened,
    Probing,
    Closed,
}

impl Transition {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "open",
            Self::Probing => "half_open",
            Self::Closed => "closed",
        }
    }
}

impl Breaker {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::closed(),
        }
    }

    /// Whether a call may be made now; `Err` says how long until a probe is.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<Option<Transition>, Duration> {
        match self.state {
            State::Closed { .. } => Ok(None),
            State::Open { until, wait } | State::Probing { until, wait } => {
                if let Some(left) = until
                    .checked_duration_since(now)
                    .filter(|left| !left.is_zero())
                {
                    return Err(left);
                }
                self.state = State::Probing {
                    until: now + wait,
                    wait,
                };
                Ok(Some(Transition::Probing))
            }
        }
    }

    pub(crate) fn succeeded(&mut self) -> Option<Transition> {
        match &mut self.state {
            State::Closed { .. } => None,
            // Calls from before it opened may still succeed; only the probe's answer counts, but
            // which one this was makes no difference: somebody answers again.
            State::Open { .. } | State::Probing { .. } => {
                self.state = State::closed();
                Some(Transition::Closed)
            }
        }
    }

    pub(crate) fn failed(&mut self, now: Instant) -> Option<Transition> {
        let policy = self.policy;
        match &mut self.state {
            State::Closed { failures } => {
                while failures
                    .front()
                    .is_some_and(|at| now.saturating_duration_since(*at) > policy.window)
                {
                    failures.pop_front();
                }
                failures.push_back(now);
                if failures.len() < policy.failures {
                    return None;
                }
                self.state = State::Open {
                    until: now + policy.first_open,
                    wait: policy.first_open,
                };
                Some(Transition::Opened)
            }
            // A call from before it opened.
            State::Open { .. } => None,
            State::Probing { wait, .. } => {
                let wait = (*wait * 2).min(policy.longest_open);
                self.state = State::Open {
                    until: now + wait,
                    wait,
                };
                Some(Transition::Opened)
            }
        }
    }
}

impl State {
    fn closed() -> Self {
        Self::Closed {
            failures: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        failures: 5,
        window: Duration::from_secs(30),
        first_open: Duration::from_secs(5),
        longest_open: Duration::from_mins(1),
    };

    fn opened(start: Instant) -> Breaker {
        let mut breaker = Breaker::new(POLICY);
        for i in 0..4 {
            assert_eq!(breaker.failed(start + Duration::from_secs(i)), None);
        }
        assert_eq!(breaker.failed(start), Some(Transition::Opened));
        breaker
    }

    #[test]
    fn failures_spread_over_more_than_the_window_do_not_open_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(POLICY);
        for i in 0..100 {
            assert_eq!(breaker.failed(start + Duration::from_secs(8 * i)), None);
        }
    }

    #[test]
    fn one_probe_at_a_time_closes_it_or_doubles_the_wait_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for wait in [5, 10, 20, 40, 60, 60] {
            assert!(
                breaker
                    .admit(now + Duration::from_millis(wait * 1_000 - 1))
                    .is_err()
            );
            now += Duration::from_secs(wait);
            assert_eq!(breaker.admit(now), Ok(Some(Transition::Probing)));
            assert!(breaker.admit(now).is_err(), "a second probe");
            assert_eq!(breaker.failed(now), Some(Transition::Opened));
        }
        now += Duration::from_mins(1);
        assert_eq!(breaker.admit(now), Ok(Some(Transition::Probing)));
        assert_eq!(breaker.succeeded(), Some(Transition::Closed));
        assert_eq!(breaker.admit(now), Ok(None));
        assert_eq!(breaker.failed(now), None, "it counts from none again");
    }

    #[test]
    fn a_probe_that_is_never_reported_does_not_keep_it_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + Duration::from_secs(5);
        assert!(breaker.admit(later).is_ok());
        assert!(breaker.admit(later + Duration::from_secs(5)).is_ok());
    }

    proptest! {
        #[test]
        fn it_is_never_shut_for_more_than_a_minute(
            events in proptest::collection::vec((0..3u8, 0..90_000u64), 0..200)
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(POLICY);
            for (event, pause) in events {
                now += Duration::from_millis(pause);
                match event {
                    0 => drop(breaker.failed(now)),
                    1 => drop(breaker.succeeded()),
                    _ => if let Err(left) = breaker.admit(now) {
                        prop_assert!(left <= Duration::from_mins(1));
                    },
                }
            }
            prop_assert!(breaker.admit(now + Duration::from_mins(1)).is_ok());
        }
    }
}
