//! A value on its way to its type, and whether a report may show it.

use secrecy::zeroize::Zeroizing;

use crate::error::Problem;
use crate::layers::Value;
use crate::origin::Origin;
use crate::parse::Wrong;
use crate::url_syntax::may_hold_password;
use crate::variable::Variable;

/// Longest part of a value in a report, in characters.
const SHOWN: usize = 60;

/// The text of a variable.
pub(crate) struct Raw {
    pub(crate) text: Zeroizing<String>,
    pub(crate) origin: Origin,
    may_be_shown: bool,
}

impl Raw {
    pub(crate) fn new(variable: &Variable, value: &Value) -> Self {
        let secret = variable.secret || value.secret || !variable.kind.may_be_shown();
        Self {
            text: value.text.clone(),
            origin: value.origin.clone(),
            may_be_shown: !secret && !may_hold_password(&value.text),
        }
    }

    pub(crate) fn of_default(text: &str) -> Self {
        Self {
            text: Zeroizing::new(text.to_owned()),
            origin: Origin::Default,
            may_be_shown: true,
        }
    }

    pub(crate) fn trimmed(&self) -> &str {
        self.text.trim()
    }

    /// The value as a report may show it.
    pub(crate) fn shown(&self) -> Option<String> {
        if !self.may_be_shown {
            return None;
        }
        let mut shown: String = self.trimmed().chars().take(SHOWN).collect();
        if shown.len() < self.trimmed().len() {
            shown.push('…');
        }
        Some(shown.escape_debug().to_string())
    }

    pub(crate) fn problem(&self, variable: &Variable, wrong: &Wrong) -> Problem {
        let message = match self.shown() {
            Some(shown) => format!("`{shown}` {}", wrong.message),
            None => format!("the value {}", wrong.message),
        };
        let can_be_pasted = |text: &&str| {
            self.may_be_shown && text.len() <= SHOWN && !text.contains(char::is_control)
        };
        let suggestion = wrong.suggestion.as_deref().filter(can_be_pasted);
        let fix = match &wrong.fix {
            Some(fix) => fix.clone(),
            None => variable.fix(suggestion),
        };
        Problem::of(variable, &self.origin, message, fix)
    }
}
