//! `cargo xtask soak`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Args, ValueEnum};

use crate::failure::{Failure, Result};
use crate::process::{self, announce};
use crate::servers;
use crate::workspace::Workspace;

/// Drive one crate with random operations and random faults, and balance the books afterwards.
///
/// Brings servers of its own and kills, pauses and cuts them. Every fault is printed with its time;
/// the same seed takes the same decisions. Exits with 0 only if the ledger, which is kept outside the
/// SDK, balances. `cargo xtask test` runs a short share of each campaign with a fixed seed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which campaign
    name: Campaign,

    /// Where all random decisions come from
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How long faults are caused; what was begun is then finished and counted
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,

    /// How many times; of `drain`, for which --minutes plays no part [default: 500]
    #[arg(long)]
    rounds: Option<u32>,

    /// How many events; of `backlog`, for which --minutes plays no part [default: 1000000]
    #[arg(long)]
    rows: Option<u64>,

    /// How many transactions, each way; of `tenants`, for which --minutes plays no part
    #[arg(long, default_value_t = 10_000)]
    transactions: u64,

    #[command(flatten)]
    servers: servers::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Campaign {
    /// SIGTERM at random moments under HTTP and message load
    Drain,
    /// A backlog of the outbox, drained by two relays
    Backlog,
    /// Publish, consume and relay while the broker and replicas die
    Messaging,
    /// Futures of maestro-db dropped at random points, 10,000 and more
    Db,
    /// Two tenants on one connection, and on two sessions of this machine's PgBouncer, cancelled and
    /// panicking: nobody sees another's row, with row-level security and with schemas
    Tenants,
    /// Two processes on one Redis, while networks, Redis and processes fail
    Cache,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    // A campaign kills its servers, so it never takes somebody else's.
    let servers = options.servers.clone().own();
    if options.name == Campaign::Tenants {
        // It is a test, and one of those that need more than the servers: PgBouncer.
        servers::make_available(&servers, servers::For::Tests)?;
        return tenants(options, &servers);
    }
    servers::make_available(&servers, servers::For::Servers)?;

    announce("building the campaigns");
    let started = Instant::now();
    process::run(process::cargo().args(["build", "--bins", "--package", "maestro-tests"]))?;
    announce(&format!("built in {}", process::elapsed(started.elapsed())));

    let name = options.name.to_possible_value();
    let name = name.as_ref().map_or("", |value| value.get_name());
    let rage = || {
        let mut soak = Command::new(workspace.target.join("debug/soak"));
        soak.current_dir(crate::workspace::root())
            .args([name, "--seed", &options.seed.to_string()])
            .args(["--minutes", &options.minutes.to_string()]);
        if let Some(rounds) = options.rounds {
            soak.args(["--rounds", &rounds.to_string()]);
        }
        if let Some(rows) = options.rows {
            soak.args(["--rows", &rows.to_string()]);
        }
        if let Some(from) = servers.dev_services() {
            soak.env("MAESTRO_DEV_SERVICES", from);
        }
        process::status(&mut soak)
    };
    let status = servers::providing_some(&servers, rage)?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => Err(Failure::new(format!("the campaign was ended: {status}"))),
    }
}

/// The tests whose share of this runs with the others, built to do more: what they are to do is read
/// by the compiler, because a test reads no environment.
fn tenants(options: &Options, servers: &servers::Options) -> Result<ExitCode> {
    let mut tests = process::cargo();
    tests
        .args(["test", "--package", "maestro-db", "--test", "it", "--"])
        .args(["never_see_each_others_rows", "--nocapture"])
        .env("SOAK_SEED", options.seed.to_string())
        .env("SOAK_TRANSACTIONS", options.transactions.to_string());
    if let Some(from) = servers.dev_services() {
        tests.env("MAESTRO_DEV_SERVICES", from);
    }
    process::run(&mut tests)?;
    Ok(ExitCode::SUCCESS)
}
