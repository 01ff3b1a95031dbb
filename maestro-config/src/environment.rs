//! Where values come from.

use std::collections::BTreeMap;

use crate::error::ConfigError;
use crate::reader::{FromEnvironment, Reader};

/// The merged environment of a process (or of a test), read once and then immutable.
#[derive(Clone)]
pub struct Environment {
    pub(crate) values: BTreeMap<String, String>,
}

impl Environment {
    /// The pure form: exactly these pairs, nothing of the process.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        Self {
            values: pairs
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        }
    }

    /// The process environment.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads it"
    )]
    pub fn load() -> Result<Self, ConfigError> {
        Ok(Self::from_pairs(std::env::vars()))
    }

    /// Reads one or several settings structs; all their tables are read before the first problem
    /// is reported.
    pub fn read<T: FromEnvironment>(&self) -> Result<T, ConfigError> {
        let mut reader = Reader::new(self);
        let value = T::read(&mut reader);
        reader.finish(value)
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("names", &self.values.keys().collect::<Vec<_>>())
            .finish()
    }
}
