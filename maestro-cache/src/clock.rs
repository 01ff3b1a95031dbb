//! Time: a monotonic clock for deadlines and leases, and an estimate of the server's clock for
//! lifetimes written by other processes.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::envelope::Micros;

/// Nanoseconds since the cache was created. 64 bits last for 584 years.
pub(crate) type Nanos = u64;

/// Both clocks of one cache.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Instant,
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
            base: Instant::now(),
            offset: AtomicI64::new(i64::try_from(system).unwrap_or(0)),
        }
    }

    pub(crate) fn now(&self) -> Nanos {
        nanos(self.base.elapsed())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.base.elapsed()
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
    fn lifetimes_by_the_servers_clock_become_moments_of_ours() {
        let clock = Clock::start();
        let server = Micros(2_000_000_000_000_000);
        clock.heard(server);
        let now = clock.now();
        let in_a_minute = Micros(server.0 + 60_000_000);
        let left = clock.local(in_a_minute, now).saturating_sub(now);
        assert!((59_000_000_000..=60_001_000_000).contains(&left), "{left}");
        assert_eq!(clock.local(Micros(server.0 - 1), now), 0);
    }
}
