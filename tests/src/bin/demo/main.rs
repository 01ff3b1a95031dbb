//! The demo: two services on real servers, through everything that can happen to them.
//!
//! `cargo xtask demo` builds the services and runs this; `--keep` leaves everything running.
#![allow(
    clippy::print_stdout,
    reason = "printing what happened is what a demo does"
)]

mod report;
mod story;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let keep = std::env::args().any(|argument| argument == "--keep");
    match story::tell(keep).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("\nThe demo stopped: {error:?}");
            let cause = error.downcast_ref::<maestro_testkit::Error>();
            match cause.map(maestro_testkit::Error::kind) {
                // The caller may be able to install what is missing.
                Some(maestro_testkit::ErrorKind::Missing) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
