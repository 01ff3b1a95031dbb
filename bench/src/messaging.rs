//! `maestro-messaging` beside raw lapin: events of one kibibyte, persistent, confirmed, in a quorum
//! queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use maestro_messaging::{Event, Messaging, MessagingConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::harness::{Comparison, Result, Row, Target, Unit, per_second, versioned};
use crate::sandbox::Place;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OrderPlaced {
    note: String,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed.v1";
}

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
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

    let mut rows = publish(&messaging, &channel, consumer.queue(), rounds).await?;
    rows.extend(consume(&messaging, &connection, &channel, consumer.queue(), rounds).await?);
    messaging.close().await;
    Ok(rows)
}

async fn publish(
    messaging: &Messaging,
    channel: &Channel,
    queue: &str,
    rounds: usize,
) -> Result<Vec<Row>> {
    let each = PUBLISHED / TASKS;
    Comparison::new("publish, confirmed", Unit::PerSecond, rounds, || async {
        let figure = per_second(TASKS, each, || through_ours(messaging.clone(), each)).await?;
        purge(channel, queue).await?;
        Ok(figure)
    })
    .peer(
        versioned("lapin", "one task, window"),
        "no envelope, no deadline, no reconnect",
        Target::Ratio(0.9),
        || async {
            let started = Instant::now();
            publish_in_window(channel, PUBLISHED).await?;
            let figure = f64::from(PUBLISHED) / started.elapsed().as_secs_f64();
            purge(channel, queue).await?;
            Ok(figure)
        },
    )
    .peer(
        versioned("lapin", "await each"),
        "no envelope, no deadline, no reconnect",
        Target::Ratio(25.0),
        || async {
            let started = Instant::now();
            for _ in 0..PUBLISHED_ONE_BY_ONE {
                confirmed(send(channel).await?.await?)?;
            }
            let figure = f64::from(PUBLISHED_ONE_BY_ONE) / started.elapsed().as_secs_f64();
            purge(channel, queue).await?;
            Ok(figure)
        },
    )
    .run()
    .await
}

async fn consume(
    messaging: &Messaging,
    connection: &Connection,
    publishing: &Channel,
    queue: &str,
    rounds: usize,
) -> Result<Vec<Row>> {
    Comparison::new("consume, acknowledged", Unit::PerSecond, rounds, || async {
        fill(messaging).await?;
        let handled = Arc::new((AtomicU32::new(0), Notify::new()));
        let counting = Arc::clone(&handled);
        let started = Instant::now();
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
        let figure = f64::from(CONSUMED) / started.elapsed().as_secs_f64();
        consumer.drain().await;
        purge(publishing, queue).await?;
        Ok(figure)
    })
    .peer(
        versioned("lapin", "acks concurrent"),
        "no retry, no dead letter",
        Target::Ratio(0.9),
        || take(messaging, connection, publishing, queue, true),
    )
    .peer(
        versioned("lapin", "await each ack"),
        "no retry, no dead letter",
        Target::Ratio(4.0),
        || take(messaging, connection, publishing, queue, false),
    )
    .run()
    .await
}

async fn through_ours(messaging: Messaging, each: u32) -> Result<()> {
    let event = event();
    for _ in 0..each {
        if !messaging.publish(&event).await?.routed() {
            return Err("an event went nowhere".into());
        }
    }
    Ok(())
}

/// Sends on one task, with a bounded number of confirms awaited at a time: lapin's fastest safe way.
async fn publish_in_window(channel: &Channel, count: u32) -> Result<()> {
    let mut confirms = FuturesUnordered::new();
    for _ in 0..count {
        if confirms.len() >= WINDOW
            && let Some(confirm) = confirms.next().await
        {
            confirmed(confirm?)?;
        }
        confirms.push(send(channel).await?);
    }
    while let Some(confirm) = confirms.next().await {
        confirmed(confirm?)?;
    }
    Ok(())
}

async fn send(channel: &Channel) -> Result<lapin::PublisherConfirm> {
    let body = serde_json::to_vec(&event())?;
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_type(OrderPlaced::TYPE.into());
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let exchange = "orders.events".into();
    let key = OrderPlaced::TYPE.into();
    Ok(channel
        .basic_publish(exchange, key, options, &body, properties)
        .await?)
}

fn confirmed(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not confirmed: {other:?}").into()),
    }
}

async fn take(
    messaging: &Messaging,
    connection: &Connection,
    publishing: &Channel,
    queue: &str,
    concurrent: bool,
) -> Result<f64> {
    fill(messaging).await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let started = Instant::now();
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut acks = FuturesUnordered::new();
    for _ in 0..CONSUMED {
        let delivery = deliveries.next().await.ok_or("the consumer ended")??;
        std::hint::black_box(serde_json::from_slice::<OrderPlaced>(&delivery.data)?);
        let acker = delivery.acker;
        let ack = async move { acker.ack(BasicAckOptions::default()).await };
        if concurrent {
            acks.push(ack);
            if acks.len() >= usize::from(PREFETCH) / 4 {
                acks.next().await.transpose()?;
            }
        } else {
            ack.await?;
        }
    }
    while acks.next().await.transpose()?.is_some() {}
    let figure = f64::from(CONSUMED) / started.elapsed().as_secs_f64();
    channel.close(200, "done".into()).await?;
    purge(publishing, queue).await?;
    Ok(figure)
}

async fn fill(messaging: &Messaging) -> Result<()> {
    let events = vec![event(); usize::try_from(CONSUMED)?];
    for stored in messaging.publish_batch(&events).await {
        stored?;
    }
    Ok(())
}

async fn purge(channel: &Channel, queue: &str) -> Result<()> {
    channel
        .queue_purge(queue.into(), QueuePurgeOptions::default())
        .await?;
    Ok(())
}

fn event() -> OrderPlaced {
    OrderPlaced {
        note: "x".repeat(1_000),
    }
}

const SUBSCRIPTION: &str = "bench";
const TASKS: u32 = 256;
const WINDOW: usize = 256;
const PREFETCH: u16 = 300;
const PUBLISHED: u32 = 10_240;
const PUBLISHED_ONE_BY_ONE: u32 = 500;
const CONSUMED: u32 = 10_000;
const PATIENCE: Duration = Duration::from_mins(1);
