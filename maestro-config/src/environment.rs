//! The merged environment of a process.

use std::ffi::OsString;
use std::path::Path;

use crate::conventions::ServiceName;
use crate::error::{ConfigError, Problem};
use crate::files;
use crate::identity::{self, Deployment};
use crate::layers::{Definition, Layer, Layers};
use crate::origin::Origin;
use crate::reader::FromEnvironment;
use crate::report;
use crate::template::Template;

/// The environment of a process (or of a test), read once and then immutable.
///
/// Layers, lowest first: defaults; the infrastructure's env files; `.env.shared`;
/// `.env.<environment>`; `.env`; the process environment. In each, `NAME_FILE` names a file that
/// holds the value of `NAME`. Env files are read only outside staging and production.
#[derive(Clone)]
pub struct Environment {
    pub(crate) layers: Layers,
    /// What is wrong with the files; part of every report.
    pub(crate) problems: Vec<Problem>,
    pub(crate) host_name: String,
    /// True for the environment of a real process, which must say what kind of environment it is.
    pub(crate) is_process: bool,
}

impl Environment {
    /// The pure form: exactly these pairs, nothing of the process. Of a name that comes twice the
    /// last value counts.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let empty = Self {
            layers: Layers::default(),
            problems: Vec::new(),
            host_name: "localhost".to_owned(),
            is_process: false,
        };
        empty.with_pairs(pairs)
    }

    /// This environment with these pairs above everything else.
    #[must_use]
    pub fn with_pairs<K: Into<String>, V: Into<String>>(
        mut self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let definitions = pairs.into_iter().map(|(name, value)| Definition {
            name: name.into(),
            value: Some(Template::text(value.into())),
            origin: Origin::Given,
        });
        self.layers.0.push(Layer {
            definitions: definitions.collect(),
        });
        self
    }

    /// This environment with the lines of an env file above everything else; `name` is the file's
    /// name in reports. For tools that look at a file without running in its place: includes are not
    /// followed, but reported.
    ///
    /// ```
    /// use maestro_config::{Environment, Identity};
    ///
    /// let shared = "MAESTRO_SERVICE_NAME=orders\nMAESTRO_ENVIRONMENT=${KIND:-test}\n";
    /// let environment = Environment::from_pairs([("A", "b")]).with_env_file(".env.shared", shared);
    /// assert_eq!(environment.read::<Identity>()?.service().as_str(), "orders");
    /// # Ok::<(), maestro_config::ConfigError>(())
    /// ```
    #[must_use]
    pub fn with_env_file(mut self, name: &str, text: &str) -> Self {
        let (layer, problems) = files::of_text(name, text);
        self.layers.0.push(layer);
        self.problems.extend(problems);
        self
    }

    /// The environment of this process: its variables and the env files it may read.
    ///
    /// What is wrong with a file is part of the report of [`read`](Self::read), with everything
    /// else; an error here says that the working directory cannot be found.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads it"
    )]
    pub fn load() -> Result<Self, ConfigError> {
        let directory = std::env::current_dir().map_err(|error| ConfigError {
            problems: vec![Problem {
                variable: "working directory".to_owned(),
                origin: Origin::Process.to_string(),
                message: format!("cannot be found ({})", error.kind()),
                expected: "a directory that exists and may be entered".to_owned(),
                example: "/app".to_owned(),
                fix: "start the service in a directory that exists".to_owned(),
            }],
        })?;
        Ok(Self::load_in(&directory, std::env::vars_os()))
    }

    /// As [`load`](Self::load), for a process with these variables in that directory: for tools that
    /// look at another service's environment.
    pub fn load_in(
        directory: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let definitions = variables.into_iter().filter_map(|(name, value)| {
            Some(Definition {
                // No name that is not UTF-8 is ours.
                name: name.into_string().ok()?,
                value: value.into_string().ok().map(Template::text),
                origin: Origin::Process,
            })
        });
        let process = Layer {
            definitions: definitions.collect(),
        };
        let (layers, problems) = files::load(directory, process);
        Self {
            layers,
            problems,
            host_name: identity::host_name(),
            is_process: true,
        }
    }

    /// Reads one or several settings structs; all their tables are read before the first problem
    /// is reported. Warnings go to the log.
    pub fn read<T: FromEnvironment>(&self) -> Result<T, ConfigError> {
        let (value, warnings) = self.read_with_warnings()?;
        for warning in warnings {
            tracing::warn!(variable = warning.variable(), "{warning}");
        }
        Ok(value)
    }

    /// As [`read`](Self::read), for who reads before logging is set up: hands the warnings out
    /// (unknown names in development, older values) instead of logging them.
    pub fn read_with_warnings<T: FromEnvironment>(&self) -> Result<(T, Vec<Problem>), ConfigError> {
        report::read(self)
    }

    /// The kind of environment, when it is set to one.
    pub fn deployment(&self) -> Option<Deployment> {
        Deployment::parse(self.text(files::ENVIRONMENT)?.trim())
    }

    /// The service's name, when it is set to a valid one.
    pub(crate) fn service(&self) -> Option<ServiceName> {
        self.text("MAESTRO_SERVICE_NAME")?.trim().parse().ok()
    }

    fn text(&self, name: &str) -> Option<secrecy::zeroize::Zeroizing<String>> {
        Some(self.layers.effective(name)?.ok()?.text)
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.layers.names().map(|(name, _)| name).collect();
        f.debug_struct("Environment")
            .field("names", &names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
