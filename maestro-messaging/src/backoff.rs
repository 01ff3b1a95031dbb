//! How long to wait before the next attempt: pure arithmetic, no clock.

use std::time::Duration;

/// Growing, jittered delays without end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            attempt: 0,
        }
    }

    /// For connections and channels: a broker that is back is found within the cap, and a fleet of
    /// replicas does not come back in step.
    pub(crate) const fn reconnect() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(3))
    }

    /// The next delay; `random` is uniform in `0.0..1.0`. Half of the delay is fixed, so that no
    /// series of small random numbers becomes a busy loop; the other half spreads.
    pub(crate) fn delay(&mut self, random: f64) -> Duration {
        let doublings = self.attempt.min(16);
        self.attempt = self.attempt.saturating_add(1);
        let full = self.first.saturating_mul(1 << doublings).min(self.cap);
        full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// The next delay with this process' randomness.
    pub(crate) fn next(&mut self) -> Duration {
        self.delay(fastrand::f64())
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many delays were handed out since the start or the last reset.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..6).map(|_| backoff.delay(1.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_000, 1_000]);
        backoff.reset();
        assert_eq!(backoff.delay(1.0).as_millis(), 100);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_zero_and_never_above_the_cap(
            attempts in 0_usize..200, random in 0.0_f64..1.0,
        ) {
            let mut backoff = Backoff::reconnect();
            for _ in 0..attempts {
                backoff.delay(random);
            }
            let delay = backoff.delay(random);
            prop_assert!(delay >= Duration::from_millis(50));
            prop_assert!(delay <= Duration::from_secs(3));
        }
    }
}
