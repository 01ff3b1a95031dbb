//! One delivery, from the broker to its settlement.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::amqp::chain;
use crate::backoff::Backoff;
use crate::client::Inner;
use crate::consumer::{Spec, age};
use crate::envelope::{CAUSE, Envelope};
use crate::error::{Error, ErrorKind};
use crate::handler::{HandlerError, MessageContext, Reaction};
use crate::retry::{self, DeadReason, Failure, Route};
use crate::transport::{Incoming, Outgoing};
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

    /// Says what could not be settled: the broker delivers it again, here or elsewhere.
    pub(crate) fn settled(&self, settled: Result<(), Error>) {
        if let Err(error) = settled {
            self.spec.metrics.unsettled.increment();
            tracing::warn!(
                queue = self.spec.queue,
                error = %error,
                cause = %chain(&error),
                "a delivery could not be settled; it will come again"
            );
        }
    }
}

/// Handles and settles one delivery. The permit is given back when the handler has ended: settling
/// is a wait on the broker, and bounded by the prefetch.
pub(crate) async fn work(desk: &Desk, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let envelope = match decode(&incoming) {
        Ok(envelope) => envelope,
        Err(failure) => {
            drop(permit);
            return desk.settled(settle_failed(desk, incoming, 0, &failure).await);
        }
    };
    let Some(mut turn) = desk.spec.in_flight.enter(envelope.message_id).await else {
        drop(permit);
        return desk.settled(settle_ok(&desk.spec, incoming).await);
    };
    let attempt = envelope.attempt;
    let outcome = handle(desk, &incoming, envelope).await;
    drop(permit);
    desk.note(&outcome);
    desk.settled(match outcome {
        Ok(()) => {
            turn.succeeded();
            settle_ok(&desk.spec, incoming).await
        }
        Err(failure) => settle_failed(desk, incoming, attempt, &failure).await,
    });
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

pub(crate) async fn settle_ok(spec: &Spec, incoming: Incoming) -> Result<(), Error> {
    incoming.settle.ack().await?;
    spec.metrics.acked.increment();
    Ok(())
}

/// Copies the message to where it goes, waits for the confirm, and only then acknowledges: a crash
/// between the two leaves two, never none.
pub(crate) async fn settle_failed(
    desk: &Desk,
    incoming: Incoming,
    attempt: u32,
    failure: &Failure,
) -> Result<(), Error> {
    let Desk {
        inner, spec, drain, ..
    } = desk;
    let service = inner.service();
    let origin = retry::origin(
        &incoming.properties,
        &incoming.exchange,
        &incoming.routing_key,
    );
    let now = SystemTime::now();
    let (exchange, routing_key, properties, done) =
        match retry::route(failure, attempt, inner.config.retry_delays()) {
            Route::Rung { delay, attempt } => (
                retry::rung(service, delay),
                spec.queue.as_str(),
                retry::retried(&incoming.properties, &origin, attempt, now),
                &spec.metrics.retried,
            ),
            Route::Dead(reason) => {
                tracing::error!(
                    queue = spec.queue,
                    reason = reason.as_str(),
                    message_id = incoming
                        .properties
                        .message_id()
                        .as_ref()
                        .map(tracing::field::display),
                    error_type = failure.error_type,
                    error = failure.message,
                    "a message goes to the dead-letter queue"
                );
                let attempts = attempt.saturating_add(u32::from(
                    reason == DeadReason::Exhausted || reason == DeadReason::Poison,
                ));
                (
                    service.direct_exchange(),
                    spec.dead_letter_queue.as_str(),
                    retry::dead(
                        &incoming.properties,
                        &origin,
                        attempts,
                        reason,
                        failure,
                        &inner.config.identity,
                        now,
                    ),
                    &spec.metrics.dead_lettered,
                )
            }
            Route::Back => {
                pause(drain, Duration::from_secs(1)).await;
                spec.metrics.returned.increment();
                return incoming.settle.requeue().await;
            }
        };
    let copy = Arc::new(Outgoing {
        exchange: exchange.as_str().into(),
        routing_key: routing_key.into(),
        properties,
        body: incoming.body.clone(),
    });
    match send_copy(inner, spec, drain, copy).await {
        Ok(()) => {
            incoming.settle.ack().await?;
            done.increment();
            Ok(())
        }
        Err(error) => {
            tracing::warn!(
                queue = spec.queue,
                error = %error,
                cause = %chain(&error),
                "the copy of a failed message was not stored; the message goes back to its queue"
            );
            spec.metrics.returned.increment();
            incoming.settle.requeue().await
        }
    }
}

/// Publishes a copy until the broker has it; the delivery is held meanwhile, which slows the
/// subscription down by itself. Given up after some tries, or on drain.
async fn send_copy(
    inner: &Arc<Inner>,
    spec: &Spec,
    drain: &CancellationToken,
    copy: Arc<Outgoing>,
) -> Result<(), Error> {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    loop {
        let deadline = Instant::now() + inner.config.confirm_timeout;
        let sent = match inner.broker.send(Arc::clone(&copy), deadline).await {
            Ok(pending) => pending.await,
            Err(error) => Err(error),
        };
        let error = match sent {
            Ok(stored) if stored.routed => return Ok(()),
            Ok(_) => {
                // Somebody deleted a rung or the dead-letter queue: put it back.
                let missing = Error::new(
                    ErrorKind::Unroutable,
                    format!("publishing to `{}`: its queue is gone", copy.exchange),
                );
                match inner.broker.declare(&spec.topology).await {
                    Ok(()) => missing,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if backoff.attempts() >= COPY_ATTEMPTS || drain.is_cancelled() {
            return Err(error);
        }
        pause(drain, backoff.next()).await;
    }
}

pub(crate) async fn pause(drain: &CancellationToken, time: Duration) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Beyond this the message is better back in its queue: another replica may reach the broker.
const COPY_ATTEMPTS: u32 = 5;
