//! Rates: what a quota allows, without I/O and without a clock. Redis decides by the same arithmetic
//! in a script; this one decides while Redis is away.

use std::time::Duration;

use crate::clock::Nanos;
use crate::error::{Error, ErrorKind};

/// How much is allowed: so many in a period, of which so many at once.
///
/// In any window of length `t` at most `burst + rate × t` pass, and whoever keeps asking gets at least
/// `rate × t − 1`: requests come back one by one as time passes, there is no edge of a window at which
/// twice the quota goes through.
///
/// ```
/// use std::time::Duration;
/// use maestro_cache::Quota;
///
/// let hourly = Quota::per_hour(1_000);
/// let smooth = Quota::new(100, Duration::from_secs(60)).burst(10);
/// let spiky = Quota::per_second(5).burst(50); // fifty at once, then five a second
/// assert_eq!((hourly.count(), hourly.period()), (1_000, Duration::from_hours(1)));
/// # let _ = (smooth, spiky);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    count: u32,
    period: Duration,
    burst: u32,
}

impl Quota {
    /// So many in every `period`, all of them at once if need be. A limiter refuses quotas of none, of
    /// more than one a microsecond, and periods above a year.
    #[must_use]
    pub const fn new(count: u32, period: Duration) -> Self {
        Self {
            count,
            period,
            burst: count,
        }
    }

    /// So many a second.
    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self::new(count, Duration::from_secs(1))
    }

    /// So many a minute.
    #[must_use]
    pub const fn per_minute(count: u32) -> Self {
        Self::new(count, Duration::from_mins(1))
    }

    /// So many an hour.
    #[must_use]
    pub const fn per_hour(count: u32) -> Self {
        Self::new(count, Duration::from_hours(1))
    }

    /// How many may come at once; as many as in a period unless told.
    #[must_use]
    pub const fn burst(mut self, burst: u32) -> Self {
        self.burst = burst;
        self
    }

    /// How many may come in a period.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The period.
    pub const fn period(&self) -> Duration {
        self.period
    }

    pub(crate) const fn at_once(&self) -> u32 {
        self.burst
    }

    /// Microseconds between two requests at the rate.
    pub(crate) fn interval_micros(&self) -> f64 {
        self.period.as_secs_f64() * 1e6 / f64::from(self.count)
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match self {
            q if q.count == 0 || q.burst == 0 => Err("it allows nothing"),
            q if q.period > MAX_PERIOD => Err("its period is longer than a year"),
            q if q.interval_micros() < 1.0 => Err("it allows more than one a microsecond"),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_cost(&self, cost: u32) -> Result<(), Error> {
        if cost <= self.burst {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a request that counts for {cost} can never pass a limit of {} at once",
                self.burst
            ),
        ))
    }
}

/// A quota over more than a year is a mistake in a unit.
const MAX_PERIOD: Duration = Duration::from_hours(366 * 24);

/// What a limiter decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Verdict {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Requests that may come at once.
    pub limit: u32,
    /// Requests that may still come now.
    pub remaining: u32,
    /// How long to wait before the same request passes; zero when it was allowed.
    pub retry_after: Duration,
    /// How long until the whole burst is there again.
    pub reset_after: Duration,
    /// False when Redis was away and the limiter's [`LimitWhenDown`](crate::LimitWhenDown) decided.
    pub shared: bool,
}

/// The theoretical arrival time of a caller's next request, in nanoseconds times the quota's count:
/// no division, so nothing is rounded.
pub(crate) type Arrival = u128;

/// Decides one request; returns what to remember when it is allowed.
pub(crate) fn decide(
    quota: Quota,
    known: Option<Arrival>,
    now: Nanos,
    cost: u32,
) -> (Verdict, Arrival) {
    let count = u128::from(quota.count.max(1));
    let interval = quota.period.as_nanos();
    let now = u128::from(now) * count;
    let whole = interval * u128::from(quota.burst);
    let arrival = known.unwrap_or(now).clamp(now, now + whole);
    let after = arrival + interval * u128::from(cost);
    let early = after.saturating_sub(now + whole);
    let allowed = early == 0;
    let next = if allowed { after } else { arrival };
    let wait = |scaled: u128| {
        Duration::from_nanos(u64::try_from(scaled.div_ceil(count)).unwrap_or(u64::MAX))
    };
    let left = (now + whole).saturating_sub(next) / interval.max(1);
    let verdict = Verdict {
        allowed,
        limit: quota.burst,
        remaining: u32::try_from(left).unwrap_or(u32::MAX),
        retry_after: wait(early),
        reset_after: wait(next - now),
        shared: false,
    };
    (verdict, next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_one_an_interval() {
        let quota = Quota::per_second(10).burst(3);
        let mut known = None;
        for left in (0..3).rev() {
            let (verdict, next) = decide(quota, known, 0, 1);
            assert!(verdict.allowed);
            assert_eq!(verdict.remaining, left);
            known = Some(next);
        }
        let (verdict, _) = decide(quota, known, 0, 1);
        assert!(!verdict.allowed);
        assert_eq!(verdict.retry_after, Duration::from_millis(100));
        assert_eq!(verdict.reset_after, Duration::from_millis(300));
        assert!(!decide(quota, known, 99_999_999, 1).0.allowed);
        assert!(decide(quota, known, 100_000_000, 1).0.allowed);
    }

    #[test]
    fn quotas_that_mean_nothing_are_refused() {
        assert!(Quota::per_hour(1_000).check().is_ok());
        assert!(Quota::per_hour(0).check().is_err());
        assert!(Quota::per_hour(5).burst(0).check().is_err());
        assert!(Quota::new(2, Duration::from_micros(1)).check().is_err());
        assert!(Quota::new(1, Duration::MAX).check().is_err());
        assert!(Quota::per_hour(5).check_cost(6).is_err());
    }

    proptest! {
        /// In any window at most `burst + rate × t`, and never fewer than `rate × t − 1`.
        #[test]
        fn every_window_stays_within_its_bound(
            count in 1..50_u32,
            period_ms in 1..5_000_u64,
            burst in 1..20_u32,
            gaps in proptest::collection::vec(0..80_000_000_u64, 1..200),
        ) {
            let quota = Quota::new(count, Duration::from_millis(period_ms)).burst(burst);
            let (mut now, mut known, mut passed) = (0, None, Vec::new());
            for gap in gaps {
                now += gap;
                let (verdict, next) = decide(quota, known, now, 1);
                if verdict.allowed {
                    known = Some(next);
                    passed.push(now);
                } else {
                    // Asking again exactly when told to passes, a nanosecond before does not.
                    let at = now + u64::try_from(verdict.retry_after.as_nanos()).unwrap();
                    prop_assert!(decide(quota, known, at, 1).0.allowed);
                    prop_assert!(!decide(quota, known, at - 1, 1).0.allowed);
                }
            }
            let period = u128::from(period_ms) * 1_000_000;
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let inside = (last - first + 1) as u128;
                    let window = u128::from(to - from);
                    prop_assert!(
                        inside * period <= u128::from(burst) * period + window * u128::from(count),
                        "{inside} in {window} ns"
                    );
                }
            }
        }

        #[test]
        fn whoever_keeps_asking_gets_the_rate(count in 1..200_u32, burst in 1..5_u32) {
            let quota = Quota::per_second(count).burst(burst);
            let (mut now, mut known, mut passed) = (0, None, 0_u64);
            // For two seconds, again as soon as it can pass.
            while now <= 2_000_000_000 {
                let (verdict, next) = decide(quota, known, now, 1);
                if verdict.allowed {
                    known = Some(next);
                    passed += 1;
                }
                now += u64::try_from(verdict.retry_after.as_nanos()).unwrap();
            }
            prop_assert!(passed + 1 >= u64::from(count) * 2, "{passed}");
        }
    }
}
