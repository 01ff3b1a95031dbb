//! The services' own drivers, so that what is shown is shown by the servers' answers to them.

use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use maestro_testkit::Sandbox;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// One variable of a sandbox's environment.
pub(crate) fn variable(sandbox: &Sandbox, name: &str) -> String {
    let environment = sandbox.environment();
    let pair = environment.into_iter().find(|(found, _)| found == name);
    pair.unwrap_or_else(|| panic!("{name} is not in the environment"))
        .1
}

/// The same URL with another path: another database or vhost.
pub(crate) fn with_path(url: &str, path: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_path(path);
    url.into()
}

pub(crate) async fn postgres(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) async fn redis(url: &str) -> redis::RedisResult<redis::aio::MultiplexedConnection> {
    // By default an answer has half a second, which is short on a loaded machine.
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER))
        .set_response_timeout(Some(ANSWER));
    redis::Client::open(url)?
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

pub(crate) async fn rabbitmq(url: &str) -> lapin::Result<lapin::Channel> {
    let connection =
        lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    connection.create_channel().await
}

/// Declares `<service>.events` and a queue bound to it.
pub(crate) async fn declare(
    channel: &lapin::Channel,
    service: &str,
    queue: &str,
) -> lapin::Result<()> {
    let exchange = format!("{service}.events");
    channel
        .exchange_declare(
            exchange.as_str().into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await?;
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await?;
    channel
        .queue_bind(
            queue.into(),
            exchange.as_str().into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
}

pub(crate) async fn publish(
    channel: &lapin::Channel,
    exchange: &str,
    payload: &[u8],
) -> lapin::Result<()> {
    channel
        .confirm_select(lapin::options::ConfirmSelectOptions::default())
        .await?;
    let confirm = channel
        .basic_publish(
            exchange.into(),
            "order.placed.v1".into(),
            BasicPublishOptions::default(),
            payload,
            BasicProperties::default(),
        )
        .await?;
    confirm.await?;
    Ok(())
}

/// Every message that waits in a queue.
pub(crate) async fn drain(channel: &lapin::Channel, queue: &str) -> lapin::Result<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await?
    {
        messages.push(message.data.clone());
    }
    Ok(messages)
}
