//! lapin without anything around it: naively, and tuned by hand.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::{mpsc, oneshot};

use crate::cost::Stopwatch;
use crate::harness::{Result, per_second};
use crate::messaging::{EXCHANGE, OrderPlaced, TYPE, event};

/// Awaits each confirm before the next publish.
pub async fn publish_each(channel: &Channel, count: u32) -> Result<f64> {
    let stopwatch = Stopwatch::start();
    for _ in 0..count {
        confirmed(send(channel, body()?).await?.await?)?;
    }
    Ok(stopwatch.per_second(f64::from(count)))
}

/// One task that publishes, with a bounded number of confirms awaited at a time.
pub async fn publish_in_window(channel: &Channel, count: u32, window: usize) -> Result<f64> {
    let stopwatch = Stopwatch::start();
    let mut confirms = FuturesUnordered::new();
    for _ in 0..count {
        if confirms.len() >= window
            && let Some(confirm) = confirms.next().await
        {
            confirmed(confirm?)?;
        }
        confirms.push(send(channel, body()?).await?);
    }
    while let Some(confirm) = confirms.next().await {
        confirmed(confirm?)?;
    }
    Ok(stopwatch.per_second(f64::from(count)))
}

/// What a careful hand writes for a service: many tasks that publish, and one that owns the channel, the
/// only safe way to share one. It polls publish and confirm of a message as one future.
pub async fn publish_through_an_owner(
    channel: &Channel,
    tasks: u32,
    each: u32,
    window: usize,
) -> Result<f64> {
    let (requests, mut queue) = mpsc::channel::<(Vec<u8>, oneshot::Sender<Result<()>>)>(window);
    let owned = channel.clone();
    let owner = tokio::spawn(async move {
        let mut confirms = FuturesUnordered::new();
        let channel = &owned;
        loop {
            tokio::select! {
                biased;
                Some(()) = confirms.next() => {}
                request = queue.recv(), if confirms.len() < window => {
                    let Some((body, reply)) = request else { break };
                    confirms.push(async move {
                        let stored = async {
                            let confirm = send(channel, body).await?;
                            confirmed(confirm.await?)
                        };
                        // Whoever asked has gone only if the bench has failed.
                        let _ = reply.send(stored.await);
                    });
                }
            }
        }
        while confirms.next().await.is_some() {}
    });
    let figure = per_second(tasks, each, || {
        let requests = requests.clone();
        async move {
            for _ in 0..each {
                let (reply, answer) = oneshot::channel();
                requests.send((body()?, reply)).await?;
                answer.await??;
            }
            Ok(())
        }
    })
    .await?;
    drop(requests);
    owner.await?;
    Ok(figure)
}

/// Consumes and acknowledges, many acknowledgements at a time or one by one.
pub async fn consume(
    connection: &Connection,
    queue: &str,
    count: u32,
    prefetch: u16,
    concurrent: bool,
) -> Result<f64> {
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await?;
    let stopwatch = Stopwatch::start();
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut acks = FuturesUnordered::new();
    for _ in 0..count {
        let delivery = deliveries.next().await.ok_or("the consumer ended")??;
        std::hint::black_box(serde_json::from_slice::<OrderPlaced>(&delivery.data)?);
        let acker = delivery.acker;
        let ack = async move { acker.ack(BasicAckOptions::default()).await };
        if concurrent {
            acks.push(ack);
            if acks.len() >= usize::from(prefetch) / 4 {
                acks.next().await.transpose()?;
            }
        } else {
            ack.await?;
        }
    }
    while acks.next().await.transpose()?.is_some() {}
    let figure = stopwatch.per_second(f64::from(count));
    channel.close(200, "done".into()).await?;
    Ok(figure)
}

/// Empties a queue.
pub async fn purge(channel: &Channel, queue: &str) -> Result<()> {
    channel
        .queue_purge(queue.into(), QueuePurgeOptions::default())
        .await?;
    Ok(())
}

fn body() -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&event())?)
}

async fn send(channel: &Channel, body: Vec<u8>) -> Result<lapin::PublisherConfirm> {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id("0198c1a2-0000-7000-8000-000000000000".into())
        .with_type(TYPE.into());
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let confirm = channel
        .basic_publish(EXCHANGE.into(), TYPE.into(), options, &body, properties)
        .await?;
    Ok(confirm)
}

fn confirmed(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not stored: {other:?}").into()),
    }
}
