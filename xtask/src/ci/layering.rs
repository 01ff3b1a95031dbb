//! Who may depend on whom: a service that adds one crate gets that crate's driver and no other.

use std::collections::BTreeSet;

use crate::failure::Result;
use crate::process;
use crate::workspace::Workspace;

/// Checks every rule below; returns what is broken.
pub(crate) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in &workspace.packages {
        match MAY_DEPEND_ON.iter().find(|(name, _)| *name == package.name) {
            Some((name, allowed)) => {
                problems.extend(undeclared_edges(name, allowed, &package.dependencies));
            }
            None if package.is_published => problems.push(format!(
                "{}: no rule says which crates of the workspace it may depend on \
                 (xtask/src/ci/layering.rs)",
                package.name
            )),
            None => {}
        }
    }
    for tree in &TREES {
        if workspace.packages.iter().any(|p| p.name == tree.package) {
            problems.extend(tree.problems(&tree.crates()?));
        }
    }
    Ok(problems)
}

fn undeclared_edges(name: &str, allowed: &[&str], dependencies: &BTreeSet<String>) -> Vec<String> {
    dependencies
        .iter()
        .filter(|dependency| !allowed.contains(&dependency.as_str()))
        .map(|dependency| format!("{name}: depends on {dependency}; it may only on {allowed:?}"))
        .collect()
}

/// What one package links in with certain features, and what must not be among it.
struct Tree {
    package: &'static str,
    /// Instead of the default ones.
    features: Option<&'static str>,
    absent: &'static [&'static str],
}

impl Tree {
    /// Names of the crates it links in.
    fn crates(&self) -> Result<BTreeSet<String>> {
        let mut command = process::cargo();
        command.args(["tree", "--edges=normal", "--prefix=none", "--format={p}"]);
        command.args(["--target=all", "--package", self.package]);
        if let Some(features) = self.features {
            command.args(["--no-default-features", "--features", features]);
        }
        let tree = process::output(&mut command)?;
        Ok(tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    fn problems(&self, crates: &BTreeSet<String>) -> Vec<String> {
        let features = match self.features {
            None => String::new(),
            Some("") => " without features".to_owned(),
            Some(features) => format!(" with {features}"),
        };
        self.absent
            .iter()
            .chain(NOWHERE)
            .filter(|name| crates.contains(**name))
            .map(|name| format!("{}{features}: links {name}", self.package))
            .collect()
    }
}

/// Edges between the crates of the workspace, dev-dependencies aside.
const MAY_DEPEND_ON: [(&str, &[&str]); 7] = [
    ("maestro-config", &[]),
    ("maestro-metrics", &["maestro-config"]),
    ("maestro-testkit", &["maestro-config"]),
    ("maestro-db", &["maestro-config", "maestro-metrics"]),
    ("maestro-cache", &["maestro-config", "maestro-metrics"]),
    ("maestro-messaging", &["maestro-config", "maestro-metrics"]),
    (
        "maestro",
        &[
            "maestro-config",
            "maestro-metrics",
            "maestro-db",
            "maestro-cache",
            "maestro-messaging",
        ],
    ),
];

/// A second TLS stack or crypto provider panics at the first handshake; a second runtime never wakes.
const NOWHERE: &[&str] = &[
    "async-std",
    "aws-lc-rs",
    "aws-lc-sys",
    "native-tls",
    "openssl",
    "openssl-sys",
];

const TREES: [Tree; 13] = [
    Tree {
        package: "maestro-config",
        features: None,
        absent: &[
            "axum",
            "hyper",
            "lapin",
            "opentelemetry",
            "prometheus",
            "redis",
            "reqwest",
            "rustls",
            "sqlx",
            "tokio",
            "tonic",
        ],
    },
    // What every client crate pays for being observable.
    Tree {
        package: "maestro-metrics",
        features: Some(""),
        absent: &[
            "axum",
            "hyper",
            "lapin",
            "opentelemetry",
            "opentelemetry_sdk",
            "redis",
            "reqwest",
            "rustls",
            "sqlx",
            "tonic",
        ],
    },
    Tree {
        package: "maestro-metrics",
        features: Some("http"),
        absent: &[
            "lapin",
            "opentelemetry",
            "redis",
            "reqwest",
            "rustls",
            "sqlx",
            "tonic",
        ],
    },
    Tree {
        package: "maestro-metrics",
        features: Some("otlp"),
        absent: &["axum", "lapin", "redis", "sqlx", "tonic"],
    },
    Tree {
        package: "maestro-db",
        features: None,
        absent: &[
            "axum",
            "hyper",
            "lapin",
            "opentelemetry",
            "redis",
            "reqwest",
            "tonic",
        ],
    },
    Tree {
        package: "maestro-cache",
        features: None,
        absent: &[
            "axum",
            "hyper",
            "lapin",
            "opentelemetry",
            "reqwest",
            "sqlx",
            "tonic",
        ],
    },
    Tree {
        package: "maestro-messaging",
        features: None,
        absent: &[
            "axum",
            "hyper",
            "opentelemetry",
            "redis",
            "reqwest",
            "sqlx",
            "tonic",
        ],
    },
    Tree {
        package: "maestro-messaging",
        features: Some("outbox"),
        absent: &[
            "axum",
            "hyper",
            "opentelemetry",
            "redis",
            "reqwest",
            "tonic",
        ],
    },
    // A service that leaves a client out does not link its driver.
    Tree {
        package: "maestro",
        features: Some(""),
        absent: &["lapin", "redis", "sqlx", "testcontainers", "tonic"],
    },
    Tree {
        package: "maestro",
        features: Some("db"),
        absent: &["lapin", "redis", "testcontainers", "tonic"],
    },
    Tree {
        package: "maestro",
        features: Some("cache"),
        absent: &["lapin", "sqlx", "testcontainers", "tonic"],
    },
    Tree {
        package: "maestro",
        features: None,
        absent: &["testcontainers", "tonic"],
    },
    // Hands out addresses, never clients.
    Tree {
        package: "maestro-testkit",
        features: None,
        absent: &["lapin", "redis", "sqlx"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_crate_anywhere_in_the_tree_is_named_with_the_package_and_its_features() {
        let tree = Tree {
            package: "maestro-messaging",
            features: Some("outbox"),
            absent: &["redis"],
        };
        let crates = ["lapin", "redis", "openssl-sys"].map(str::to_owned).into();
        assert_eq!(
            tree.problems(&crates),
            [
                "maestro-messaging with outbox: links redis",
                "maestro-messaging with outbox: links openssl-sys",
            ]
        );
    }

    #[test]
    fn an_edge_between_two_clients_is_refused() {
        let dependencies = ["maestro-config", "maestro-db"].map(str::to_owned).into();
        let problems = undeclared_edges("maestro-cache", &["maestro-config"], &dependencies);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("maestro-cache: depends on maestro-db"));
    }
}
