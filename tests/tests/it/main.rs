//! Scenarios over all crates on real servers.
#![allow(clippy::print_stderr, reason = "figures belong beside the verdict")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "what a test expects is its message when it fails"
)]

mod catalogue;
mod coherence;
mod configuration;
mod dedicated;
mod drain;
mod observe;
mod provisioning;
mod readme;
mod secrets;
mod soak;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use maestro_tests::Binaries;

/// Longest wait for a service to become ready on servers that run, on a busy machine.
const BOOT: Duration = Duration::from_mins(2);
/// Longest wait for a run to complete.
const SETTLE: Duration = Duration::from_mins(2);
/// Longest wait for a service to stop. Its own deadline is 30 s, and its exit code says whether it was
/// kept; a busy machine may be late to start and to end it.
const STOP: Duration = Duration::from_mins(1);
/// A ladder short enough to wait for.
const LADDER: (&str, &str) = ("MAESTRO_MESSAGING_RETRY_DELAYS", "200ms,500ms,1s");

fn binaries() -> Binaries {
    Binaries {
        fabric: PathBuf::from(env!("CARGO_BIN_EXE_fabric-process")),
        conductor: PathBuf::from(env!("CARGO_BIN_EXE_conductor-process")),
    }
}
