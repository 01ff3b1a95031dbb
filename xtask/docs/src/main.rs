//! The pages that are generated from the code's own tables, so that they cannot be wrong.
//!
//! `cargo xtask docs` writes them; `--check` and this package's test fail when one is not what the
//! tables say.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks by printing"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use maestro::ServiceConfig;
use maestro_cache::CacheConfig;
use maestro_config::{FromEnvironment, Identity, Table, docs};
use maestro_db::DbConfig;
use maestro_messaging::MessagingConfig;
use maestro_metrics::{Catalogue, TelemetryConfig};
use maestro_testkit::DevServicesConfig;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let faults = faults();
    for fault in &faults {
        eprintln!("{fault}");
    }
    let mut failed = !faults.is_empty();
    for page in pages() {
        let name = page.name;
        if page.is_current() {
            println!("{name} is what the tables say");
        } else if check {
            eprintln!("{name} is not what the tables say: run `cargo xtask docs`");
            failed = true;
        } else if let Err(error) = page.write() {
            eprintln!("could not write {name}: {error}");
            failed = true;
        } else {
            println!("{name} is written");
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// A generated file, named as from the root of the workspace.
struct Page {
    name: &'static str,
    text: String,
}

/// All of them.
fn pages() -> [Page; 3] {
    [
        Page {
            name: "docs/configuration.md",
            text: docs::markdown(&tables()),
        },
        Page {
            name: "docs/configuration.schema.json",
            text: format!("{:#}\n", docs::json_schema(&tables())),
        },
        Page {
            name: "docs/metrics.md",
            text: maestro_metrics::docs::markdown(&CATALOGUES),
        },
    ]
}

/// Every crate's metrics, in the order of the page.
const CATALOGUES: [&Catalogue; 4] = [
    &maestro_metrics::CATALOGUE,
    &maestro_db::CATALOGUE,
    &maestro_cache::CATALOGUE,
    &maestro_messaging::CATALOGUE,
];

/// What is wrong with the tables when they are taken together.
fn faults() -> Vec<String> {
    let mut faults = docs::faults(&tables());
    faults.extend(maestro_metrics::docs::faults(&CATALOGUES));
    faults
}

/// Every crate's variables, in the order in which a reader meets the crates.
fn tables() -> Vec<&'static Table> {
    [
        Identity::tables(),
        ServiceConfig::tables(),
        TelemetryConfig::tables(),
        DbConfig::tables(),
        CacheConfig::tables(),
        MessagingConfig::tables(),
        DevServicesConfig::tables(),
    ]
    .concat()
}

/// The clone this runs in, which need not be the one it was built in.
fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let clone = |folder: &&Path| folder.join("xtask/docs/Cargo.toml").is_file();
    here.ancestors().find(clone).unwrap_or(&here).to_owned()
}

impl Page {
    fn path(&self) -> PathBuf {
        root().join(self.name)
    }

    fn is_current(&self) -> bool {
        std::fs::read_to_string(self.path()).is_ok_and(|text| text == self.text)
    }

    fn write(&self) -> std::io::Result<()> {
        std::fs::write(self.path(), &self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generated_page_is_what_the_tables_say() {
        for page in pages() {
            assert!(
                page.is_current(),
                "{} is not: run `cargo xtask docs`",
                page.name
            );
        }
    }

    #[test]
    fn every_variable_and_every_metric_is_explained_and_declared_in_one_way() {
        assert_eq!(faults(), Vec::<String>::new());
    }
}
