//! `cargo xtask bench`.

use std::process::{Command, ExitCode};

use clap::{Args, ValueEnum};

use crate::failure::{Failure, Result};
use crate::process;
use crate::servers;
use crate::workspace::Workspace;

/// Time ours beside its peers: the same work, in one run, in turns.
///
/// Prints a table and writes `target/bench/NAME.jsonl`. Figures of different runs or machines are
/// not to be compared; the ratio of ours to a peer, higher is better, is the result. A missed
/// target is shown and is no error.
///
/// Builds `bench/` (a workspace of its own, release profile): two to six minutes the first time on
/// two cores. The benches of clients run on real servers, found like those of `cargo xtask test`. A
/// run takes one to three minutes; let nothing else run meanwhile.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to time
    name: Bench,

    /// Rounds that count, after one that does not; at least seven
    #[arg(long, default_value_t = 7)]
    rounds: u32,

    #[command(flatten)]
    servers: servers::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Hits in memory and in Redis, beside redis-rs, fred, rustis, amalgam-cache, `quick_cache` and moka
    Cache,
    /// Queries through the pool, beside sqlx's own, deadpool-postgres, bb8 and tokio-postgres
    Db,
    /// Confirmed publishing and acknowledged consuming, beside raw lapin
    Messaging,
    /// Metric handles and their encoding, beside the `prometheus` crate; needs no server
    Metrics,
    /// From nothing to a migrated database that answers, beside `sqlx::test`
    Testkit,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.name.needs_servers() {
        servers::make_available(&options.servers, servers::For::Servers)?;
    }
    let name = options.name.to_possible_value();
    let name = name.as_ref().map_or("", |value| value.get_name());
    let workspace = Workspace::load()?;
    let output = workspace.target.join(format!("bench/{name}.jsonl"));
    let time = || {
        let mut command = cargo(&workspace, "run");
        command
            .args(["--release", "--"])
            .args([name, "--rounds", &options.rounds.to_string(), "--output"])
            .arg(&output);
        if let Some(mode) = options.servers.dev_services() {
            command.env("MAESTRO_DEV_SERVICES", mode);
        }
        process::status(&mut command)
    };
    let status = servers::providing_some(&options.servers, time)?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(format!("the bench did not run: {status}")))
}

/// One cargo command on the workspace of the benches, which builds where this one does: what both
/// build alike is built once.
pub(crate) fn cargo(workspace: &Workspace, word: &str) -> Command {
    let mut command = process::cargo();
    command
        .args([word, "--manifest-path=bench/Cargo.toml", "--target-dir"])
        .arg(&workspace.target);
    command
}

impl Bench {
    fn needs_servers(self) -> bool {
        self != Self::Metrics
    }
}
