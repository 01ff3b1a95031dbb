//! The HTTP side of a service: requests measured and traced, and the operational routes.

mod figures;
mod operations;
mod scrape;
mod server;
#[cfg(feature = "otlp")]
mod server_span;
#[cfg(not(feature = "otlp"))]
#[path = "http/server_span_absent.rs"]
mod server_span;
mod tracked;

pub(crate) use figures::method;
pub use operations::Operations;
pub use server::{ServerLayer, ServerService};
