//! What cargo knows about this clone.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::process;

/// The root of this clone.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
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
    /// It has a library, so it can have doc tests.
    pub(crate) has_library: bool,
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
        Some(Self {
            name: package["name"].as_str()?.to_owned(),
            has_library: package["targets"].as_array()?.iter().any(is_library),
        })
    }
}
