//! Starts the servers of this clone, or joins them, says `ready` and keeps them until its standard
//! input ends: for local work beside the tests, and for `cargo xtask test` ahead of them.
//!
//! ```sh
//! cargo run -p maestro-testkit --example servers    # Ctrl-D ends it
//! ```

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks by printing"
)]

use std::io::Read as _;
use std::process::ExitCode;

use maestro_testkit::{ErrorKind, Stack};

#[tokio::main]
async fn main() -> ExitCode {
    match Stack::start().await {
        Ok(_stack) => {
            println!("ready");
            let mut nothing = Vec::new();
            // An input that cannot be read has ended as well.
            let _ = std::io::stdin().read_to_end(&mut nothing);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            // A caller may be able to install what is missing.
            match error.kind() {
                ErrorKind::Missing => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
