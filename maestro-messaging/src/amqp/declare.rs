//! Sends a topology to the broker.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use tokio::time::timeout;

use crate::amqp::link::Live;
use crate::amqp::version::Version;
use crate::amqp::{difference, failure};
use crate::error::{Error, ErrorKind};
use crate::topology::{self, Binding, DeliveryLimit, Queue, Routing, Topology};

/// Declares exchanges, queues and own bindings, on a channel of its own: a refusal closes the
/// channel it happens on.
pub(crate) async fn declare(live: &Live, topology: &Topology) -> Result<(), Error> {
    let _turn = live.errand().await;
    let mut channel = live.channel().await?;
    for exchange in &topology.exchanges {
        let kind = match exchange.routing {
            Routing::Topic => ExchangeKind::Topic,
            Routing::Direct => ExchangeKind::Direct,
            Routing::Fanout => ExchangeKind::Fanout,
        };
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel.exchange_declare(
            exchange.name.as_str().into(),
            kind,
            options,
            FieldTable::default(),
        );
        answered(live, declared, || {
            format!("declaring exchange `{}`", exchange.name)
        })
        .await?;
    }
    for queue in &topology.queues {
        declare_queue(live, &mut channel, queue).await?;
    }
    for binding in &topology.bindings {
        bind(live, &channel, binding).await?;
    }
    close(&channel).await;
    Ok(())
}

/// Binds to an exchange of another service, on a channel of its own: if the exchange does not exist
/// yet, the broker answers 404 and closes the channel.
pub(crate) async fn bind_foreign(live: &Live, binding: &Binding) -> Result<(), Error> {
    let _turn = live.errand().await;
    let channel = live.channel().await?;
    bind(live, &channel, binding).await?;
    close(&channel).await;
    Ok(())
}

/// Removes a binding; one that is not there is no error.
pub(crate) async fn unbind(live: &Live, binding: &Binding) -> Result<(), Error> {
    let _turn = live.errand().await;
    let channel = live.channel().await?;
    let unbound = channel.queue_unbind(
        binding.queue.as_str().into(),
        binding.exchange.as_str().into(),
        binding.routing_key.as_str().into(),
        FieldTable::default(),
    );
    answered(live, unbound, || {
        format!("unbinding `{}` from `{}`", binding.queue, binding.exchange)
    })
    .await?;
    close(&channel).await;
    Ok(())
}

/// Messages ready and consumers of a queue, which has to exist.
pub(crate) async fn count(live: &Live, queue: &str) -> Result<(u64, u64), Error> {
    let _turn = live.errand().await;
    let channel = live.channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let counted = channel.queue_declare(queue.into(), options, FieldTable::default());
    let counted = answered(live, counted, || {
        format!("counting the messages of `{queue}`")
    })
    .await?;
    close(&channel).await;
    Ok((
        u64::from(counted.message_count()),
        u64::from(counted.consumer_count()),
    ))
}

pub(crate) async fn close(channel: &Channel) {
    // A channel that does not close in time goes with its connection.
    let _ = timeout(ANSWER_DEADLINE, channel.close(200, "done".into())).await;
}

/// One answer of the broker, with a deadline; without one the connection is given up.
pub(crate) async fn answered<T>(
    live: &Live,
    call: impl Future<Output = lapin::Result<T>>,
    attempted: impl Fn() -> String,
) -> Result<T, Error> {
    match timeout(ANSWER_DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure::of(&error, &attempted())),
        Err(_) => {
            live.fail();
            Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "{}: no answer within {ANSWER_DEADLINE:?}, the connection is given up",
                    attempted()
                ),
            ))
        }
    }
}

async fn bind(live: &Live, channel: &Channel, binding: &Binding) -> Result<(), Error> {
    let bound = channel.queue_bind(
        binding.queue.as_str().into(),
        binding.exchange.as_str().into(),
        binding.routing_key.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answered(live, bound, || {
        format!(
            "binding `{}` to `{}` for `{}`",
            binding.queue, binding.exchange, binding.routing_key
        )
    })
    .await
}

async fn declare_queue(live: &Live, channel: &mut Channel, queue: &Queue) -> Result<(), Error> {
    let switches_off = live
        .version()
        .is_some_and(Version::switches_delivery_limit_off);
    let limit = match queue.delivery_limit {
        DeliveryLimit::Off if !switches_off => DeliveryLimit::Unset,
        limit => limit,
    };
    let Err(error) = try_queue(live, channel, queue, limit).await else {
        return Ok(());
    };
    if error.kind() != ErrorKind::Conflict {
        return Err(error);
    }
    // The refusal has closed the channel.
    *channel = live.channel().await?;
    if limit == DeliveryLimit::Off {
        // Made by a broker before 4.0, which has been upgraded since: it works, but the new
        // default limit holds for it.
        if try_queue(live, channel, queue, DeliveryLimit::Unset)
            .await
            .is_ok()
        {
            tracing::warn!(
                queue = queue.name,
                "this queue was made before the broker's upgrade to 4.x and has its default delivery limit of 20 now: listing it often can empty it; set a policy with `delivery-limit: -1` for it"
            );
            return Ok(());
        }
        *channel = live.channel().await?;
    }
    Err(migration(queue, error))
}

async fn try_queue(
    live: &Live,
    channel: &Channel,
    queue: &Queue,
    limit: DeliveryLimit,
) -> Result<(), Error> {
    let declared = channel.queue_declare(
        queue.name.as_str().into(),
        QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        },
        arguments(queue, limit),
    );
    answered(live, declared, || {
        format!("declaring queue `{}`", queue.name)
    })
    .await?;
    Ok(())
}

/// Says which argument differs and what to do about it.
fn migration(queue: &Queue, error: Error) -> Error {
    let difference = difference::read(&failure::chain(&error));
    topology::conflict(&queue.name, difference.as_ref()).with_source(error)
}

fn arguments(queue: &Queue, limit: DeliveryLimit) -> FieldTable {
    let mut table = FieldTable::default();
    let mut text = |name: &str, value: &str| {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    text("x-queue-type", "quorum");
    if let Some(dead) = &queue.dead_letter {
        text("x-dead-letter-exchange", &dead.exchange);
        if let Some(key) = &dead.routing_key {
            text("x-dead-letter-routing-key", key);
        }
        text("x-dead-letter-strategy", "at-least-once");
        text("x-overflow", "reject-publish");
    }
    let mut number = |name: &str, value: i64| {
        table.insert(name.into(), AMQPValue::LongLongInt(value));
    };
    if let Some(ttl) = queue.time_to_live {
        number(
            "x-message-ttl",
            i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX),
        );
    }
    if let Some(length) = queue.max_length {
        number("x-max-length", i64::try_from(length).unwrap_or(i64::MAX));
    }
    match limit {
        DeliveryLimit::Times(times) => number("x-delivery-limit", i64::from(times)),
        DeliveryLimit::Off => number("x-delivery-limit", -1),
        DeliveryLimit::Unset => {}
    }
    if queue.single_active_consumer {
        table.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    table
}

/// A quorum queue is created in tens of milliseconds; a cluster that elects a leader takes seconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
