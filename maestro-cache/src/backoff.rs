//! When to try a lost server again: pure arithmetic, the loop is elsewhere.

use std::time::Duration;

/// Shortest pause between probes of a server that stays away.
pub(crate) const MIN_PROBE: Duration = Duration::from_secs(1);
/// Longest pause between probes, however long the outage: what an operator waits at worst.
pub(crate) const MAX_PROBE: Duration = Duration::from_mins(1);

/// The pause before reconnection attempt `attempt` (0 is the first after the loss).
///
/// The first attempts come quickly, because most losses are a cut connection to a server that runs.
/// From the fourth on the pause is a quarter of the outage so far, between one second and one
/// minute: recovery is noticed within a quarter of the outage, and a long outage costs one attempt
/// a minute. `jitter` in `0.0..1.0` spreads a fleet over ±20 %.
pub(crate) fn pause(attempt: u32, outage: Duration, jitter: f64) -> Duration {
    let base = match attempt {
        0 => return Duration::from_millis(50).mul_f64(jitter),
        1 => Duration::from_millis(100),
        2 => Duration::from_millis(300),
        _ => (outage / 4).clamp(MIN_PROBE, MAX_PROBE),
    };
    base.mul_f64(0.8 + 0.4 * jitter).min(MAX_PROBE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_attempts_follow_within_half_a_second() {
        let total: Duration = (0..3).map(|n| pause(n, Duration::ZERO, 0.99)).sum();
        assert!(total < Duration::from_millis(600), "{total:?}");
    }

    #[test]
    fn later_pauses_stay_between_one_second_and_one_minute() {
        for outage in [0, 1, 10, 100, 1_000, 1_000_000] {
            for jitter in [0.0, 0.5, 0.999] {
                let pause = pause(7, Duration::from_secs(outage), jitter);
                assert!(pause >= MIN_PROBE.mul_f64(0.8), "{pause:?}");
                assert!(pause <= MAX_PROBE, "{pause:?}");
            }
        }
    }

    #[test]
    fn a_fleet_does_not_reconnect_in_step() {
        let outage = Duration::from_secs(40);
        let (latest, earliest) = (pause(9, outage, 0.999), pause(9, outage, 0.0));
        assert!(
            latest > earliest + Duration::from_secs(3),
            "{earliest:?} to {latest:?}"
        );
    }
}
