//! Whether the broker knows of a consumer that thinks it consumes. Pure.
//!
//! A queue can go without its consumers being told: a quorum queue without a leader is deleted by
//! force, and the channels of its consumers stay open and silent for good. So the counts that are
//! taken for the gauges are looked at as well. A queue without a consumer is the plain case; when
//! another replica has made the queue again and consumes, a consumer of the old one is known by this:
//! messages wait, it has room for them, and it gets none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind};

/// How often in a row the counts spoke against a consumer. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Attendance {
    absences: watch::Sender<u32>,
    /// Whether it was seen at work since the last count.
    busy: Arc<AtomicBool>,
}

impl Attendance {
    pub(crate) fn new() -> Self {
        Self {
            absences: watch::Sender::new(0),
            busy: Arc::new(AtomicBool::new(false)),
        }
    }

    /// A consumer has been opened: what was counted before says nothing about it.
    pub(crate) fn begin(&self) {
        self.busy();
        self.absences.send_replace(0);
    }

    /// It has got a delivery, or holds one, or has no claim to any: it only stands by.
    pub(crate) fn busy(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Enters a count of messages and consumers.
    pub(crate) fn counted(&self, counted: &Result<(u64, u64), Error>) {
        let absent = match counted {
            Ok((ready, consumers)) => {
                let idle = !self.busy.swap(false, Ordering::Relaxed);
                *consumers == 0 || (*ready > 0 && idle)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            // Not being able to count says nothing.
            Err(_) => return,
        };
        self.absences.send_modify(|absences| {
            *absences = if absent {
                absences.saturating_add(1)
            } else {
                0
            };
        });
    }

    /// Resolves when the broker does not know of the consumer.
    pub(crate) async fn missed(&self) {
        // Fails only without a sender, which this is.
        let _ = self
            .absences
            .subscribe()
            .wait_for(|absences| *absences >= ABSENCES)
            .await;
    }
}

/// A queue whose leader is being elected counts none once; and what waits may have come just now.
const ABSENCES: u32 = 2;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn only_absences_in_a_row_since_the_consumer_was_opened_are_believed() {
        let attendance = Attendance::new();
        let missed = || attendance.missed().now_or_never().is_some();
        let gone = || Error::new(ErrorKind::NotFound, "no queue");
        attendance.counted(&Ok((7, 0)));
        attendance.counted(&Ok((0, 1)));
        attendance.counted(&Err(gone()));
        assert!(!missed());
        attendance.begin();
        attendance.counted(&Ok((0, 0)));
        attendance.counted(&Err(Error::new(ErrorKind::Unavailable, "no answer")));
        assert!(!missed());
        attendance.counted(&Err(gone()));
        assert!(missed());
    }

    #[test]
    fn a_consumer_that_gets_nothing_of_what_waits_is_missed_and_one_at_work_is_not() {
        let attendance = Attendance::new();
        let missed = || attendance.missed().now_or_never().is_some();
        attendance.begin();
        for _ in 0..5 {
            attendance.busy();
            attendance.counted(&Ok((9, 1)));
            attendance.counted(&Ok((0, 1)));
        }
        assert!(!missed());
        attendance.counted(&Ok((9, 1)));
        assert!(!missed());
        attendance.counted(&Ok((8, 1)));
        assert!(missed());
    }
}
