//! What cargo knows about this clone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::process;

/// The root of the clone the command was given in. Looked for when it runs: this program may have been
/// built before the clone was moved, or in another one whose build output was copied.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        let here = std::env::current_dir().ok();
        here.as_deref()
            .and_then(clone_around)
            .or(built_in.parent())
            .unwrap_or(built_in)
            .to_owned()
    });
    &ROOT
}

/// The nearest folder around `folder`, itself included, that is a clone of this workspace.
fn clone_around(folder: &Path) -> Option<&Path> {
    folder
        .ancestors()
        .find(|folder| folder.join("xtask/Cargo.toml").is_file())
}

/// Members of the workspace and where its build output goes.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    /// `target/`, wherever the environment or a cargo config put it.
    pub(crate) target: PathBuf,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// It has a library, so it can have doc tests.
    pub(crate) has_library: bool,
    pub(crate) is_published: bool,
    /// Other members it depends on, dev-dependencies aside.
    pub(crate) dependencies: BTreeSet<String>,
    /// Its tests run on servers: it is the testkit or tests with it.
    pub(crate) uses_servers: bool,
    /// How many features it has, `default` aside.
    pub(crate) features: usize,
    /// What a published package says of itself, and whether it does.
    pub(crate) metadata: Vec<(&'static str, bool)>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        let text = process::output(process::cargo().args([
            "metadata",
            "--no-deps",
            "--format-version=1",
        ]))?;
        let metadata: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("`cargo metadata` printed no JSON: {error}")))?;
        Self::from_metadata(&metadata)
            .ok_or_else(|| Failure::new("`cargo metadata` printed JSON of another shape"))
    }

    fn from_metadata(metadata: &Value) -> Option<Self> {
        let packages = metadata["packages"].as_array()?.iter();
        Some(Self {
            packages: packages
                .map(Package::from_metadata)
                .collect::<Option<_>>()?,
            target: metadata["target_directory"].as_str()?.into(),
        })
    }
}

impl Package {
    fn from_metadata(package: &Value) -> Option<Self> {
        let is_library = |target: &Value| target["doctest"].as_bool() == Some(true);
        let features = package["features"].as_object()?;
        // Members come by path; a dev-dependency is not linked into anybody's service.
        let is_edge =
            |dependency: &&Value| !dependency["path"].is_null() && dependency["kind"] != "dev";
        let name = |dependency: &Value| dependency["name"].as_str().map(str::to_owned);
        let said = |field: &'static str| {
            let value = &package[field];
            (
                field,
                !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()),
            )
        };
        let dependencies = package["dependencies"].as_array()?;
        let is_testkit = |package: &Value| package["name"] == "maestro-testkit";
        Some(Self {
            name: name(package)?,
            uses_servers: is_testkit(package) || dependencies.iter().any(is_testkit),
            folder: Path::new(package["manifest_path"].as_str()?)
                .parent()?
                .to_owned(),
            has_library: package["targets"].as_array()?.iter().any(is_library),
            // `publish = false` is an empty list of registries, absence means any.
            is_published: package["publish"]
                .as_array()
                .is_none_or(|list| !list.is_empty()),
            dependencies: dependencies
                .iter()
                .filter(is_edge)
                .filter_map(name)
                .collect(),
            features: features.keys().filter(|name| *name != "default").count(),
            metadata: [
                "description",
                "license",
                "repository",
                "readme",
                "keywords",
                "categories",
            ]
            .map(said)
            .to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_found_from_any_folder_in_it_and_nowhere_else() {
        let scratch = root().join(format!("target/tmp/clone-{}", std::process::id()));
        let clone = scratch.join("moved here");
        let inside = clone.join("maestro-db/src");
        for folder in [&clone.join("xtask"), &inside] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(clone.join("xtask/Cargo.toml"), "").unwrap();
        assert_eq!(clone_around(&inside), Some(clone.as_path()));
        assert_eq!(clone_around(&clone), Some(clone.as_path()));
        assert_ne!(clone_around(&scratch), Some(clone.as_path()));
        assert_eq!(clone_around(Path::new("/")), None);
        std::fs::remove_dir_all(scratch).unwrap();
    }
}
