//! Time: a monotonic clock for deadlines and leases, and an estimate of the server's clock for
//! lifetimes written by other processes.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::envelope::Micros;

/// Nanoseconds since the cache was created. 64 bits last for 584 years.
pub(crate) type Nanos = u64;

/// How far [`Clock::glance`] may be behind: the kernel's tick is 1 to 10 ms long, and another processor
/// takes over when the one that counts ticks has stood still for five of them.
pub(crate) const GLANCE: Duration = Duration::from_millis(100);

#[cfg(target_os = "linux")]
const COARSE: ClockId = ClockId::MonotonicCoarse;
#[cfg(not(target_os = "linux"))]
const COARSE: ClockId = ClockId::Monotonic;

/// Both clocks of one cache.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Nanoseconds of the kernel's clock when the cache was created.
    base: Nanos,
    /// Server's microseconds minus ours, from the last answer to `TIME`.
    offset: AtomicI64,
}

impl Clock {
    /// Until the server is heard, the system's clock stands for its clock.
    pub(crate) fn start() -> Self {
        let system = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, micros);
        Self {
            base: read(ClockId::Monotonic),
            offset: AtomicI64::new(i64::try_from(system).unwrap_or(0)),
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        read(ClockId::Monotonic).saturating_sub(self.base)
    }

    /// The kernel's time as of its last tick, at a fifth of the cost: never ahead of [`Clock::now`], and
    /// behind it by at most [`GLANCE`]. Also after the process was stopped, since the kernel was not. Fit to
    /// ask whether something is over; not to note when it was.
    #[inline]
    pub(crate) fn glance(&self) -> Nanos {
        read(COARSE).saturating_sub(self.base)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now())
    }

    /// Notes the server's time, which was read no later than now: the estimate is never ahead of
    /// the server by more than its clock was stepped.
    pub(crate) fn heard(&self, server: Micros) {
        let ours = i64::try_from(self.now() / 1_000).unwrap_or(i64::MAX);
        let server = i64::try_from(server.0).unwrap_or(i64::MAX);
        self.offset
            .store(server.saturating_sub(ours), Ordering::Relaxed);
    }

    /// The server's time now, as far as is known.
    pub(crate) fn server_now(&self, now: Nanos) -> Micros {
        let ours = i64::try_from(now / 1_000).unwrap_or(i64::MAX);
        let server = ours.saturating_add(self.offset.load(Ordering::Relaxed));
        Micros(u64::try_from(server).unwrap_or(0))
    }

    /// The moment of our clock at which the server's clock shows `at`; 0 when that is past.
    pub(crate) fn local(&self, at: Micros, now: Nanos) -> Nanos {
        let left = at.0.saturating_sub(self.server_now(now).0);
        if left == 0 {
            return 0;
        }
        now.saturating_add(left.saturating_mul(1_000))
    }
}

#[inline]
fn read(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock);
    // The kernel counts from its start, and never below zero.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Saturating: durations of settings are bounded far below.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glance_is_never_ahead() {
        let clock = Clock::start();
        for _ in 0..100_000 {
            let glance = clock.glance();
            assert!(glance <= clock.now());
        }
    }

    /// Of a hundred glances 99, so that a machine that stood still as a whole is no failure.
    #[test]
    fn a_glance_is_behind_by_less_than_its_bound() {
        let clock = Clock::start();
        let end = clock.now() + 300_000_000;
        let (mut glances, mut late, mut worst) = (0_u64, 0_u64, 0);
        loop {
            // Before the glance: being interrupted in between makes it look better, never worse.
            let before = clock.now();
            if before >= end {
                break;
            }
            let behind = before.saturating_sub(clock.glance());
            glances += 1;
            late += u64::from(behind > nanos(GLANCE));
            worst = worst.max(behind);
        }
        let worst = Duration::from_nanos(worst);
        assert!(
            late * 100 <= glances,
            "{late} of {glances}, up to {worst:?}"
        );
    }

    #[test]
    fn lifetimes_by_the_servers_clock_become_moments_of_ours() {
        let clock = Clock::start();
        let server = Micros(2_000_000_000_000_000);
        let before = clock.now();
        clock.heard(server);
        let after = clock.now();
        let in_a_minute = Micros(server.0 + 60_000_000);
        let moment = clock.local(in_a_minute, after);
        // Whole microseconds, rounded once on each side.
        let minute = 60_000_000_000;
        let earliest = before + minute - 2_000;
        let latest = after + minute + 2_000;
        assert!((earliest..=latest).contains(&moment), "{moment}");
        assert_eq!(clock.local(Micros(server.0 - 1), after), 0);
    }
}
