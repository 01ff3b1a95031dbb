//! One report with every problem.

use std::borrow::Cow;
use std::fmt;

use crate::origin::Origin;
use crate::variable::Variable;

/// One thing that is wrong with the environment, or (as a warning) that will be one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(crate) variable: String,
    pub(crate) origin: String,
    pub(crate) message: String,
    pub(crate) expected: String,
    pub(crate) example: String,
    pub(crate) fix: String,
}

impl Problem {
    /// The variable it is about, or the file when a line of it names none.
    pub fn variable(&self) -> &str {
        &self.variable
    }

    /// Where the value came from: process environment, file and line, secret file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What is wrong, without a secret.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What would be right.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// A value that would be accepted.
    pub fn example(&self) -> &str {
        &self.example
    }

    /// What to paste or to do.
    pub fn fix(&self) -> &str {
        &self.fix
    }

    pub(crate) fn of(
        variable: &Variable,
        origin: &Origin,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            variable: variable.name.to_owned(),
            origin: origin.to_string(),
            message: message.into(),
            expected: variable.expectation(),
            example: variable.example_text().to_owned(),
            fix: fix.into(),
        }
    }

    /// Replaces every occurrence of a secret, whichever way it got into the text.
    pub(crate) fn scrub(&mut self, secret: &str) {
        for text in [
            &mut self.variable,
            &mut self.origin,
            &mut self.message,
            &mut self.expected,
            &mut self.example,
            &mut self.fix,
        ] {
            if text.contains(secret) {
                *text = text.replace(secret, "[redacted]");
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [variable, origin] = [&self.variable, &self.origin].map(|text| one_line(text));
        write!(f, "{variable} ({origin}): {}", self.message)?;
        for (label, text) in [
            ("expected", &self.expected),
            ("example", &self.example),
            ("fix", &self.fix),
        ] {
            if !text.is_empty() {
                write!(f, "\n       {label:<9} {text}")?;
            }
        }
        Ok(())
    }
}

/// A name or a path can hold anything, and must not write lines of the report.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.escape_debug().to_string().into()
    } else {
        text.into()
    }
}

/// The environment cannot be used; holds every problem found, and never a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) problems: Vec<Problem>,
}

impl ConfigError {
    /// Every problem: files first, then variables in the order of the tables, then unknown names. Of
    /// hundreds of lines in a file, or of names, the first ones and how many more there are.
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
            write!(f, "\n{:>4}. {problem}", index + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
