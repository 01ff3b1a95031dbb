//! What was published, not answered, and is to be published again.
//!
//! Every repetition can be a copy for the queues that have stored the message already, so a message that
//! is not answered again and again waits longer each time: it is sent about log₂ of its deadline in
//! seconds times. Pure, but for the callers that are told of their deadline.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::transport::Request;

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The channel or the connection is gone; the next one most likely answers.
    Channel,
    /// The broker was there and did not confirm: one of the message's queues stands still.
    Standstill,
}

/// Oldest first, as far as they need not wait.
#[derive(Debug, Default)]
pub(super) struct Again {
    ready: VecDeque<Request>,
    later: Vec<(Instant, Request)>,
}

impl Again {
    /// Takes what was lost with a channel, oldest first.
    pub(super) fn lost(
        &mut self,
        requests: impl DoubleEndedIterator<Item = Request>,
        loss: Loss,
        now: Instant,
    ) {
        for mut request in requests.rev() {
            let pause = pause(request.losses, loss, fastrand::f64());
            request.losses = request.losses.saturating_add(1);
            if pause.is_zero() {
                self.ready.push_front(request);
            } else {
                self.later.push((now + pause, request));
            }
        }
    }

    /// The next that may be published.
    pub(super) fn pop(&mut self) -> Option<Request> {
        self.ready.pop_front()
    }

    /// What has waited long enough is ready; what nobody waits for any more is given up.
    pub(super) fn refresh(&mut self, now: Instant) {
        for (due, request) in std::mem::take(&mut self.later) {
            if request.is_over(now) {
                request.give_up("the deadline has passed");
            } else if due <= now {
                self.ready.push_back(request);
            } else {
                self.later.push((due, request));
            }
        }
        for request in std::mem::take(&mut self.ready) {
            if request.is_over(now) {
                request.give_up("the deadline has passed");
            } else {
                self.ready.push_back(request);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.later.len()
    }

    /// Gives all up.
    pub(super) fn close(self) {
        let later = self.later.into_iter().map(|(_, request)| request);
        for request in self.ready.into_iter().chain(later) {
            request.give_up("the client was closed");
        }
    }
}

/// How long a message waits that had no answer `before` times already. A connection that is lost once
/// says nothing of the message.
fn pause(before: u32, loss: Loss, random: f64) -> Duration {
    let pauses = match loss {
        Loss::Channel => before,
        Loss::Standstill => before.saturating_add(1),
    };
    let mut backoff = Backoff::new(FIRST, LONGEST);
    // The doublings end long before this.
    (0..pauses.min(32)).fold(Duration::ZERO, |_, _| backoff.delay(random))
}

const FIRST: Duration = Duration::from_secs(1);
/// Deadlines are shorter than this.
const LONGEST: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_lost_connection_costs_no_pause_and_a_queue_that_stands_still_does() {
        assert_eq!(pause(0, Loss::Channel, 1.0), Duration::ZERO);
        assert_eq!(pause(1, Loss::Channel, 1.0), Duration::from_secs(1));
        assert_eq!(pause(0, Loss::Standstill, 1.0), Duration::from_secs(1));
        assert_eq!(pause(3, Loss::Standstill, 1.0), Duration::from_secs(8));
        assert_eq!(pause(u32::MAX, Loss::Standstill, 1.0), LONGEST);
    }

    proptest! {
        #[test]
        fn a_message_is_sent_about_as_often_as_its_deadline_doubles(
            seconds in 1_u64..3_000, random in 0.0_f64..1.0, standstill in proptest::bool::ANY,
        ) {
            let loss = if standstill { Loss::Standstill } else { Loss::Channel };
            let deadline = Duration::from_secs(seconds);
            let (mut at, mut sends) = (Duration::ZERO, 0_u32);
            while at < deadline {
                at += pause(sends, loss, random);
                sends += 1;
            }
            // Once at first, once for the connection that was lost, and with pauses from half a second on.
            let doublings = (2 * seconds + 1).ilog2() + 1;
            prop_assert!(sends <= 2 + doublings, "{sends} times in {deadline:?}");
        }
    }
}
