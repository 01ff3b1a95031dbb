//! Many deliveries handled together.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use crate::delivery::{self, Desk};
use crate::envelope::Envelope;
use crate::event::Event;
use crate::handler::{HandlerError, HandlerFuture, MessageContext, Undecodable};
use crate::retry::{DeadReason, Failure};
use crate::transport::Incoming;

/// One event of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Received<E> {
    /// The event.
    pub event: E,
    /// What is known about its message.
    pub context: MessageContext,
}

/// A batch handler with its event type erased. The other half of the answer are the deliveries that
/// are no such event, by position.
pub(crate) type BatchHandler = Arc<
    dyn Fn(
            Vec<(bytes::Bytes, MessageContext)>,
        ) -> (Option<HandlerFuture>, Vec<(usize, Undecodable)>)
        + Send
        + Sync,
>;

pub(crate) fn erase<E, F, Fut>(handler: F) -> BatchHandler
where
    E: Event,
    F: Fn(Vec<Received<E>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Arc::new(move |bodies| {
        let mut events = Vec::with_capacity(bodies.len());
        let mut undecodable = Vec::new();
        for (at, (body, context)) in bodies.into_iter().enumerate() {
            match serde_json::from_slice(&body) {
                Ok(event) => events.push(Received { event, context }),
                Err(error) => undecodable.push((at, Undecodable::new(error))),
            }
        }
        let future: Option<HandlerFuture> = if events.is_empty() {
            None
        } else {
            Some(Box::pin(handler(events)))
        };
        (future, undecodable)
    })
}

/// Handles and settles a batch. One that fails is handled again, each message alone: a bad one then
/// fails alone.
pub(crate) async fn work(desk: &Desk, deliveries: Vec<Incoming>, permit: OwnedSemaphorePermit) {
    let mut batch = Vec::with_capacity(deliveries.len());
    let mut unreadable = Vec::new();
    for incoming in deliveries {
        match readable(desk, &incoming) {
            Ok(envelope) => batch.push((incoming, envelope)),
            Err(failure) => unreadable.push((incoming, failure)),
        }
    }
    let mut failed = Vec::new();
    let mut handled = Vec::new();
    if !batch.is_empty() {
        match run(desk, &batch).await {
            Ok(bad) => sort(batch, bad, &mut handled, &mut failed),
            Err(failure) if batch.len() == 1 => {
                failed.extend(
                    batch
                        .into_iter()
                        .map(|(incoming, envelope)| (incoming, envelope.attempt, failure.clone())),
                );
            }
            Err(_) => {
                for one in batch {
                    let alone = vec![one];
                    match run(desk, &alone).await {
                        Ok(bad) => sort(alone, bad, &mut handled, &mut failed),
                        Err(failure) => {
                            failed.extend(alone.into_iter().map(|(incoming, envelope)| {
                                (incoming, envelope.attempt, failure.clone())
                            }));
                        }
                    }
                }
            }
        }
    }
    drop(permit);
    join_all(handled.into_iter().map(async |incoming| {
        desk.handled(incoming).await;
    }))
    .await;
    for (incoming, failure) in unreadable {
        failed.push((incoming, 0, failure));
    }
    join_all(
        failed
            .into_iter()
            .map(async |(incoming, attempt, failure)| {
                desk.failed(incoming, attempt, &failure).await;
            }),
    )
    .await;
}

type Item = (Incoming, Arc<Envelope>);

fn readable(desk: &Desk, incoming: &Incoming) -> Result<Arc<Envelope>, Failure> {
    let envelope = delivery::decode(incoming)?;
    match &desk.spec.batch {
        Some((event_type, _)) if envelope.event_type == *event_type => Ok(envelope),
        _ => Err(Failure::poison(
            DeadReason::UnknownType,
            "unknown-type",
            &format!(
                "subscription `{}` has no handler for `{}`",
                desk.spec.name, envelope.event_type
            ),
        )),
    }
}

/// Runs the handler once for these; `Ok` with those that are no such event.
async fn run(desk: &Desk, batch: &[Item]) -> Result<Vec<(usize, Undecodable)>, Failure> {
    let spec = &desk.spec;
    let Some((event_type, handler)) = &spec.batch else {
        return Ok(Vec::new());
    };
    let bodies = batch
        .iter()
        .map(|(incoming, envelope)| (incoming.body.clone(), desk.context(incoming, envelope)))
        .collect();
    let span = tracing::info_span!(
        "process",
        otel.name = event_type,
        otel.kind = "consumer",
        otel.status_code = tracing::field::Empty,
        messaging.system = "rabbitmq",
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = spec.queue,
        messaging.batch.message_count = batch.len(),
    );
    if !span.is_disabled() {
        for (_, envelope) in batch {
            // One span has one parent: each message's trace gets one that the batch is linked to.
            let context = envelope.context();
            span.follows_from(context.span(|| received(&spec.queue, envelope)));
        }
    }
    let started = Instant::now();
    let in_flight = spec.metrics.in_flight.track();
    let mut bad = Vec::new();
    let run = AssertUnwindSafe(async {
        let (future, undecodable) = handler(bodies);
        bad = undecodable;
        match future {
            Some(future) => future.await,
            None => Ok(()),
        }
    })
    .catch_unwind();
    let outcome = timeout(spec.handler_timeout, run)
        .instrument(span.clone())
        .await;
    drop(in_flight);
    let outcome = match delivery::failure(spec, outcome, started.elapsed()) {
        None => Ok(()),
        Some(failure) => Err(failure),
    };
    desk.note(&outcome);
    if let Err(failure) = &outcome {
        span.record("otel.status_code", "ERROR");
        span.in_scope(|| {
            tracing::warn!(
                queue = spec.queue,
                messages = batch.len(),
                error_type = failure.error_type,
                error = failure.message,
                cause = failure.chain,
                "handling a batch failed"
            );
        });
    }
    outcome.map(|()| bad)
}

/// A message of a batch, in the trace of its publisher.
fn received(queue: &str, envelope: &Envelope) -> tracing::Span {
    tracing::info_span!(
        "receive",
        otel.name = envelope.event_type,
        otel.kind = "consumer",
        messaging.system = "rabbitmq",
        messaging.operation.name = "receive",
        messaging.operation.r#type = "receive",
        messaging.destination.name = queue,
        messaging.message.id = %envelope.message_id,
    )
}

fn sort(
    batch: Vec<Item>,
    bad: Vec<(usize, Undecodable)>,
    handled: &mut Vec<Incoming>,
    failed: &mut Vec<(Incoming, u32, Failure)>,
) {
    let mut bad = bad.into_iter().peekable();
    for (at, (incoming, envelope)) in batch.into_iter().enumerate() {
        match bad.next_if(|(position, _)| *position == at) {
            Some((_, error)) => {
                let failure = Failure::of_handler(&HandlerError::undecodable(error));
                failed.push((incoming, envelope.attempt, failure));
            }
            None => handled.push(incoming),
        }
    }
}
