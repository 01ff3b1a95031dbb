//! Which traces are recorded. Pure: the id of the trace decides, so that all replicas decide alike.

use crate::propagation::TraceId;

/// The share of new traces that are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    /// Traces whose last 56 random bits are below are recorded (the bits W3C Trace Context level 2
    /// promises to be random).
    below: u64,
}

const RANDOM_BITS: u32 = 56;
const RANDOM: u64 = (1 << RANDOM_BITS) - 1;

impl Ratio {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a ratio of 2^56 is a positive number that fits"
    )]
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            below: (ratio.clamp(0.0, 1.0) * (1u64 << RANDOM_BITS) as f64) as u64,
        }
    }

    pub(crate) fn samples(self, trace: TraceId) -> bool {
        let random = u128::from_be_bytes(trace.to_bytes()) & u128::from(RANDOM);
        random < u128::from(self.below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_kept_and_everybody_decides_alike() {
        for (ratio, low, high) in [(0.0, 0, 0), (0.1, 850, 1_150), (1.0, 10_000, 10_000)] {
            let ids: Vec<_> = (0..10_000).map(|_| TraceId::random()).collect();
            let count = |ratio: Ratio| ids.iter().filter(|id| ratio.samples(**id)).count();
            let sampled = count(Ratio::new(ratio));
            assert!((low..=high).contains(&sampled), "{ratio}: {sampled}");
            assert_eq!(sampled, count(Ratio::new(ratio)));
        }
    }
}
