//! Export of spans over OTLP: our own bounded queue, our own thread, our own encoder. The request
//! path only ever pushes into the queue.

mod endpoint;
mod exporter;
mod queue;
mod request;
mod transport;

pub use endpoint::Endpoint;
pub(crate) use exporter::{Exporter, Settings};
pub(crate) use queue::{DropReason, Queue};
pub(crate) use request::Resource;
#[cfg(any(test, fuzzing))]
pub(crate) use request::decode_response;
