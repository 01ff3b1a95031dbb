//! Whether the broker knows of a consumer that thinks it consumes. Pure.
//!
//! A queue can go without its consumers being told: a quorum queue without a leader is deleted by
//! force, and the channels of its consumers stay open and silent for good. So the counts that are
//! taken for the gauges are looked at as well.

use tokio::sync::watch;

use crate::error::{Error, ErrorKind};

/// How often in a row a queue was counted without a consumer, or was not there. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Attendance(watch::Sender<u32>);

impl Attendance {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// A consumer has been opened: what was counted before says nothing about it.
    pub(crate) fn begin(&self) {
        self.0.send_replace(0);
    }

    /// Enters a count of messages and consumers.
    pub(crate) fn counted(&self, counted: &Result<(u64, u64), Error>) {
        let absent = match counted {
            Ok((_, consumers)) => *consumers == 0,
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            // Not being able to count says nothing.
            Err(_) => return,
        };
        self.0.send_modify(|absences| {
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
            .0
            .subscribe()
            .wait_for(|absences| *absences >= ABSENCES)
            .await;
    }
}

/// A queue whose leader is being elected counts none once.
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
        attendance.counted(&Ok((7, 1)));
        attendance.counted(&Err(gone()));
        assert!(!missed());
        attendance.begin();
        attendance.counted(&Ok((0, 0)));
        attendance.counted(&Err(Error::new(ErrorKind::Unavailable, "no answer")));
        assert!(!missed());
        attendance.counted(&Err(gone()));
        assert!(missed());
    }
}
