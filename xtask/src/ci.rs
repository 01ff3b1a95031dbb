//! `cargo xtask ci`.

mod deny;
mod layering;
mod sources;

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::bench;
use crate::demo;
use crate::failure::{Failure, Result};
use crate::fuzz;
use crate::process::{self, announce};
use crate::servers;
use crate::test;
use crate::workspace::Workspace;

/// Everything that must hold before a change goes in, step by step.
///
/// All steps run, also after one failed; a table at the end says how each ended and how long it
/// took. Needs cargo with clippy and rustfmt; cargo-deny is built into `target/tools` the first time
/// (one to three minutes). Ten to thirty minutes from nothing on two cores, a few when warm.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these steps, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<Step>,

    /// All steps but these, comma-separated
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "STEP",
        conflicts_with = "only"
    )]
    skip: Vec<Step>,

    #[command(flatten)]
    servers: servers::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting
    Fmt,
    /// Rules on dependencies between crates, on manifests and on source files
    Layering,
    /// Clippy on everything, warnings are errors
    Clippy,
    /// The benches: clippy, and the tests of their harness
    Bench,
    /// The fuzz targets, each for some seconds from a fixed seed, where there is a C++ compiler
    Fuzz,
    /// Documentation builds without a warning
    Docs,
    /// cargo-deny: banned crates, duplicates, licences, sources
    Deny,
    /// Every test, doc tests included, on server programs of this machine
    Test,
    /// The demo, on server programs of this machine
    Demo,
    /// The testkit's own tests once more, on containers, where a Docker daemon answers
    Containers,
}

/// How a step ended, unless it failed.
enum Outcome {
    Held,
    NotRun(&'static str),
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let mut summary = Summary::default();
    for step in Step::value_variants() {
        let wanted = if options.only.is_empty() {
            !options.skip.contains(step)
        } else {
            options.only.contains(step)
        };
        if wanted {
            summary.record(*step, || step.run(&workspace, options));
        }
    }
    println!("\n{summary}");
    Ok(if summary.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Step {
    fn run(self, workspace: &Workspace, options: &Options) -> Result<Outcome> {
        match self {
            Self::Fmt => {
                process::run(process::cargo().args(["fmt", "--all", "--check"]))?;
                process::run(process::cargo().args([
                    "fmt",
                    "--manifest-path=bench/Cargo.toml",
                    "--check",
                ]))?;
                process::run(process::cargo().args([
                    "fmt",
                    "--manifest-path=fuzz/Cargo.toml",
                    "--check",
                ]))?;
            }
            Self::Clippy => process::run(process::cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "-D",
                "warnings",
            ]))?,
            Self::Bench => {
                process::run(bench::cargo(workspace, "clippy").args([
                    "--all-targets",
                    "--locked",
                    "--",
                    "-D",
                    "warnings",
                ]))?;
                process::run(&mut bench::cargo(workspace, "test"))?;
            }
            Self::Fuzz => {
                if !fuzz::can_build() {
                    return Ok(Outcome::NotRun("no C++ compiler for libFuzzer"));
                }
                fuzz::run(&fuzz::Options::share(2))?;
            }
            Self::Docs => process::run(
                process::cargo()
                    .args(["doc", "--workspace", "--no-deps", "--all-features"])
                    .env("RUSTDOCFLAGS", "-D warnings"),
            )?,
            Self::Layering => {
                let mut problems = layering::check(workspace)?;
                problems.extend(sources::check(workspace)?);
                held(&problems)?;
            }
            Self::Deny => deny::check(workspace)?,
            Self::Demo => {
                let options = demo::Options::once(options.servers.clone().or_local());
                if demo::run(&options)? != ExitCode::SUCCESS {
                    return Err(Failure::new("the demo did not hold, see above"));
                }
            }
            Self::Test => {
                let tally = test::run_all(&test::Options::everything(
                    options.servers.clone().or_local(),
                ))?;
                println!("{tally}");
                if tally.failed > 0 {
                    return Err(Failure::new("tests failed, see above"));
                }
            }
            Self::Containers => {
                if servers::ask_docker(&options.servers, Duration::from_secs(1)).is_err() {
                    return Ok(Outcome::NotRun("no Docker daemon answers"));
                }
                let options = test::Options::on_containers("maestro-testkit");
                let tally = test::run_all(&options)?;
                println!("{tally}");
                if tally.failed > 0 {
                    return Err(Failure::new("tests failed, see above"));
                }
            }
        }
        Ok(Outcome::Held)
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// Prints what was found and turns it into an error, if there is anything.
fn held(problems: &[String]) -> Result<()> {
    for problem in problems {
        eprintln!("  {problem}");
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(Failure::new(format!(
            "{count} broken rule(s), see above; CONTRIBUTING.md says why they are there"
        ))),
    }
}

/// What the table at the end is made of.
#[derive(Default)]
struct Summary {
    rows: Vec<(Step, Result<Outcome>, Duration)>,
}

impl Summary {
    fn record(&mut self, step: Step, run: impl FnOnce() -> Result<Outcome>) {
        announce(&format!("[{}]", step.name()));
        let started = Instant::now();
        let outcome = run();
        if let Err(failure) = &outcome {
            eprintln!("error: {failure}");
        }
        self.rows.push((step, outcome, started.elapsed()));
    }

    fn failed(&self) -> bool {
        self.rows.iter().any(|(_, outcome, _)| outcome.is_err())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, outcome, took) in &self.rows {
            let outcome = match outcome {
                Ok(Outcome::Held) => "ok".to_owned(),
                Ok(Outcome::NotRun(reason)) => format!("not run: {reason}"),
                Err(_) => "FAILED".to_owned(),
            };
            let (step, took) = (step.name(), process::elapsed(*took));
            writeln!(f, "{step:<11} {took:>12}  {outcome}")?;
        }
        Ok(())
    }
}
