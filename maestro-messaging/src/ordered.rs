//! A delivery of an ordered subscription: retried where it is, because a rung would let later ones
//! of its key overtake it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::delivery::{self, Desk};
use crate::envelope::Envelope;
use crate::retry::{DeadReason, Route, route};
use crate::settlement;
use crate::transport::Incoming;

/// Handles one delivery until it succeeds or is given up. While it waits for a retry, its key waits
/// with it, and its room is free for others.
pub(crate) async fn work(desk: &Desk, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let mut envelope = match delivery::decode(&incoming) {
        Ok(envelope) => envelope,
        Err(failure) => {
            drop(permit);
            return desk.failed(incoming, 0, &failure).await;
        }
    };
    let mut permit = Some(permit);
    loop {
        let outcome = delivery::handle(desk, &incoming, Arc::clone(&envelope)).await;
        desk.note(&outcome);
        drop(permit.take());
        let failure = match outcome {
            Ok(()) => return desk.handled(incoming).await,
            Err(failure) => failure,
        };
        let rungs = desk.inner.config.retry_delays();
        let (wait, attempt) = match route(&failure, envelope.attempt, rungs) {
            Route::Rung { delay, attempt } => (delay, attempt),
            Route::Back => (WITHOUT_RUNGS, envelope.attempt),
            Route::Dead(DeadReason::Exhausted) if desk.spec.parks_keys => {
                let longest = rungs.iter().max().copied();
                (longest.unwrap_or(WITHOUT_RUNGS), envelope.attempt)
            }
            Route::Dead(_) => {
                let attempt = envelope.attempt;
                return desk.failed(incoming, attempt, &failure).await;
            }
        };
        settlement::pause(&desk.drain, wait).await;
        if desk.drain.is_cancelled() {
            // Unsettled: it returns to its place in the queue with the channel.
            return;
        }
        envelope = Arc::new(Envelope {
            attempt,
            ..Envelope::clone(&envelope)
        });
        // Fails only if the semaphore is closed, which it never is.
        permit = Arc::clone(&desk.slots).acquire_owned().await.ok();
    }
}

/// The pause where no rungs are configured.
const WITHOUT_RUNGS: Duration = Duration::from_secs(1);
