//! Deliveries of one queue on one channel.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use crate::amqp::declare::{self, answered};
use crate::amqp::failure;
use crate::amqp::links::Place;
use crate::error::{Error, ErrorKind};
use crate::transport::{Deliveries, Incoming, Settle, Settlement};

/// A consumer on its own channel.
pub(crate) struct Consuming {
    on: Arc<OpenChannel>,
    consumer: Consumer,
}

struct OpenChannel {
    place: Place,
    channel: Channel,
}

impl Consuming {
    pub(crate) async fn open(
        place: Place,
        queue: &str,
        prefetch: u16,
        tag: &str,
    ) -> Result<Self, Error> {
        let live = &place.live;
        let channel = live.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        answered(live, qos, || format!("setting the prefetch of `{queue}`")).await?;
        let consuming = channel.basic_consume(
            queue.into(),
            tag.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let turn = live.turn().await;
        let consumer = answered(live, consuming, || format!("consuming from `{queue}`"))
            .await
            .map_err(|error| failure::of_opening(error, queue))?;
        drop(turn);
        Ok(Self {
            on: Arc::new(OpenChannel { place, channel }),
            consumer,
        })
    }

    /// Ends when the queue was deleted, the channel or the connection failed, or it was cancelled.
    async fn delivered(&mut self) -> Option<Result<Incoming, Error>> {
        let delivery = tokio::select! {
            biased;
            delivery = self.consumer.next() => delivery?,
            () = self.on.place.live.down().cancelled() => return None,
        };
        Some(match delivery {
            Ok(delivery) => Ok(Incoming {
                exchange: delivery.exchange,
                routing_key: delivery.routing_key,
                redelivered: delivery.redelivered,
                properties: delivery.properties,
                body: delivery.data.into(),
                settle: Settle::new(
                    Arc::clone(&self.on) as Arc<dyn Settlement>,
                    delivery.delivery_tag,
                ),
                held: None,
            }),
            Err(error) => Err(failure::of(&error, "consuming")),
        })
    }
}

impl Deliveries for Consuming {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Incoming, Error>>> {
        self.delivered().boxed()
    }

    fn is_alive(&self) -> bool {
        self.on.channel.status().connected() && !self.on.place.live.down().is_cancelled()
    }

    fn cancel(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            let on = &self.on;
            let cancelled = on
                .channel
                .basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
            answered(&on.place.live, cancelled, || {
                "cancelling a consumer".to_owned()
            })
            .await
        }
        .boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        async move { declare::close(&self.on.channel).await }.boxed()
    }
}

impl Settlement for OpenChannel {
    fn ack(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        self.written(acked, "acknowledging a message").boxed()
    }

    fn requeue(&self, tag: u64) -> BoxFuture<'_, Result<(), Error>> {
        let options = BasicNackOptions {
            requeue: true,
            multiple: false,
        };
        let returned = self.channel.basic_nack(tag, options);
        self.written(returned, "giving a message back").boxed()
    }
}

impl OpenChannel {
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
                self.place.live.fail();
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

const WRITE_DEADLINE: Duration = Duration::from_secs(10);
