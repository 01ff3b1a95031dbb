//! Scenarios over all crates, on real servers: two example services as processes, and what happens to
//! them when a server dies, the other way round, or everything stops.

mod platform;
mod process;

pub use platform::{Binaries, Platform, Provisioned};
pub use process::{POLL, Process, http, percentile, until};
