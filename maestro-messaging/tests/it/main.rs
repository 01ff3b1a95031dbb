//! The crate on a real RabbitMQ.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test says what it expects by unwrapping; nobody links it"
)]

#[cfg(feature = "outbox")]
mod catalogue;
mod cluster;
#[cfg(feature = "memory")]
mod conformance;
mod consume;
mod dead_letters;
mod faults;
mod nodes;
mod ordered;
#[cfg(feature = "outbox")]
mod outbox;
mod publish;
mod python;
mod security;
mod support;
#[cfg(feature = "outbox")]
mod survival;
mod tls;
