//! `cargo xtask test`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::process::{self, announce};
use crate::servers;
use crate::servers::images::{GENERATIONS, Generation};
use crate::servers::warm::{Outcome, Warm};
use crate::tally::Tally;
use crate::workspace::{Package, Workspace};

/// Run every test, doc tests included, on real servers.
///
/// Needs nothing but cargo. A server comes from, in this order: its `MAESTRO_TEST_*_URL`; Docker,
/// where a daemon answers and has or can pull the image; programs on this machine. On Debian and
/// Ubuntu, as root, missing server packages are installed first (one to three minutes, once);
/// elsewhere the one command to run is printed.
///
/// Uses cargo-nextest when it is installed, else `cargo test`. A first run downloads and builds
/// everything: five to fifteen minutes on two cores. The last line printed is the count over all
/// parts; the exit code is 0 only if everything passed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    servers: servers::Options,

    /// The tests that run on servers, once on each generation of images from `tests/images`, which
    /// are built first where they are missing (needs Docker and root; two minutes a generation)
    #[arg(long, conflicts_with = "local")]
    matrix: bool,

    /// Only this package; may be repeated
    #[arg(short, long, value_name = "NAME")]
    package: Vec<String>,

    /// Run with `cargo test` even where cargo-nextest is installed
    #[arg(long)]
    no_nextest: bool,

    /// Only tests whose name contains one of these
    filter: Vec<String>,
}

impl Options {
    /// Every test of every package.
    pub(crate) fn everything(servers: servers::Options) -> Self {
        Self {
            servers,
            matrix: false,
            package: Vec::new(),
            no_nextest: false,
            filter: Vec::new(),
        }
    }

    /// One package's tests, on servers in containers.
    pub(crate) fn on_containers(package: &str) -> Self {
        Self {
            package: vec![package.to_owned()],
            ..Self::everything(servers::Options::in_docker())
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let tally = run_all(options)?;
    // Nothing may be printed after this line.
    println!("{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes the servers available, builds, runs and counts.
pub(crate) fn run_all(options: &Options) -> Result<Tally> {
    let workspace = Workspace::load()?;
    let selection = Selection::new(options, &workspace)?;
    if options.matrix {
        servers::images::build("all")?;
    }
    if selection.needs_servers {
        servers::make_available(&options.servers, servers::For::Tests)?;
    }

    announce("building");
    let started = Instant::now();
    process::run(&mut selection.cargo(&["test", "--no-run"]))?;
    announce(&format!("built in {}", process::elapsed(started.elapsed())));

    let nextest = !options.no_nextest && has_nextest();
    let mut tally = Tally::default();
    if options.matrix {
        for generation in &GENERATIONS {
            announce(&format!("on servers of {}", generation.name));
            tally += selection.on(generation).run(&workspace, nextest)?;
        }
    } else {
        tally += selection.run(&workspace, nextest)?;
        if selection.has_library {
            announce("running the doc tests");
            tally += selection.run_libtest(&["--doc", "--no-fail-fast"])?;
        }
    }
    if tally == Tally::default() {
        return Err(Failure::new(
            "no test has such a name; `cargo xtask test` alone runs all",
        ));
    }
    Ok(tally)
}

fn has_nextest() -> bool {
    process::succeeds(process::cargo().args(["nextest", "--version"]))
}

/// Which tests, on which servers.
#[derive(Debug, Clone)]
struct Selection {
    packages: Vec<String>,
    filter: Vec<String>,
    servers: servers::Options,
    /// Says to the testkit which servers are wanted.
    environment: Vec<(&'static str, &'static str)>,
    /// Only the integration tests: those are the ones on servers.
    integration_only: bool,
    has_library: bool,
    needs_servers: bool,
}

impl Selection {
    fn new(options: &Options, workspace: &Workspace) -> Result<Self> {
        for name in &options.package {
            if !workspace
                .packages
                .iter()
                .any(|package| package.name == *name)
            {
                let known = workspace.packages.iter().map(|p| p.name.as_str());
                return Err(Failure::new(format!(
                    "there is no package `{name}`; there are: {}",
                    known.collect::<Vec<_>>().join(", ")
                )));
            }
        }
        let selected = |name: &String| options.package.is_empty() || options.package.contains(name);
        let selected = |package: &&Package| selected(&package.name);
        let servers = if options.matrix {
            servers::Options::in_docker()
        } else {
            options.servers.clone()
        };
        let mode = servers.dev_services();
        Ok(Self {
            packages: options.package.clone(),
            filter: options.filter.clone(),
            servers,
            environment: mode
                .map(|mode| ("MAESTRO_DEV_SERVICES", mode))
                .into_iter()
                .collect(),
            integration_only: false,
            has_library: workspace
                .packages
                .iter()
                .filter(selected)
                .any(|p| p.has_library),
            needs_servers: workspace
                .packages
                .iter()
                .filter(selected)
                .any(|p| p.uses_servers),
        })
    }

    /// One cargo command on the selected packages. All features, always: the same build serves
    /// the build step, nextest and the doc tests.
    fn cargo(&self, words: &[&str]) -> Command {
        let mut command = process::cargo();
        command.args(words).arg("--all-features");
        if self.packages.is_empty() {
            command.arg("--workspace");
        }
        for package in &self.packages {
            command.args(["--package", package]);
        }
        command.envs(self.environment.iter().copied());
        command
    }

    /// The same tests, as far as they run on servers, on those of one generation.
    fn on(&self, generation: &Generation) -> Self {
        let mut selection = self.clone();
        selection.integration_only = true;
        selection.environment.extend(generation.images);
        selection
    }

    /// Runs the tests of all targets.
    fn run(&self, workspace: &Workspace, nextest: bool) -> Result<Tally> {
        let _warm = self.warm(workspace)?;
        if nextest {
            announce("running the tests with cargo-nextest");
            self.run_nextest(workspace)
        } else {
            announce("running the tests with cargo test");
            let targets: &[&str] = if self.integration_only {
                &["--test=*"]
            } else {
                &["--all-targets"]
            };
            self.run_libtest(&[targets, &["--no-fail-fast"]].concat())
        }
    }

    /// Starts the servers ahead of the tests, if the testkit and with it the program that does so
    /// was built. If there is no way to have them, provides one and tries again.
    fn warm(&self, workspace: &Workspace) -> Result<Option<Warm>> {
        let builds_it = |name: &String| name == "maestro-testkit";
        if !self.packages.is_empty() && !self.packages.iter().any(builds_it) {
            return Ok(None);
        }
        let program = workspace.target.join("debug/examples/servers");
        if let Outcome::Warm(warm) = Warm::start(&program, &self.environment)? {
            return Ok(Some(warm));
        }
        servers::provide_some(&self.servers)?;
        match Warm::start(&program, &self.environment)? {
            Outcome::Warm(warm) => Ok(Some(warm)),
            Outcome::Missing => Err(Failure::new("the servers are still missing, see above")),
        }
    }

    /// Counts from nextest's JUnit report, so that the terminal stays nextest's own.
    fn run_nextest(&self, workspace: &Workspace) -> Result<Tally> {
        let report = workspace.target.join("nextest/default/junit.xml");
        // A report of an earlier run must not be taken for this one's.
        if report.exists() {
            std::fs::remove_file(&report).map_err(|error| {
                Failure::new(format!("could not remove {}: {error}", report.display()))
            })?;
        }
        let mut command = self.cargo(&["nextest", "run", "--profile=default", "--no-tests=pass"]);
        if self.integration_only {
            command.args(["-E", "kind(test)"]);
        }
        let status = process::status(command.args(&self.filter))?;
        let counted = std::fs::read_to_string(&report)
            .ok()
            .and_then(|text| Tally::of_junit(&text))
            .unwrap_or_default();
        Ok(counted.ended(status.success()))
    }

    /// Counts from the closing lines of the test binaries.
    fn run_libtest(&self, words: &[&str]) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut command = self.cargo(&["test"]);
        command.args(words);
        if !self.filter.is_empty() {
            command.arg("--").args(&self.filter);
        }
        let status = process::tee(&mut command, |line| tally.add_libtest_line(line))?;
        Ok(tally.ended(status.success()))
    }
}
