//! `cargo xtask docs`.

use std::process::ExitCode;

use clap::Args;

use crate::failure::Result;
use crate::process;

/// Write the pages that are generated from the code's own tables.
///
/// `docs/configuration.md` and its JSON schema from every crate's variables, `docs/metrics.md` from
/// every crate's metrics. Builds all crates that have tables: a minute or two the first time.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a page is not what the tables say
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut command = process::cargo();
    command.args(["run", "--package", "maestro-docs", "--all-features", "--"]);
    if options.check {
        command.arg("--check");
    }
    process::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
