//! Services, events and conditions shared by the tests.

use std::borrow::Cow;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use maestro_config::Environment;
use maestro_messaging::{Consumer, ConsumerState, DeadLetters, Event, Messaging, MessagingConfig};
use maestro_testkit::{Origin, Sandbox, Server, Service, Stack};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use uuid::Uuid;

/// An event with a number, so that tests can count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    pub number: u64,
    pub key: String,
}

impl Event for Placed {
    const TYPE: &'static str = "order.placed.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.key.as_str().into())
    }
}

/// An event nobody is bound for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ignored {
    pub number: u64,
}

impl Event for Ignored {
    const TYPE: &'static str = "order.ignored.v1";
}

/// An event whose queue is full.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Surplus {
    pub number: u64,
}

impl Event for Surplus {
    const TYPE: &'static str = "order.surplus.v1";
}

pub fn placed(number: u64) -> Placed {
    Placed {
        number,
        key: format!("key-{}", number % 10),
    }
}

/// A place on the shared RabbitMQ.
pub async fn sandbox() -> Sandbox {
    let stack = Stack::builder()
        .only([Service::Rabbitmq])
        .start()
        .await
        .unwrap();
    stack.sandbox("orders").await.unwrap()
}

/// A RabbitMQ of the test's own, with a place on it.
pub async fn dedicated() -> (Stack, Sandbox) {
    let stack = Stack::builder()
        .only([Service::Rabbitmq])
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    (stack, sandbox)
}

/// Nothing is given up early: on a machine that is busy with other tests a broker answers late.
const PATIENT: (&str, &str) = ("CONFIRM_TIMEOUT", "60s");

pub fn config(sandbox: &Sandbox, extra: &[(&str, &str)]) -> MessagingConfig {
    let mut pairs = sandbox.environment();
    let patient = !extra.iter().any(|(name, _)| *name == PATIENT.0);
    for (name, value) in extra.iter().chain(patient.then_some(&PATIENT)) {
        pairs.push((format!("MAESTRO_MESSAGING_{name}"), (*value).to_owned()));
    }
    Environment::from_pairs(pairs).read().unwrap()
}

pub async fn client(sandbox: &Sandbox, extra: &[(&str, &str)]) -> Messaging {
    Messaging::connect(config(sandbox, extra)).await.unwrap()
}

/// Waits for a condition; a test that waits longer than this has failed.
pub async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    within(Duration::from_mins(2), what, condition).await;
}

pub async fn within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Around the condition too: it may be what never answers.
    let held = tokio::time::timeout(limit, wait).await;
    assert!(held.is_ok(), "not within {limit:?}: {what}");
}

/// The broker as seen past the SDK, as the service's own user.
pub struct Raw {
    connection: lapin::Connection,
}

impl Raw {
    fn url(sandbox: &Sandbox) -> String {
        let mut pairs = sandbox.direct_environment().into_iter();
        let found = pairs.find(|(name, _)| name == "MAESTRO_MESSAGING_URL");
        found.unwrap().1
    }

    /// The sandbox's own.
    pub fn vhost(sandbox: &Sandbox) -> String {
        let url: url::Url = Self::url(sandbox).parse().unwrap();
        url.path().trim_start_matches('/').to_owned()
    }

    pub async fn connect(sandbox: &Sandbox) -> Self {
        let url = Self::url(sandbox);
        let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default())
            .await
            .unwrap();
        Self { connection }
    }

    pub async fn channel(&self) -> lapin::Channel {
        self.connection.create_channel().await.unwrap()
    }

    /// Messages ready in a queue; `None` if it does not exist.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        let channel = self.channel().await;
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await;
        declared.ok().map(|queue| queue.message_count())
    }

    /// Waits until so many messages are ready in a queue: counts follow what was confirmed.
    pub async fn holds(&self, queue: &str, messages: u32) {
        eventually(&format!("`{queue}` holds {messages}"), || async {
            self.depth(queue).await == Some(messages)
        })
        .await;
    }

    pub async fn declare_events(&self, exchange: &str) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.channel()
            .await
            .exchange_declare(
                exchange.into(),
                lapin::ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        self.channel()
            .await
            .queue_bind(
                queue.into(),
                exchange.into(),
                key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        self.channel()
            .await
            .queue_unbind(
                queue.into(),
                exchange.into(),
                key.into(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    pub async fn delete(&self, queue: &str) {
        let channel = self.channel().await;
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }
}

/// Waits until there are so many dead letters; a count can fail, as everything over a network.
pub async fn dead(letters: &DeadLetters, count: u64) {
    eventually(&format!("there are {count} dead letters"), || async {
        letters.count().await.is_ok_and(|counted| counted == count)
    })
    .await;
}

/// Waits until a consumer consumes all it subscribed to.
pub async fn consuming(consumer: &Consumer) {
    eventually("it consumes", || async {
        consumer.state() == ConsumerState::Consuming
    })
    .await;
}

/// Sets the memory limit of a dedicated broker, as an operator would.
pub async fn set_memory_limit(broker: &Server, relative: &str) {
    control(broker, &["set_vm_memory_high_watermark", relative]).await;
}

/// Sets how many channels a dedicated broker allows on each connection that is opened from now on.
pub async fn limit_channels(broker: &Server, most: u16) {
    let set = format!("application:set_env(rabbit, channel_max, {most}).");
    control(broker, &["eval", &set]).await;
}

/// Takes the process of a quorum queue away for good, and leaves the queue: what a broker has that was
/// killed while the queue was deleted.
pub async fn break_queue(broker: &Server, vhost: &str, queue: &str) {
    let process = format!("{{'{vhost}_{queue}', node()}}");
    let delete = format!("ra:force_delete_server(quorum_queues, {process}).");
    control(broker, &["eval", &delete]).await;
}

async fn control(broker: &Server, arguments: &[&str]) {
    let port = broker.authority().rsplit(':').next().unwrap().to_owned();
    let mut command = match broker.origin() {
        Origin::Local => rabbitmqctl(&port),
        _ => in_container(&port).await,
    };
    command.args(arguments);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The command for a broker of this machine; its node and cookie are in its process' environment.
fn rabbitmqctl(port: &str) -> Command {
    let wanted = format!("RABBITMQ_NODE_PORT={port}");
    let environment = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("environ")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .find(|environment| environment.split('\0').any(|pair| pair == wanted))
        .unwrap();
    let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
    command.env_clear().envs(
        environment
            .split('\0')
            .filter_map(|pair| pair.split_once('=')),
    );
    command
}

async fn in_container(port: &str) -> Command {
    let listed = Command::new("docker")
        .args(["ps", "-q", "--filter", &format!("publish={port}")])
        .output()
        .await
        .unwrap();
    let id = String::from_utf8(listed.stdout).unwrap();
    let mut command = Command::new("docker");
    command.args(["exec", id.trim(), "rabbitmqctl"]);
    command
}

/// Publishes as a service would that must not lose an event: until the broker confirms, under the
/// same identity.
pub async fn publish_for_sure(messaging: &Messaging, number: u64, retries: &AtomicU64) -> Uuid {
    let id = Uuid::now_v7();
    loop {
        match messaging.publish(&placed(number)).message_id(id).await {
            Ok(receipt) => {
                assert_eq!(receipt.message_id(), id);
                return id;
            }
            Err(error) if error.is_transient() => {
                retries.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
