//! One randomised fault campaign; `cargo xtask soak` builds and runs this.
#![allow(
    clippy::print_stdout,
    reason = "a campaign tells every step, so that a failure can be replayed"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use maestro_tests::soak::{self, Plan};

/// One randomised fault campaign.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    campaign: Campaign,
    /// Where all random decisions come from
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// How long faults are caused
    #[arg(long, global = true, default_value_t = 1.0)]
    minutes: f64,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Campaign {
    /// SIGTERM at random moments under HTTP and message load
    Drain {
        /// How many times; --minutes plays no part
        #[arg(long, default_value_t = 500)]
        rounds: u32,
    },
    /// A backlog of the outbox, drained by two relays
    Backlog {
        /// How many events; --minutes plays no part
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
    },
    /// Publish, consume and relay while the broker and replicas die
    Messaging,
    /// Futures of maestro-db dropped at random points, 10,000 and more
    Db,
    /// Two processes on one Redis, while networks, Redis and processes fail
    Cache,
    /// One of the processes of `cache`
    #[command(hide = true)]
    CacheSide(soak::cache::Role),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    let plan = Plan::new(arguments.seed, length);
    if let Campaign::CacheSide(role) = &arguments.campaign {
        return side(role, arguments.seed).await;
    }
    println!("seed {}, {} minutes", arguments.seed, arguments.minutes);
    let outcome: anyhow::Result<()> = match arguments.campaign {
        Campaign::Drain { rounds } => soak::drain::run(&plan, rounds).await,
        Campaign::Backlog { rows } => soak::backlog::run(&plan, rows).await,
        Campaign::Messaging => soak::messaging::run(plan).await,
        Campaign::Db => soak::db::run(&plan, 10_000).await,
        Campaign::Cache => cache(&plan).await,
        Campaign::CacheSide(_) => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe campaign failed: {error:?}");
            println!("The same decisions again: --seed {}", arguments.seed);
            let cause = error.downcast_ref::<maestro_testkit::Error>();
            match cause.map(maestro_testkit::Error::kind) {
                // The caller may be able to install what is missing.
                Some(maestro_testkit::ErrorKind::Missing) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn cache(plan: &Plan) -> anyhow::Result<()> {
    soak::cache::run(plan, &std::env::current_exe()?).await
}

/// Its output is a report, so what went wrong goes to standard error.
#[allow(clippy::print_stderr, reason = "read beside the campaign's steps")]
async fn side(role: &soak::cache::Role, seed: u64) -> ExitCode {
    match soak::cache::run_side(role, seed).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("a process of the campaign failed: {error:?}");
            ExitCode::FAILURE
        }
    }
}
