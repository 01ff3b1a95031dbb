//! `cargo xtask fuzz`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::process::{self, announce};
use crate::servers;
use crate::workspace::{self, Workspace};

/// Feed the parsers inputs that libFuzzer makes up, guided by what of the code they reach.
///
/// Each target of `fuzz/` begins with its seeds and with what earlier runs found worth keeping
/// (`fuzz/corpus/TARGET`). An input that breaks a property is written to `fuzz/artifacts/TARGET` and
/// the command fails; as a file given to the target's program it shows the failure again.
///
/// Any compiler will do; libFuzzer itself needs one for C++, which is installed like the servers of
/// `cargo xtask test`. Two to four minutes to build on two cores.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Targets; all, if none is named
    targets: Vec<String>,

    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// Where all random decisions come from; chosen by libFuzzer unless given
    #[arg(long)]
    seed: Option<u32>,
}

impl Options {
    /// Every target for so long, from the same seed each time.
    pub(crate) fn share(seconds: u32) -> Self {
        Self {
            targets: Vec::new(),
            seconds,
            seed: Some(1),
        }
    }
}

/// What the compiler adds for libFuzzer: counters of the edges that were taken. No sanitizer: the
/// crates have no `unsafe`, and sanitizers are for compilers that are not stable.
const FLAGS: &str = "--cfg fuzzing -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table";

/// Whether the machine has what libFuzzer is built with.
pub(crate) fn can_build() -> bool {
    process::is_on_path("c++")
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    servers::provide_compiler()?;
    let targets = chosen(&options.targets, known()?)?;
    let programs = build(&targets)?;
    let mut failed = Vec::new();
    for target in &targets {
        announce(&format!("{target}, {} s", options.seconds));
        if !fuzz(target, &programs.join(target), options)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        println!("{} target(s) held", targets.len());
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(format!(
        "{} did not hold: the inputs are in fuzz/artifacts; write the test that fails with one first",
        failed.join(", ")
    )))
}

/// The names of all targets.
fn known() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder)
        .map_err(|error| Failure::new(format!("could not read {}: {error}", folder.display())))?;
    let names = files
        .flatten()
        .filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

fn chosen(wanted: &[String], known: Vec<String>) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(known);
    }
    match wanted.iter().find(|name| !known.contains(name)) {
        None => Ok(wanted.to_vec()),
        Some(name) => Err(Failure::new(format!(
            "there is no target `{name}`; there are {}",
            known.join(", ")
        ))),
    }
}

/// Builds the targets and returns the folder of their programs.
fn build(targets: &[String]) -> Result<PathBuf> {
    let folder = Workspace::load()?.target.join("fuzz");
    // With a target of its own, build scripts and macros are built without the counters.
    let host = process::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim();
    let mut build = process::cargo();
    build
        .args(["build", "--locked", "--manifest-path=fuzz/Cargo.toml"])
        .args(["--target", host, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", FLAGS);
    for target in targets {
        build.args(["--bin", target]);
    }
    let started = Instant::now();
    process::run(&mut build)?;
    announce(&format!("built in {}", process::elapsed(started.elapsed())));
    Ok(folder.join(host).join("debug"))
}

/// Runs one target; whether it held.
fn fuzz(target: &str, program: &std::path::Path, options: &Options) -> Result<bool> {
    let root = workspace::root().join("fuzz");
    let folder = |kind: &str| -> Result<PathBuf> {
        let folder = root.join(kind).join(target);
        fs::create_dir_all(&folder).map_err(|error| {
            Failure::new(format!("could not make {}: {error}", folder.display()))
        })?;
        Ok(folder)
    };
    let mut run = Command::new(program);
    run.arg(folder("corpus")?)
        .arg(root.join("seeds").join(target))
        .arg(format!(
            "-artifact_prefix={}/",
            folder("artifacts")?.display()
        ))
        .arg(format!("-max_total_time={}", options.seconds))
        // One input that takes longer, or more memory, is a finding too.
        .args([
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-verbosity=0",
            "-print_final_stats=1",
        ]);
    if let Some(seed) = options.seed {
        run.arg(format!("-seed={seed}"));
    }
    Ok(process::status(&mut run)?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_a_program_in_the_manifest() {
        let manifest = fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).unwrap();
        let known = known().unwrap();
        assert!(!known.is_empty());
        for target in known {
            assert!(
                manifest.contains(&format!("name = \"{target}\"")),
                "{target}"
            );
            let seeds = workspace::root().join("fuzz/seeds").join(&target);
            assert!(fs::read_dir(&seeds).unwrap().next().is_some(), "{target}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_answered_with_those_that_are() {
        let known = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(chosen(&[], known.clone()).unwrap(), known);
        assert_eq!(chosen(&["two".to_owned()], known.clone()).unwrap(), ["two"]);
        let failure = chosen(&["tow".to_owned()], known).unwrap_err();
        assert!(failure.to_string().contains("one, two"), "{failure}");
    }
}
