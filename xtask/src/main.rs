//! `cargo xtask`: the commands of this workspace.
//!
//! `main.rs` is the table of contents: one variant and one file per command. What several of them
//! need is in [`process`] (running other programs), [`workspace`] (what cargo knows about this
//! clone), [`servers`] (server programs on this machine) and [`tally`] (counting test results).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks by printing"
)]

mod bench;
mod ci;
mod demo;
mod docs;
mod failure;
mod fuzz;
mod process;
mod servers;
mod soak;
mod tally;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands of the Maestro workspace.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_version_flag = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Options),
    Test(test::Options),
    Ci(ci::Options),
    Docs(docs::Options),
    Bench(bench::Options),
    Soak(soak::Options),
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Ci(options) => ci::run(&options),
        Command::Docs(options) => docs::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_and_their_options_do_not_contradict_each_other() {
        super::Arguments::command().debug_assert();
    }
}
