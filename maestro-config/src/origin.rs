//! Where a value came from.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from; printed beside every problem, so that the place to mend is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nothing sets the variable.
    Unset,
    /// The variable's default.
    Default,
    /// Pairs given to [`Environment::from_pairs`](crate::Environment::from_pairs).
    Given,
    /// The process environment.
    Process,
    /// A line of an env file.
    File {
        /// The file, relative to the working directory where it is inside it.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A mounted secret file that a `NAME_FILE` variable names.
    SecretFile {
        /// The secret file.
        path: PathBuf,
        /// Where `NAME_FILE` is set.
        named_in: Box<Self>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("not set anywhere"),
            Self::Default => f.write_str("default"),
            Self::Given => f.write_str("given pairs"),
            Self::Process => f.write_str("process environment"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::SecretFile { path, named_in } => {
                write!(f, "secret file {}, named in {named_in}", path.display())
            }
        }
    }
}
