//! The pages that are generated from the code's own tables, so that they cannot be wrong.
//!
//! `cargo xtask docs` writes them; `--check` and this package's test fail when one is not what the
//! tables say.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool speaks by printing"
)]

mod metrics;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use maestro::ServiceConfig;
use maestro_cache::CacheConfig;
use maestro_config::{FromEnvironment, Identity, Table, docs};
use maestro_db::DbConfig;
use maestro_messaging::MessagingConfig;
use maestro_metrics::TelemetryConfig;
use maestro_testkit::DevServicesConfig;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let faults = docs::faults(&tables());
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
            text: metrics::markdown(&[
                maestro_metrics::CATALOGUE,
                maestro_db::CATALOGUE,
                maestro_cache::CATALOGUE,
                maestro_messaging::CATALOGUE,
            ]),
        },
    ]
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

impl Page {
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(self.name)
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
    fn every_variable_is_explained_and_has_one_owner() {
        assert_eq!(docs::faults(&tables()), Vec::<String>::new());
    }

    #[test]
    fn a_metric_that_two_crates_declare_is_one_metric() {
        let pages = pages();
        let mut rows: Vec<&str> = pages[2]
            .text
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        // Redis and PostgreSQL share the conventions' family of database clients: the same row twice.
        rows.sort_unstable();
        rows.dedup();
        let names: Vec<_> = rows.iter().map(|row| row.split('|').nth(1)).collect();
        for (index, name) in names.iter().enumerate() {
            assert_ne!(names.get(index + 1), Some(name), "declared in two ways");
        }
    }
}
