//! Scenarios over all crates, on real servers: two example services as processes, and what happens to
//! them when a server dies, the other way round, or everything stops.

pub mod canary;
mod collector;
mod load;
mod platform;
mod process;
pub mod soak;

pub use collector::{Collector, Span};
pub use load::{Load, Outcome};
pub use platform::{Binaries, Platform, Provisioned};
pub use process::{POLL, Process, free_address, http, percentile, until};
