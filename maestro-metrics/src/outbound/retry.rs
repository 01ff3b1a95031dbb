//! Whether a call is made again, and when. Pure.

use std::time::Duration;

use axum::http::{Method, StatusCode};

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Answered {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// No answer: refused, reset, timed out.
    Nothing,
}

impl Ending {
    /// Whether it speaks against the other side's health.
    pub(crate) fn is_failure(self) -> bool {
        match self {
            // 501 is an answer about the request.
            Self::Answered { status, .. } => {
                status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            }
            Self::Nothing => true,
        }
    }

    fn may_pass(self) -> bool {
        match self {
            Self::Answered { status, .. } => matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
            Self::Nothing => true,
        }
    }
}

pub(crate) fn is_safe(method: &Method) -> bool {
    method.is_safe()
}

/// First wait; doubled for each further attempt.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The wait before attempt `next` (the first retry is 1), if there is to be one: the call may be
/// repeated, the ending may pass, and the wait ends before the deadline. `random` is from 0 to 1.
pub(crate) fn wait(
    ending: Ending,
    repeatable: bool,
    next: u32,
    retries: u32,
    left: Duration,
    random: f64,
) -> Option<Duration> {
    if !repeatable || next > retries || !ending.may_pass() {
        return None;
    }
    let backoff = (FIRST * 2u32.saturating_pow(next - 1)).min(LONGEST);
    // Half fixed, half random: callers that failed together do not come back together.
    let backoff = backoff / 2 + backoff.mul_f64(random.clamp(0.0, 1.0) / 2.0);
    let asked = match ending {
        Ending::Answered { retry_after, .. } => retry_after.unwrap_or_default(),
        Ending::Nothing => Duration::ZERO,
    };
    let wait = backoff.max(asked);
    (wait < left).then_some(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn answered(status: u16) -> Ending {
        Ending::Answered {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
        }
    }

    #[test]
    fn only_what_may_pass_and_may_be_repeated_is_tried_again() {
        for (status, again) in [
            (200, false),
            (404, false),
            (429, true),
            (500, false),
            (501, false),
            (502, true),
            (503, true),
        ] {
            assert_eq!(
                wait(answered(status), true, 1, 3, MINUTE, 0.5).is_some(),
                again,
                "{status}"
            );
            assert_eq!(wait(answered(status), false, 1, 3, MINUTE, 0.5), None);
        }
        assert!(wait(Ending::Nothing, true, 3, 3, MINUTE, 0.5).is_some());
        assert_eq!(wait(Ending::Nothing, true, 4, 3, MINUTE, 0.5), None);
        assert!(!is_safe(&Method::POST) && !is_safe(&Method::PUT) && is_safe(&Method::GET));
    }

    #[test]
    fn the_other_sides_wish_is_followed_within_the_deadline() {
        let busy = Ending::Answered {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: Some(Duration::from_secs(3)),
        };
        assert_eq!(
            wait(busy, true, 1, 3, MINUTE, 0.5),
            Some(Duration::from_secs(3))
        );
        assert_eq!(wait(busy, true, 1, 3, Duration::from_secs(2), 0.5), None);
    }

    proptest! {
        #[test]
        fn waits_grow_and_are_bounded(next in 1..40u32, random in 0.0..1.0f64) {
            let pause = wait(Ending::Nothing, true, next, 100, MINUTE, random).unwrap();
            prop_assert!(pause >= FIRST / 2 && pause <= LONGEST);
        }
    }
}
