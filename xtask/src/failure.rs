//! Why a command could not do its work.

use std::fmt;

/// What was attempted, why it did not work and, where one is known, the command that mends it.
#[derive(Debug)]
pub(crate) struct Failure(String);

/// The result of everything here that can go wrong.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
