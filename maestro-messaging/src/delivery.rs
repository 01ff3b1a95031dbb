//! One delivery, from the broker to its settlement.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::amqp::chain;
use crate::backoff::Backoff;
use crate::client::Inner;
use crate::consumer::{Spec, age};
use crate::envelope::{CAUSE, Envelope};
use crate::error::{Error, ErrorKind};
use crate::handler::{MessageContext, Reaction};
use crate::retry::{self, DeadReason, Failure, Route};
use crate::transport::{Incoming, Outgoing};
use crate::trouble::Trouble;

pub(crate) struct Work {
    pub(crate) inner: Arc<Inner>,
    pub(crate) spec: Arc<Spec>,
    pub(crate) trouble: Arc<Mutex<Trouble>>,
    pub(crate) drain: CancellationToken,
    pub(crate) incoming: Incoming,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Handles and settles one delivery. The permit is given back when the handler has ended: settling
/// is a wait on the broker, and bounded by the prefetch.
pub(crate) async fn work(work: Work) {
    let Work {
        inner,
        spec,
        trouble,
        drain,
        incoming,
        permit,
    } = work;
    let decoded = Envelope::decode(&incoming.properties).map(Arc::new);
    let attempt = decoded.as_ref().map_or(0, |envelope| envelope.attempt);
    let outcome = match decoded {
        Ok(envelope) => handle(&inner, &spec, &incoming, envelope).await,
        Err(malformed) => Err(Failure::poison(
            DeadReason::Malformed,
            "malformed",
            &malformed.to_string(),
        )),
    };
    drop(permit);
    match &outcome {
        Err(failure) if failure.reaction == Reaction::Unavailable => trouble.lock().outage(),
        _ => trouble.lock().recovered(),
    }
    let settled = match outcome {
        Ok(()) => settle_ok(&spec, incoming).await,
        Err(failure) => settle_failed(&inner, &spec, &drain, incoming, attempt, &failure).await,
    };
    if let Err(error) = settled {
        // The broker delivers it again: to this consumer, or to another one.
        spec.metrics.unsettled.increment();
        tracing::warn!(
            queue = spec.queue,
            error = %error,
            cause = %chain(&error),
            "a delivery could not be settled; it will come again"
        );
    }
}

async fn handle(
    inner: &Arc<Inner>,
    spec: &Spec,
    incoming: &Incoming,
    envelope: Arc<Envelope>,
) -> Result<(), Failure> {
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
    let last = usize::try_from(envelope.attempt)
        .map_or(true, |attempt| attempt >= inner.config.retry_delays().len());
    let context = MessageContext::new(
        Arc::clone(&envelope),
        Arc::clone(&spec.name),
        incoming.redelivered,
        last,
    );
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
    let limited = tokio::time::timeout(spec.handler_timeout, run);
    let scoped = scope.scope(CAUSE.scope(envelope.message_id, limited));
    let result = scoped.instrument(span.clone()).await;
    drop(in_flight);
    let took = started.elapsed();
    let failure = match result {
        Ok(Ok(Ok(()))) => {
            spec.metrics.succeeded.observe_duration(took);
            return Ok(());
        }
        Ok(Ok(Err(error))) => {
            spec.metrics.failed.observe_duration(took);
            Failure::of_handler(&error)
        }
        Ok(Err(panic)) => {
            spec.metrics.panicked.observe_duration(took);
            Failure::panic(panic.as_ref())
        }
        Err(_) => {
            spec.metrics.timed_out.observe_duration(took);
            Failure::timeout(spec.handler_timeout)
        }
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

async fn settle_ok(spec: &Spec, incoming: Incoming) -> Result<(), Error> {
    incoming.settle.ack().await?;
    spec.metrics.acked.increment();
    Ok(())
}

/// Copies the message to where it goes, waits for the confirm, and only then acknowledges: a crash
/// between the two leaves two, never none.
async fn settle_failed(
    inner: &Arc<Inner>,
    spec: &Spec,
    drain: &CancellationToken,
    incoming: Incoming,
    attempt: u32,
    failure: &Failure,
) -> Result<(), Error> {
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

async fn pause(drain: &CancellationToken, time: Duration) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

/// Beyond this the message is better back in its queue: another replica may reach the broker.
const COPY_ATTEMPTS: u32 = 5;
