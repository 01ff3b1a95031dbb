//! Benchmarks of the SDK against its peers: one file per bench, [`harness`] beneath them all.

mod cache;
mod cost;
mod db;
mod harness;
mod messaging;
mod metrics;
mod sandbox;
mod testkit;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Run by `cargo xtask bench`.
#[derive(Debug, Parser)]
struct Arguments {
    bench: Bench,

    /// Rounds that count; at least seven
    #[arg(long)]
    rounds: usize,

    /// Where the JSON lines go
    #[arg(long)]
    output: PathBuf,

    /// This is the process that was started with what `sqlx::test` takes from its environment
    #[arg(long, hide = true)]
    inner: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Bench {
    Cache,
    Db,
    Messaging,
    Metrics,
    Testkit,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let cause = error.downcast_ref::<maestro_testkit::Error>();
            match cause.map(maestro_testkit::Error::kind) {
                // The caller may be able to install what is missing.
                Some(maestro_testkit::ErrorKind::Missing) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn run(arguments: &Arguments) -> harness::Result<()> {
    let rows = match arguments.bench {
        Bench::Cache => cache::run(arguments.rounds).await?,
        Bench::Db => db::run(arguments.rounds).await?,
        Bench::Messaging => messaging::run(arguments.rounds).await?,
        Bench::Metrics => metrics::run(arguments.rounds).await?,
        Bench::Testkit if !arguments.inner => return again(&testkit::url().await?).await,
        Bench::Testkit => testkit::run(arguments.rounds).await?,
    };
    println!("\n{}", harness::table(&rows));
    if let Some(costs) = harness::costs(&rows) {
        println!("{costs}");
    }
    harness::write_lines(&rows, &arguments.output)?;
    println!("{}", arguments.output.display());
    Ok(())
}

/// The same command once more, in a process whose environment names the database server.
async fn again(url: &str) -> harness::Result<()> {
    let status = tokio::process::Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--inner")
        .env("DATABASE_URL", url)
        .status()
        .await?;
    if status.success() {
        Ok(())
    } else {
        Err("the inner process failed, see above".into())
    }
}
