//! The answer to a delivery once its handler has ended: acknowledged, or copied to where it goes
//! next and then acknowledged.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::amqp::chain;
use crate::backoff::Backoff;
use crate::client::Inner;
use crate::consumer::Spec;
use crate::delivery::Desk;
use crate::envelope;
use crate::error::{Error, ErrorKind};
use crate::retry::{self, DeadReason, Failure, Route};
use crate::transport::{Incoming, Outgoing};

impl Desk {
    /// Acknowledges.
    pub(crate) async fn handled(&self, incoming: Incoming) {
        let span = self.span(&incoming);
        span.record(OPERATION, "ack");
        let acked = incoming.settle.ack().instrument(span.clone()).await;
        if acked.is_ok() {
            self.spec.metrics.acked.increment();
        }
        self.settled(&span, acked);
    }

    /// Retries, dead-letters or gives back, as the failure says.
    pub(crate) async fn failed(&self, incoming: Incoming, attempt: u32, failure: &Failure) {
        let span = self.span(&incoming);
        let settled = settle_failed(self, incoming, attempt, failure)
            .instrument(span.clone())
            .await;
        self.settled(&span, settled);
    }

    /// In the trace of the message, beside its handler's span.
    fn span(&self, incoming: &Incoming) -> Span {
        if !tracing::span_enabled!(tracing::Level::INFO) {
            return Span::none();
        }
        envelope::context(&incoming.properties).span(|| {
            tracing::info_span!(
                "settle",
                otel.name = format_args!("settle {}", self.spec.queue),
                otel.kind = "client",
                otel.status_code = tracing::field::Empty,
                messaging.system = "rabbitmq",
                messaging.operation.name = tracing::field::Empty,
                messaging.operation.r#type = "settle",
                messaging.destination.name = self.spec.queue,
                messaging.message.id = incoming
                    .properties
                    .message_id()
                    .as_ref()
                    .map(tracing::field::display),
            )
        })
    }

    /// Says what could not be settled: the broker delivers it again, here or elsewhere.
    fn settled(&self, span: &Span, settled: Result<(), Error>) {
        if let Err(error) = settled {
            span.record("otel.status_code", "ERROR");
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

/// Copies the message to where it goes, waits for the confirm, and only then acknowledges: a crash
/// between the two leaves two, never none.
async fn settle_failed(
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
    let operation = Span::current();
    let (exchange, routing_key, properties, done) =
        match retry::route(failure, attempt, inner.config.retry_delays()) {
            Route::Rung { delay, attempt } => {
                operation.record(OPERATION, "retry");
                (
                    retry::rung(service, delay),
                    spec.queue.as_str(),
                    retry::retried(&incoming.properties, &origin, attempt, now),
                    &spec.metrics.retried,
                )
            }
            Route::Dead(reason) => {
                operation.record(OPERATION, "dead-letter");
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
                operation.record(OPERATION, "requeue");
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
            operation.record(OPERATION, "requeue");
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

const OPERATION: &str = "messaging.operation.name";
/// Beyond this the message is better back in its queue: another replica may reach the broker.
const COPY_ATTEMPTS: u32 = 5;
