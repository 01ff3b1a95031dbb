//! RabbitMQ for Maestro services: confirmed publishing, retries, dead letters, outbox and inbox.
//!
//! ```no_run
//! use maestro_config::Environment;
//! use maestro_messaging::{Event, Filter, Messaging, MessagingConfig};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderPlaced {
//!     order_id: String,
//!     total_cents: i64,
//! }
//! impl Event for OrderPlaced {
//!     const TYPE: &'static str = "order.placed.v1";
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Environment::load()?.read::<MessagingConfig>()?;
//! let messaging = Messaging::connect(config).await?;
//!
//! // Resolves when the broker has it on disk in every queue that wants it.
//! let receipt = messaging.publish(&OrderPlaced { order_id: "7".into(), total_cents: 1250 }).await?;
//! println!("routed: {}", receipt.routed());
//!
//! // A durable queue of this service; acknowledged after the handler, retried when it fails.
//! let consumer = messaging
//!     .subscription("billing")
//!     .on("quality-fabric", |event: OrderPlaced, context| async move {
//!         println!("{} for {} cents", context.message_id(), event.total_cents);
//!         Ok(())
//!     })
//!     .start()
//!     .await?;
//!
//! // What failed for good waits in the dead-letter queue, with the reason.
//! messaging.dead_letters("billing").replay(Filter::all()).await?;
//! consumer.drain().await;
//! messaging.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! The guarantees: a publish that returned `Ok` is on disk in every queue that wanted it; a message
//! leaves its queue only when its handler returned `Ok`, or when a confirmed copy waits on a retry
//! rung or in the dead-letter queue. So nothing is lost, and a message can come twice: make effects
//! idempotent, or use the inbox (feature `outbox`).

mod address;
mod amqp;
mod attendance;
mod backoff;
mod batch;
mod broadcast;
mod builder;
#[cfg_attr(
    not(feature = "outbox"),
    allow(
        dead_code,
        reason = "holding a key back is the relay's; ordered consumers use the rest"
    )
)]
mod chains;
mod client;
mod config;
mod consumer;
mod dead_letters;
mod delivery;
mod envelope;
mod error;
mod event;
mod foreign;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handler;
mod headers;
mod health;
mod in_flight;
mod intake;
#[cfg(feature = "memory")]
mod memory;
mod metrics;
mod monitor;
mod ordered;
#[cfg(feature = "outbox")]
pub mod outbox;
mod publish;
mod retry;
mod running;
mod settlement;
mod subscription;
mod topology;
mod transport;
mod trouble;

/// The guide's snippets, compiled.
#[cfg(all(doctest, feature = "outbox"))]
#[doc = include_str!("../../docs/messaging.md")]
struct Guide;

pub use batch::Received;
pub use broadcast::{Broadcast, Lag, Missed, Subscriber};
pub use builder::Builder;
pub use client::Messaging;
pub use config::MessagingConfig;
pub use dead_letters::{DeadLetter, DeadLetters, Filter, Sorted};
pub use envelope::Envelope;
pub use error::{BoxError, Error, ErrorKind};
pub use event::Event;
pub use handler::{HandlerError, MessageContext};
#[cfg(feature = "memory")]
pub use memory::MemoryBroker;
pub use metrics::CATALOGUE;
pub use publish::{Publish, Receipt};
pub use retry::DeadReason;
pub use running::{Consumer, ConsumerState, Drained};
pub use subscription::Subscription;
