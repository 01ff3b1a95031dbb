//! amqprs: it publishes without waiting and tells of confirms in a callback.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amqprs::callbacks::ChannelCallback;
use amqprs::channel::{
    BasicAckArguments, BasicConsumeArguments, BasicPublishArguments, BasicQosArguments, Channel,
    ConfirmSelectArguments,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::consumer::AsyncConsumer;
use amqprs::{Ack, BasicProperties, Cancel, CloseChannel, Deliver, Nack, Return};
use async_trait::async_trait;
use tokio::sync::Notify;

use crate::cost::Stopwatch;
use crate::harness::Result;
use crate::messaging::{EXCHANGE, OrderPlaced, TYPE, event};

/// Opens a connection to the same place.
async fn connect(url: &str) -> Result<Connection> {
    let (user, rest) = url
        .strip_prefix("amqp://")
        .and_then(|rest| rest.split_once(':'))
        .ok_or("a URL without a user")?;
    let (password, rest) = rest.split_once('@').ok_or("a URL without a password")?;
    let (address, vhost) = rest.split_once('/').ok_or("a URL without a vhost")?;
    let (host, port) = address.split_once(':').ok_or("a URL without a port")?;
    let mut arguments = OpenConnectionArguments::new(host, port.parse()?, user, password);
    arguments.virtual_host(vhost);
    Ok(Connection::open(&arguments).await?)
}

/// Publishes with at most so many unconfirmed; how many that was in a second.
pub async fn publish(url: &str, count: u64, window: u64) -> Result<f64> {
    let connection = connect(url).await?;
    let channel = connection.open_channel(None).await?;
    let confirmed = Arc::new(Confirmed::default());
    channel
        .register_callback(Confirms(Arc::clone(&confirmed)))
        .await?;
    channel
        .confirm_select(ConfirmSelectArguments::default())
        .await?;
    let stopwatch = Stopwatch::start();
    for sent in 0..count {
        confirmed.reaches((sent + 1).saturating_sub(window)).await?;
        let body = serde_json::to_vec(&event())?;
        let mut properties = BasicProperties::default();
        properties
            .with_persistence(true)
            .with_content_type("application/json")
            .with_message_id(&sent.to_string());
        let mut arguments = BasicPublishArguments::new(EXCHANGE, TYPE);
        arguments.mandatory(true);
        channel
            .basic_publish(properties, body, arguments.finish())
            .await?;
    }
    confirmed.reaches(count).await?;
    let figure = stopwatch.per_second(count as f64);
    close(channel, connection).await?;
    Ok(figure)
}

/// Consumes and acknowledges; how many that was in a second.
pub async fn consume(url: &str, queue: &str, count: u64, prefetch: u16) -> Result<f64> {
    let connection = connect(url).await?;
    let channel = connection.open_channel(None).await?;
    channel
        .basic_qos(BasicQosArguments::new(0, prefetch, false))
        .await?;
    let handled = Arc::new(Confirmed::default());
    let stopwatch = Stopwatch::start();
    let mut arguments = BasicConsumeArguments::new(queue, "bench");
    arguments.manual_ack(true);
    channel
        .basic_consume(Handler(Arc::clone(&handled)), arguments.finish())
        .await?;
    handled.reaches(count).await?;
    let figure = stopwatch.per_second(count as f64);
    // Acknowledgements of what was delivered beyond the count may follow the close, which fails then.
    let _ = close(channel, connection).await;
    Ok(figure)
}

async fn close(channel: Channel, connection: Connection) -> Result<()> {
    channel.close().await?;
    connection.close().await?;
    Ok(())
}

/// How many are done: one queue confirms in the order of publishing.
#[derive(Default)]
struct Confirmed {
    count: AtomicU64,
    changed: Notify,
}

impl Confirmed {
    fn is(&self, count: u64) {
        self.count.fetch_max(count, Ordering::Release);
        self.changed.notify_one();
    }

    async fn reaches(&self, count: u64) -> Result<()> {
        while self.count.load(Ordering::Acquire) < count {
            tokio::time::timeout(PATIENCE, self.changed.notified()).await?;
        }
        Ok(())
    }
}

struct Confirms(Arc<Confirmed>);

#[async_trait]
impl ChannelCallback for Confirms {
    async fn close(
        &mut self,
        _: &Channel,
        _: CloseChannel,
    ) -> std::result::Result<(), amqprs::error::Error> {
        Ok(())
    }

    async fn cancel(
        &mut self,
        _: &Channel,
        _: Cancel,
    ) -> std::result::Result<(), amqprs::error::Error> {
        Ok(())
    }

    async fn flow(
        &mut self,
        _: &Channel,
        active: bool,
    ) -> std::result::Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        self.0.is(ack.delivery_tag());
    }

    // What is refused or returned is never confirmed, and the wait for it ends in an error.
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {}

    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}

struct Handler(Arc<Confirmed>);

#[async_trait]
impl AsyncConsumer for Handler {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        _: BasicProperties,
        content: Vec<u8>,
    ) {
        let event = serde_json::from_slice::<OrderPlaced>(&content);
        let tag = deliver.delivery_tag();
        let acked = channel.basic_ack(BasicAckArguments::new(tag, false)).await;
        // What could not be handled is missing in the end.
        if std::hint::black_box(event).is_ok() && acked.is_ok() {
            self.0.is(tag);
        }
    }
}

const PATIENCE: Duration = Duration::from_mins(1);
