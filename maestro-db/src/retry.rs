//! Backoff, and how often a transaction that collided is run again.

use std::time::Duration;

/// Delays between attempts: doubling from a first one up to a longest one, each with full jitter
/// over its upper half.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            next: first,
            longest,
        }
    }

    /// For a server that restarts: back within tens of milliseconds of its return, at most five
    /// attempts a second and caller while it is away.
    pub(crate) const fn connecting() -> Self {
        Self::new(Duration::from_millis(20), Duration::from_millis(250))
    }

    /// For two transactions that met: the other one is done in milliseconds.
    pub(crate) const fn collision() -> Self {
        Self::new(Duration::from_millis(5), Duration::from_millis(500))
    }

    /// The delay before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        self.next_with(fastrand::f64())
    }

    fn next_with(&mut self, fraction: f64) -> Duration {
        let delay = self.next.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0);
        self.next = (self.next * 2).min(self.longest);
        delay
    }
}

/// How often [`Db::retry`](crate::Db::retry) runs a transaction that collides before it gives the
/// error to the caller: one run and nine more, about a second and a half in all.
///
/// Collisions are the normal case under SERIALIZABLE: with contenders on one row each round lets one
/// through, so a handful of attempts is too few and the delay, not the count, carries the load.
pub(crate) const ATTEMPTS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(35));
        let delays: Vec<_> = (0..4).map(|_| backoff.next_with(1.0).as_millis()).collect();
        assert_eq!(delays, [10, 20, 35, 35]);
    }

    #[test]
    fn jitter_stays_within_the_upper_half() {
        for fraction in [0.0, 0.5, 1.0, 7.0] {
            let delay = Backoff::connecting().next_with(fraction);
            assert!((Duration::from_millis(10)..=Duration::from_millis(20)).contains(&delay));
        }
    }
}
