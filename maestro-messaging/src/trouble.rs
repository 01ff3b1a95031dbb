//! When everything fails, slow down: pure state, no clock.

use std::time::Duration;

use crate::backoff::Backoff;

/// Counts failures that are not the messages' fault. Several in a row put a subscription into
/// probing: one message at a time, after a growing pause, until one succeeds.
#[derive(Debug)]
pub(crate) struct Trouble {
    in_a_row: u32,
    backoff: Backoff,
}

impl Trouble {
    pub(crate) const fn new() -> Self {
        Self {
            in_a_row: 0,
            backoff: Backoff::new(Duration::from_millis(500), LONGEST_PAUSE),
        }
    }

    /// A message was handled, or failed by its own fault: what it depends on is there.
    pub(crate) fn recovered(&mut self) {
        self.in_a_row = 0;
        self.backoff.reset();
    }

    /// Something a handler depends on was not there.
    pub(crate) fn outage(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    /// The pause before the next probe; `None` while all is well.
    pub(crate) fn pause(&mut self) -> Option<Duration> {
        self.is_probing().then(|| self.backoff.next())
    }

    pub(crate) fn is_probing(&self) -> bool {
        self.in_a_row >= IN_A_ROW
    }
}

/// One broken connection in a pool of many is no outage; five failures without a success between
/// them are.
const IN_A_ROW: u32 = 5;

/// One message every few seconds costs a broken database nothing, and is how long a subscription
/// goes on standing still after it is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_slow_down_and_one_success_ends_it() {
        let mut trouble = Trouble::new();
        for _ in 0..4 {
            trouble.outage();
        }
        assert_eq!(trouble.pause(), None);
        trouble.recovered();
        for _ in 0..4 {
            trouble.outage();
        }
        assert!(!trouble.is_probing());
        trouble.outage();
        let first = trouble.pause().unwrap();
        assert!(first >= Duration::from_millis(250), "{first:?}");
        for _ in 0..20 {
            trouble.pause();
        }
        let last = trouble.pause().unwrap();
        assert!(
            last >= LONGEST_PAUSE / 2 && last <= LONGEST_PAUSE,
            "{last:?}"
        );
        trouble.recovered();
        assert_eq!(trouble.pause(), None);
    }
}
