//! Whether a lease still holds: by the holder's own clock, from before the server was asked, and less
//! a margin. Without I/O.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Nanos, nanos};

/// The share of a lease by which its holder gives it up early: two clocks that run at different
/// speeds, and the time between noticing and stopping.
const MARGIN: u32 = 10;

/// A lease as its holder knows it. Once it was found lost it stays lost.
#[derive(Debug)]
pub(crate) struct Term {
    lease: Duration,
    /// `None`: lost or given up.
    until: Mutex<Option<Nanos>>,
}

impl Term {
    /// A lease that was asked for at `sent`.
    pub(crate) fn new(lease: Duration, sent: Nanos) -> Self {
        Self {
            lease,
            until: Mutex::new(Some(end(lease, sent))),
        }
    }

    /// How long it holds for sure; `None` when it is lost.
    pub(crate) fn left(&self, now: Nanos) -> Option<Duration> {
        let mut until = self.until.lock();
        *until = until.filter(|until| now < *until);
        until.map(|until| Duration::from_nanos(until - now))
    }

    /// The server has renewed what was asked for at `sent`; false when that came too late.
    pub(crate) fn renew(&self, sent: Nanos, now: Nanos) -> bool {
        let mut until = self.until.lock();
        *until = until
            .filter(|until| now < *until)
            .map(|until| until.max(end(self.lease, sent)));
        until.is_some()
    }

    /// Somebody else has it, or it is given up.
    pub(crate) fn lose(&self) {
        *self.until.lock() = None;
    }
}

fn end(lease: Duration, sent: Nanos) -> Nanos {
    sent.saturating_add(nanos(lease.saturating_sub(lease / MARGIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn it_ends_before_the_server_can_end_it() {
        let term = Term::new(Duration::from_secs(10), 5 * SECOND);
        assert!(term.left(14 * SECOND - 1).is_some());
        // The server counts from when it was asked, which is later than 5 s.
        assert_eq!(term.left(14 * SECOND), None);
    }

    #[test]
    fn what_was_lost_once_is_not_renewed_by_a_late_answer() {
        let term = Term::new(Duration::from_secs(10), 0);
        assert!(term.renew(3 * SECOND, 4 * SECOND));
        assert_eq!(term.left(12 * SECOND), None);
        assert!(
            !term.renew(8 * SECOND, 9 * SECOND),
            "it was seen to be lost"
        );
        assert_eq!(term.left(4 * SECOND), None);
    }

    #[test]
    fn an_answer_to_an_older_question_does_not_shorten_it() {
        let term = Term::new(Duration::from_secs(10), 0);
        assert!(term.renew(5 * SECOND, 6 * SECOND));
        assert!(term.renew(SECOND, 7 * SECOND));
        assert!(term.left(13 * SECOND).is_some());
    }
}
