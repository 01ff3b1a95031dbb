//! Deliveries of one queue on one channel.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use crate::amqp::declare::{self, answered};
use crate::amqp::failure;
use crate::amqp::link::Live;
use crate::error::{Error, ErrorKind};
use crate::transport::Incoming;

/// A consumer on its own channel.
pub(crate) struct Deliveries {
    live: Arc<Live>,
    channel: Arc<Channel>,
    consumer: Consumer,
}

impl Deliveries {
    pub(crate) async fn open(
        live: Arc<Live>,
        queue: &str,
        prefetch: u16,
        tag: &str,
    ) -> Result<Self, Error> {
        let channel = live.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        answered(&live, qos, || format!("setting the prefetch of `{queue}`")).await?;
        let consuming = channel.basic_consume(
            queue.into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answered(&live, consuming, || format!("consuming from `{queue}`")).await?;
        Ok(Self {
            live,
            channel: Arc::new(channel),
            consumer,
        })
    }

    /// The next delivery; `None` when the consumer ended, whatever the reason: the queue was
    /// deleted, the channel or the connection failed, or it was cancelled.
    pub(crate) async fn next(&mut self) -> Option<Result<Incoming, Error>> {
        let delivery = tokio::select! {
            biased;
            delivery = self.consumer.next() => delivery?,
            () = self.live.down().cancelled() => return None,
        };
        Some(match delivery {
            Ok(delivery) => Ok(Incoming {
                exchange: delivery.exchange,
                routing_key: delivery.routing_key,
                redelivered: delivery.redelivered,
                properties: delivery.properties,
                body: delivery.data.into(),
                settle: Settle {
                    live: Arc::clone(&self.live),
                    channel: Arc::clone(&self.channel),
                    tag: delivery.delivery_tag,
                },
            }),
            Err(error) => Err(failure::of(&error, "consuming")),
        })
    }

    /// Whether the channel is still open.
    pub(crate) fn is_alive(&self) -> bool {
        self.channel.status().connected() && !self.live.down().is_cancelled()
    }

    /// Asks the broker to send nothing more; what it has sent still comes out of `next`.
    pub(crate) async fn cancel(&self) -> Result<(), Error> {
        let cancelled = self
            .channel
            .basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        answered(&self.live, cancelled, || "cancelling a consumer".to_owned()).await
    }

    /// Closes the channel; the broker takes back whatever is unsettled.
    pub(crate) async fn close(self) {
        declare::close(&self.channel).await;
    }
}

/// The answer to one delivery.
#[derive(Clone)]
pub(crate) struct Settle {
    live: Arc<Live>,
    channel: Arc<Channel>,
    tag: u64,
}

impl Settle {
    /// The message is done.
    pub(crate) async fn ack(self) -> Result<(), Error> {
        let acked = self.channel.basic_ack(self.tag, BasicAckOptions::default());
        self.written(acked, "acknowledging a message").await
    }

    /// The message goes back to the queue.
    pub(crate) async fn requeue(self) -> Result<(), Error> {
        let options = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        let returned = self.channel.basic_nack(self.tag, options);
        self.written(returned, "giving a message back").await
    }

    async fn written(
        &self,
        call: impl Future<Output = lapin::Result<()>>,
        attempted: &str,
    ) -> Result<(), Error> {
        tokio::pin!(call);
        // Nearly always written by the next turn of the driver's thread; the timer is for a
        // connection that has stopped moving.
        match timeout(WRITE_DEADLINE, call).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failure::of(&error, attempted)),
            Err(_) => {
                self.live.fail();
                Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "{attempted}: not written within {WRITE_DEADLINE:?}, the connection is given up"
                    ),
                ))
            }
        }
    }
}

impl std::fmt::Debug for Settle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settle")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

const WRITE_DEADLINE: Duration = Duration::from_secs(10);
