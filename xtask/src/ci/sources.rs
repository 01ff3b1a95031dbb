//! Rules on manifests and source files that no lint knows.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::workspace::{self, Package, Workspace};

/// Checks every member of the workspace; returns what is broken.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = unexplained_dependencies(
        &read(&workspace::root().join("Cargo.toml"))?,
        &read(&workspace::root().join(DEPENDENCIES))?,
    );
    for package in &workspace.packages {
        let manifest = read(&package.folder.join("Cargo.toml"))?;
        problems.extend(manifest_problems(package, &manifest));
        let mut files = Vec::new();
        rust_files(&package.folder, workspace, &mut files)?;
        for file in files {
            let text = read(&file)?;
            let shown = file.strip_prefix(workspace::root()).unwrap_or(&file);
            problems.extend(file_problems(&package.name, shown, &text));
        }
    }
    Ok(problems)
}

fn manifest_problems(package: &Package, manifest: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut problem = |text: String| problems.push(format!("{}: {text}", package.name));
    if !has_setting(manifest, "[lints]", "workspace=true") {
        problem("does not inherit the lints of the workspace".to_owned());
    }
    if package.is_published {
        for (field, present) in &package.metadata {
            if !present {
                problem(format!("is to be published and has no `{field}`"));
            }
        }
    }
    if package.features > MOST_FEATURES {
        let features = package.features;
        problem(format!("{features} features; at most {MOST_FEATURES}"));
    }
    problems
}

/// Versions in the workspace's manifest without a line in the decision record.
fn unexplained_dependencies(manifest: &str, record: &str) -> Vec<String> {
    table(manifest, "[workspace.dependencies]")
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.starts_with('#') && !name.starts_with("maestro"))
        .filter(|name| !record.contains(&format!("`{name}`")))
        .map(|name| format!("Cargo.toml: {name} has no line in {DEPENDENCIES}"))
        .collect()
}

/// The lines of one table of a manifest.
fn table<'a>(manifest: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    manifest
        .lines()
        .map(str::trim)
        .skip_while(move |line| *line != name)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
}

/// Whether the table `section` of a manifest has the line `setting` (spaces do not matter).
fn has_setting(manifest: &str, section: &str, setting: &str) -> bool {
    table(manifest, section).any(|line| line.split_whitespace().collect::<String>() == setting)
}

fn file_problems(package: &str, file: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let count = text.lines().count();
    let (most, kind) = if file.ends_with("src/lib.rs") {
        (MOST_LINES_IN_LIB, "a lib.rs is a table of contents:")
    } else {
        (MOST_LINES, "one idea a file:")
    };
    if count > most && !text.lines().any(|line| line.starts_with(REASON_FOR_LENGTH)) {
        problems.push(format!(
            "{}: {count} lines; {kind} at most {most}, or a line `{REASON_FOR_LENGTH} …` says why",
            file.display()
        ));
    }
    // cargo speaks to a build script through its environment, and no service runs there.
    let may_read = package == "maestro-config" || file.ends_with("build.rs");
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default().trim();
        let at = || format!("{}:{}", file.display(), index + 1);
        if !may_read && READS_ENVIRONMENT.iter().any(|call| code.contains(call)) {
            problems.push(format!(
                "{}: only maestro-config reads the process environment",
                at()
            ));
        }
        if code.starts_with("pub use ") && code.ends_with("::*;") {
            problems.push(format!("{}: re-exports are explicit", at()));
        }
    }
    problems
}

/// Every `.rs` file below `folder`, packages and build output inside it aside.
fn rust_files(folder: &Path, workspace: &Workspace, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder)
        .map_err(|error| Failure::new(format!("could not list {}: {error}", folder.display())))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            let is_foreign = path == workspace.target || path.join("Cargo.toml").exists();
            if !is_foreign && !path.ends_with("target") {
                rust_files(&path, workspace, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("could not read {}: {error}", path.display())))
}

const DEPENDENCIES: &str = "docs/adr/0001-dependencies.md";
const MOST_LINES_IN_LIB: usize = 150;
const MOST_LINES: usize = 500;
const MOST_FEATURES: usize = 4;
const REASON_FOR_LENGTH: &str = "// Long because";

/// The calls clippy's `disallowed-methods` names: an `allow` gets past clippy, not past this.
const READS_ENVIRONMENT: [&str; 6] = [
    concat!("env::", "var("),
    concat!("env::", "var_os("),
    concat!("env::", "vars("),
    concat!("env::", "vars_os("),
    concat!("env::", "set_var("),
    concat!("env::", "remove_var("),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(package: &str, file: &str, text: &str) -> Vec<String> {
        file_problems(package, Path::new(file), text)
    }

    #[test]
    fn a_long_file_passes_only_with_a_reason() {
        let lines = "fn one() {}\n".repeat(151);
        assert_eq!(problems("a", "a/src/client.rs", &lines).len(), 0);
        assert_eq!(problems("a", "a/src/lib.rs", &lines).len(), 1);
        let long = "fn one() {}\n".repeat(501);
        assert_eq!(problems("a", "a/src/client.rs", &long).len(), 1);
        let reasoned = format!("// Long because it is one table.\n{long}");
        assert_eq!(problems("a", "a/src/client.rs", &reasoned).len(), 0);
    }

    #[test]
    fn reading_the_environment_is_found_in_code_outside_the_configuration_crate_only() {
        let code = format!("let home = std::{}\"HOME\");", READS_ENVIRONMENT[0]);
        assert_eq!(
            problems("maestro-db", "maestro-db/src/pool.rs", &code),
            ["maestro-db/src/pool.rs:1: only maestro-config reads the process environment"]
        );
        assert_eq!(problems("maestro-config", "x.rs", &code).len(), 0);
        assert_eq!(
            problems("maestro-db", "maestro-db/build.rs", &code).len(),
            0
        );
        assert_eq!(
            problems("maestro-db", "x.rs", &format!("// {code}")).len(),
            0
        );
    }

    #[test]
    fn a_glob_re_export_is_found() {
        assert_eq!(problems("a", "x.rs", "pub use client::*;").len(), 1);
        assert_eq!(problems("a", "x.rs", "pub use client::Client;").len(), 0);
    }

    #[test]
    fn a_dependency_without_a_line_in_the_record_is_named() {
        let manifest = "[workspace.dependencies]\n# Drivers\nmaestro = { path = \"maestro\" }\n\
                        sqlx = \"0.9\"\nredis = { version = \"1\" }\n\n[profile.dev]\ndebug = false\n";
        let problems = unexplained_dependencies(manifest, "| `sqlx` | because |");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("redis"));
    }

    #[test]
    fn a_setting_counts_only_in_its_own_table() {
        let manifest = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n\n[dependencies]\n";
        assert!(has_setting(manifest, "[lints]", "workspace=true"));
        assert!(!has_setting(manifest, "[package]", "workspace=true"));
        assert!(!has_setting(manifest, "[dependencies]", "workspace=true"));
    }
}
