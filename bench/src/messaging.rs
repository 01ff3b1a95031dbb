//! `maestro-messaging` beside lapin, amqprs and aio-pika: events of one kibibyte, persistent, confirmed,
//! in a quorum queue.

mod aio_pika;
mod amqprs;
mod outbox;
mod raw;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use maestro_messaging::{Event, Messaging, MessagingConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::cost::Stopwatch;
use crate::harness::{Comparison, Result, Row, Target, Unit, per_second, versioned};
use crate::sandbox::Place;
use aio_pika::AioPika;
use raw::purge;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OrderPlaced {
    note: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = TYPE;

    fn key(&self) -> Option<Cow<'_, str>> {
        self.key.as_deref().map(Cow::from)
    }
}

/// Where the bench takes place.
struct Ground<'a> {
    messaging: Messaging,
    connection: Connection,
    /// Confirms are on.
    channel: Channel,
    url: &'a str,
    queue: String,
    python: AioPika,
}

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let python = AioPika::new().await?;
    let place = Place::new().await?;
    let messaging = Messaging::connect(place.environment(&[]).read::<MessagingConfig>()?).await?;
    // A queue that wants the events, without anybody reading it.
    let consumer = messaging
        .subscription(SUBSCRIPTION)
        .on("orders", |_: OrderPlaced, _| async { Ok(()) })
        .start()
        .await?;
    consumer.ready().await;
    consumer.drain().await;

    let url = place.variable("MAESTRO_MESSAGING_URL")?;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let ground = Ground {
        messaging,
        connection,
        channel,
        url,
        queue: consumer.queue().to_owned(),
        python,
    };

    let mut rows = publish(&ground, rounds).await?;
    rows.extend(consume(&ground, rounds).await?);
    let database = outbox::Database::new(&place).await?;
    let Ground {
        messaging,
        channel,
        queue,
        ..
    } = &ground;
    rows.extend(outbox::relay(messaging, &database, channel, queue, rounds).await?);
    rows.extend(outbox::notified(messaging, &database, rounds).await?);
    ground.messaging.close().await;
    Ok(rows)
}

async fn publish(ground: &Ground<'_>, rounds: usize) -> Result<Vec<Row>> {
    let Ground {
        channel,
        url,
        queue,
        python,
        ..
    } = ground;
    Comparison::new("publish, confirmed", Unit::PerSecond, rounds, || async {
        emptied(ground, publish_ours(&ground.messaging).await).await
    })
    .peer(
        versioned("lapin", "one task owns the channel"),
        "no envelope, no deadline, no reconnect",
        Target::Ratio(0.9),
        || async {
            let each = PUBLISHED / TASKS;
            emptied(
                ground,
                raw::publish_through_an_owner(channel, TASKS, each, WINDOW).await,
            )
            .await
        },
    )
    .peer(
        versioned("lapin", "one task, window"),
        "no envelope, no deadline, no reconnect",
        Target::None,
        || async {
            emptied(
                ground,
                raw::publish_in_window(channel, PUBLISHED, WINDOW).await,
            )
            .await
        },
    )
    .peer(
        versioned("lapin", "await each"),
        "no envelope, no deadline, no reconnect",
        Target::Ratio(25.0),
        || async {
            emptied(
                ground,
                raw::publish_each(channel, PUBLISHED_ONE_BY_ONE).await,
            )
            .await
        },
    )
    .peer(
        versioned("amqprs", "window"),
        "confirms counted, not matched; no reconnect",
        Target::None,
        || async {
            let window = u64::try_from(WINDOW)?;
            emptied(
                ground,
                amqprs::publish(url, u64::from(PUBLISHED), window).await,
            )
            .await
        },
    )
    .peer(AioPika::name(), "", Target::None, || async {
        let figure = python
            .measure("publish", url, queue, PUBLISHED, TASKS)
            .await;
        emptied(ground, figure).await
    })
    .run()
    .await
}

async fn consume(ground: &Ground<'_>, rounds: usize) -> Result<Vec<Row>> {
    let Ground {
        messaging,
        url,
        queue,
        python,
        ..
    } = ground;
    Comparison::new("consume, acknowledged", Unit::PerSecond, rounds, || async {
        fill(messaging).await?;
        consume_ours(messaging).await
    })
    .peer(
        versioned("lapin", "acks concurrent"),
        "no retry, no dead letter",
        Target::Ratio(0.9),
        || consume_raw(ground, true),
    )
    .peer(
        versioned("lapin", "await each ack"),
        "no retry, no dead letter",
        Target::Ratio(4.0),
        || consume_raw(ground, false),
    )
    .peer(
        versioned("amqprs", "await each ack"),
        "awaits its queue, not the socket",
        Target::None,
        || async {
            fill(messaging).await?;
            amqprs::consume(url, queue, u64::from(CONSUMED), PREFETCH).await
        },
    )
    .peer(AioPika::name(), "", Target::None, || async {
        fill(messaging).await?;
        let prefetch = u32::from(PREFETCH);
        python
            .measure("consume", url, queue, CONSUMED, prefetch)
            .await
    })
    .run()
    .await
}

/// Events that many tasks publish one after the other; how many that was in a second.
async fn publish_ours(messaging: &Messaging) -> Result<f64> {
    let each = PUBLISHED / TASKS;
    per_second(TASKS, each, || {
        let messaging = messaging.clone();
        async move {
            for _ in 0..each {
                if !messaging.publish(&event()).await?.routed() {
                    return Err("an event went nowhere".into());
                }
            }
            Ok(())
        }
    })
    .await
}

async fn consume_ours(messaging: &Messaging) -> Result<f64> {
    let handled = Arc::new((AtomicU32::new(0), Notify::new()));
    let counting = Arc::clone(&handled);
    let stopwatch = Stopwatch::start();
    let consumer = messaging
        .subscription(SUBSCRIPTION)
        .prefetch(PREFETCH)
        .on("orders", move |event: OrderPlaced, _| {
            std::hint::black_box(event);
            if counting.0.fetch_add(1, Ordering::Relaxed) + 1 == CONSUMED {
                counting.1.notify_one();
            }
            async { Ok(()) }
        })
        .start()
        .await?;
    tokio::time::timeout(PATIENCE, handled.1.notified()).await?;
    let figure = stopwatch.per_second(f64::from(CONSUMED));
    consumer.drain().await;
    Ok(figure)
}

async fn consume_raw(ground: &Ground<'_>, concurrent: bool) -> Result<f64> {
    fill(&ground.messaging).await?;
    let (connection, queue) = (&ground.connection, &ground.queue);
    raw::consume(connection, queue, CONSUMED, PREFETCH, concurrent).await
}

/// What was published is taken away before somebody else's turn.
async fn emptied(ground: &Ground<'_>, figure: Result<f64>) -> Result<f64> {
    purge(&ground.channel, &ground.queue).await?;
    figure
}

async fn fill(messaging: &Messaging) -> Result<()> {
    let events = vec![event(); usize::try_from(CONSUMED)?];
    for stored in messaging.publish_batch(&events).await {
        stored?;
    }
    Ok(())
}

fn event() -> OrderPlaced {
    OrderPlaced {
        note: "x".repeat(1_000),
        key: None,
    }
}

const TYPE: &str = "order.placed.v1";
const EXCHANGE: &str = "orders.events";
const SUBSCRIPTION: &str = "bench";
const TASKS: u32 = 256;
const WINDOW: usize = 256;
const PREFETCH: u16 = 300;
const PUBLISHED: u32 = 10_240;
const PUBLISHED_ONE_BY_ONE: u32 = 500;
const CONSUMED: u32 = 10_000;
const PATIENCE: Duration = Duration::from_mins(1);
