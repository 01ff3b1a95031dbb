//! One delivery, from the broker to its settlement.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::client::Inner;
use crate::consumer::{Spec, age};
use crate::envelope::{CAUSE, Envelope};
use crate::handler::{HandlerError, MessageContext, Reaction};
use crate::retry::{DeadReason, Failure};
use crate::transport::Incoming;
use crate::trouble::Trouble;

/// What every handler's task works with.
pub(crate) struct Desk {
    pub(crate) inner: Arc<Inner>,
    pub(crate) spec: Arc<Spec>,
    pub(crate) trouble: Arc<Mutex<Trouble>>,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) drain: CancellationToken,
}

impl Desk {
    /// Notes how handling ended, for slowing down.
    pub(crate) fn note(&self, outcome: &Result<(), Failure>) {
        match outcome {
            Err(failure) if failure.reaction == Reaction::Unavailable => {
                self.trouble.lock().outage();
            }
            _ => self.trouble.lock().recovered(),
        }
    }

    pub(crate) fn context(&self, incoming: &Incoming, envelope: &Arc<Envelope>) -> MessageContext {
        let retries = self.inner.config.retry_delays().len();
        let last = usize::try_from(envelope.attempt).map_or(true, |attempt| attempt >= retries);
        MessageContext::new(
            Arc::clone(envelope),
            Arc::clone(&self.spec.name),
            incoming.redelivered,
            last,
        )
    }
}

/// Handles and settles one delivery. The permit is given back when the handler has ended: settling
/// is a wait on the broker, and bounded by the prefetch.
pub(crate) async fn work(desk: &Desk, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let envelope = match decode(&incoming) {
        Ok(envelope) => envelope,
        Err(failure) => {
            drop(permit);
            return desk.failed(incoming, 0, &failure).await;
        }
    };
    let Some(mut turn) = desk.spec.in_flight.enter(envelope.message_id).await else {
        drop(permit);
        return desk.handled(incoming).await;
    };
    let attempt = envelope.attempt;
    let outcome = handle(desk, &incoming, envelope).await;
    drop(permit);
    desk.note(&outcome);
    match outcome {
        Ok(()) => {
            turn.succeeded();
            desk.handled(incoming).await;
        }
        Err(failure) => desk.failed(incoming, attempt, &failure).await,
    }
}

/// Reads the metadata of a delivery.
pub(crate) fn decode(incoming: &Incoming) -> Result<Arc<Envelope>, Failure> {
    Envelope::decode(&incoming.properties)
        .map(Arc::new)
        .map_err(|malformed| {
            Failure::poison(DeadReason::Malformed, "malformed", &malformed.to_string())
        })
}

/// Runs the handler of one delivery, once.
pub(crate) async fn handle(
    desk: &Desk,
    incoming: &Incoming,
    envelope: Arc<Envelope>,
) -> Result<(), Failure> {
    let spec = &desk.spec;
    let Some(handler) = spec.handlers.get(envelope.event_type.as_str()) else {
        return Err(Failure::poison(
            DeadReason::UnknownType,
            "unknown-type",
            &format!(
                "subscription `{}` has no handler for `{}`",
                spec.name, envelope.event_type
            ),
        ));
    };
    if let Some(age) = age(envelope.published_at) {
        spec.metrics.lag.set(age.as_secs_f64());
    }
    let context = desk.context(incoming, &envelope);
    let scope = envelope.context();
    let span = scope.span(|| {
        tracing::info_span!(
            "process",
            otel.name = envelope.event_type,
            otel.kind = "consumer",
            otel.status_code = tracing::field::Empty,
            messaging.system = "rabbitmq",
            messaging.operation.name = "process",
            messaging.operation.r#type = "process",
            messaging.destination.name = spec.queue,
            messaging.message.id = %envelope.message_id,
            messaging.maestro.attempt = envelope.attempt,
        )
    });
    let started = Instant::now();
    let in_flight = spec.metrics.in_flight.track();
    // Made inside, so that a panic while the handler's future is made is caught as well.
    let run = AssertUnwindSafe(async { handler(&incoming.body, context).await }).catch_unwind();
    let limited = timeout(spec.handler_timeout, run);
    let scoped = scope.scope(CAUSE.scope(envelope.message_id, limited));
    let result = scoped.instrument(span.clone()).await;
    drop(in_flight);
    let Some(failure) = failure(spec, result, started.elapsed()) else {
        return Ok(());
    };
    span.record("otel.status_code", "ERROR");
    span.in_scope(|| {
        tracing::warn!(
            queue = spec.queue,
            event = envelope.event_type,
            message_id = %envelope.message_id,
            attempt = envelope.attempt,
            error_type = failure.error_type,
            error = failure.message,
            cause = failure.chain,
            "handling a message failed"
        );
    });
    Err(failure)
}

/// What a handler returned, caught, and within its limit.
pub(crate) type Outcome =
    Result<Result<Result<(), HandlerError>, Box<dyn Any + Send>>, tokio::time::error::Elapsed>;

/// How a handler failed, if it did; measures how long it took.
pub(crate) fn failure(spec: &Spec, outcome: Outcome, took: Duration) -> Option<Failure> {
    let (metric, failure) = match outcome {
        Ok(Ok(Ok(()))) => (&spec.metrics.succeeded, None),
        Ok(Ok(Err(error))) => (&spec.metrics.failed, Some(Failure::of_handler(&error))),
        Ok(Err(panic)) => (&spec.metrics.panicked, Some(Failure::panic(panic.as_ref()))),
        Err(_) => (
            &spec.metrics.timed_out,
            Some(Failure::timeout(spec.handler_timeout)),
        ),
    };
    metric.observe_duration(took);
    failure
}
