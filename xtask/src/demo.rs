//! `cargo xtask demo`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::process::{self, announce};
use crate::servers;
use crate::workspace::Workspace;

/// Run two services through everything: success, retries, dead letters, and every server killed.
///
/// Brings PostgreSQL, Redis and RabbitMQ of its own (in Docker or as programs of this machine; missing
/// Debian packages are installed as by `cargo xtask test`), starts the example services
/// quality-fabric and conductor as processes, drives the story over HTTP and checks each step with
/// figures. Cleans up, and exits with 0 only if everything held. About a minute after the build,
/// which takes five to ten minutes on two cores the first time.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    servers: servers::Options,

    /// Leave everything running afterwards and print the URLs; Ctrl-C ends it
    #[arg(long)]
    keep: bool,
}

impl Options {
    /// The demo as a check: nothing is left running.
    pub(crate) fn once(servers: servers::Options) -> Self {
        Self {
            servers,
            keep: false,
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    // The demo kills its servers, so it never takes somebody else's.
    let servers = options.servers.clone().own();
    servers::make_available(&servers, servers::For::Servers)?;

    announce("building the services and the demo");
    let started = Instant::now();
    let packages = ["quality-fabric", "conductor", "maestro-tests"];
    let mut build = process::cargo();
    build.args(["build", "--bins"]);
    build.args(packages.iter().flat_map(|name| ["--package", name]));
    process::run(&mut build)?;
    announce(&format!("built in {}", process::elapsed(started.elapsed())));

    let tell = || {
        let mut demo = Command::new(workspace.target.join("debug/demo"));
        demo.current_dir(crate::workspace::root());
        if options.keep {
            demo.arg("--keep");
        }
        if let Some(from) = servers.dev_services() {
            demo.env("MAESTRO_DEV_SERVICES", from);
        }
        process::status(&mut demo)
    };
    let status = servers::providing_some(&servers, tell)?;
    match status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => Err(Failure::new(format!("the demo was ended: {status}"))),
    }
}
