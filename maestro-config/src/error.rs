//! One report with every problem.

use std::fmt;

/// One thing that is wrong with the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(crate) variable: String,
    pub(crate) origin: String,
    pub(crate) message: String,
    pub(crate) fix: String,
}

impl Problem {
    /// The variable it is about.
    pub fn variable(&self) -> &str {
        &self.variable
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}\n    fix: {}",
            self.variable, self.origin, self.message, self.fix
        )
    }
}

/// The environment cannot be used; holds every problem found, and never a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) problems: Vec<Problem>,
}

impl ConfigError {
    /// Every problem, in the order of the tables.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 {
            "problem"
        } else {
            "problems"
        };
        write!(f, "the environment has {} {plural}:", self.problems.len())?;
        for (index, problem) in self.problems.iter().enumerate() {
            write!(f, "\n{:>3}. {problem}", index + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
