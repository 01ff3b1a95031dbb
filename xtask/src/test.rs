//! `cargo xtask test`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::process::{self, announce};
use crate::servers;
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
    if selection.needs_servers {
        servers::make_available(&options.servers)?;
    }

    announce("building");
    let started = Instant::now();
    process::run(&mut selection.cargo(&["test", "--no-run"]))?;
    announce(&format!("built in {}", process::elapsed(started.elapsed())));

    // With the whole workspace the program that starts the servers was built too.
    let _warm = if selection.packages.is_empty() {
        Some(selection.warm(&workspace)?)
    } else {
        None
    };

    let nextest = !options.no_nextest && has_nextest();
    announce(if nextest {
        "running the tests with cargo-nextest"
    } else {
        "running the tests with cargo test"
    });
    let mut tally = if nextest {
        selection.run_nextest(&workspace)?
    } else {
        selection.run_libtest(&["--all-targets", "--no-fail-fast"])?
    };
    if selection.has_library {
        announce("running the doc tests");
        tally += selection.run_libtest(&["--doc", "--no-fail-fast"])?;
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
#[derive(Debug)]
struct Selection {
    packages: Vec<String>,
    filter: Vec<String>,
    dev_services: Option<&'static str>,
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
        Ok(Self {
            packages: options.package.clone(),
            filter: options.filter.clone(),
            dev_services: options.servers.dev_services(),
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
        if let Some(mode) = self.dev_services {
            command.env("MAESTRO_DEV_SERVICES", mode);
        }
        command
    }

    /// Starts the servers ahead of the tests. If the testkit finds no way to have them, installs what
    /// is missing and tries again.
    fn warm(&self, workspace: &Workspace) -> Result<Warm> {
        let program = workspace.target.join("debug/examples/servers");
        if let Outcome::Warm(warm) = Warm::start(&program, self.dev_services)? {
            return Ok(warm);
        }
        if self.dev_services == Some("docker") {
            return Err(Failure::new(
                "the servers cannot be had in containers, see above",
            ));
        }
        servers::install_all()?;
        match Warm::start(&program, self.dev_services)? {
            Outcome::Warm(warm) => Ok(warm),
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
        let status = process::status(
            self.cargo(&["nextest", "run", "--profile=default"])
                .arg("--no-tests=pass")
                .args(&self.filter),
        )?;
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
