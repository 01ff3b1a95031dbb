//! The syntax of env files: what a shell's `source` and a compose file's `env_file` both accept.
//!
//! Lines are `NAME=value`, optionally after `export`; `source path` or `. path`; comments. A value
//! is unquoted (to the end of the line or to ` #`), `'literal'`, `"with ${REFERENCES} and \n"`, or
//! several of these side by side. Whatever a shell would do beyond that (commands, conditions) is
//! refused with what to write instead, because guessing at it would give a service a wrong password.
//!
//! A fault never repeats the line, nor a name that could be a piece of a secret.

mod cursor;
mod refused;
mod value;

use cursor::{Cursor, is_name};
use refused::{
    APOSTROPHE, BARE_NAME, COMPOSE, Refused, Result, SHELL, SPACES, UNCLOSED, WRONG_NAME,
};

use crate::template::Template;

/// What one line says.
pub(crate) enum Item {
    /// `NAME=value`.
    Assign { name: String, value: Template },
    /// `source path`; an optional file may be missing.
    Include { path: Template, optional: bool },
}

/// A line that says nothing understandable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: usize,
    /// The variable, when the line got as far as naming one.
    pub(crate) name: Option<String>,
    pub(crate) message: &'static str,
    pub(crate) fix: &'static str,
}

/// The items of a file with their lines, and every fault.
#[derive(Default)]
pub(crate) struct Parsed {
    pub(crate) items: Vec<(usize, Item)>,
    pub(crate) faults: Vec<Fault>,
}

/// Parses a whole file. Lines end in LF or CRLF; a byte order mark is skipped.
pub(crate) fn parse(text: &str) -> Parsed {
    let mut cursor = Cursor::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut parsed = Parsed::default();
    // After a quote that nothing closes, what follows may be the inside of a certificate: settings
    // are still taken from it, so that one mistake does not look like twenty, but it is no longer
    // judged.
    let mut judging = true;
    while !cursor.at_end() {
        let start = cursor;
        let mut name = None;
        match item(&mut cursor, &mut name) {
            Ok(Some(item)) => parsed.items.push((start.line(), item)),
            Ok(None) => {}
            Err(refused) => {
                if judging {
                    let Refused { message, fix } = refused;
                    let line = start.line();
                    parsed.faults.push(Fault {
                        line,
                        name,
                        message,
                        fix,
                    });
                }
                judging &= refused != UNCLOSED;
                if [UNCLOSED, APOSTROPHE].contains(&refused) {
                    cursor = start;
                }
                cursor.skip_line();
            }
        }
    }
    parsed
}

fn item(cursor: &mut Cursor<'_>, named: &mut Option<String>) -> Result<Option<Item>> {
    cursor.skip_blanks();
    if cursor.at_line_end() || cursor.starts_with("#") {
        cursor.skip_line();
        return Ok(None);
    }
    if cursor.skip_word("source") || cursor.skip_word(".") {
        return include(cursor, false).map(Some);
    }
    if ["[ ", "[[ ", "test "]
        .iter()
        .any(|word| cursor.starts_with(word))
    {
        return guarded_include(cursor).map(Some);
    }
    if cursor.skip_word("set") {
        // How shells are told to export what follows.
        let flags = cursor.line_text().trim();
        if !["-a", "+a", "-o allexport", "+o allexport"].contains(&flags) {
            return Err(SHELL);
        }
        cursor.skip_line();
        return Ok(None);
    }
    let exported = cursor.skip_word("export");
    let line = cursor.line_text();
    let Some(name) = cursor.identifier().filter(|name| is_name(name)) else {
        return Err(refuse_line(line));
    };
    if !cursor.skip('=') {
        if exported && cursor.line_text().trim().is_empty() {
            // `export NAME` marks a variable that has a value already.
            cursor.skip_line();
            return Ok(None);
        }
        return Err(refuse_after_name(cursor.line_text()));
    }
    let conventional = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    *named = name.chars().all(conventional).then(|| name.clone());
    let line = cursor.line_text();
    if line.starts_with([' ', '\t']) && !line.trim().is_empty() && !line.trim().starts_with('#') {
        return Err(SPACES);
    }
    let value = value::to_line_end(cursor)?;
    Ok(Some(Item::Assign { name, value }))
}

/// After `source`. `2>/dev/null` and `|| true` say that the file may be missing.
fn include(cursor: &mut Cursor<'_>, mut optional: bool) -> Result<Item> {
    let path = value::word(cursor)?;
    let line = cursor.line_text();
    let mut tail = line.split('#').next().unwrap_or_default().trim();
    for word in ["2>/dev/null", "2> /dev/null", "|| true", "||true", "|| :"] {
        if let Some(after) = tail.strip_prefix(word) {
            tail = after.trim();
            optional = true;
        }
    }
    if !["", ";"].contains(&tail) || path.0.is_empty() {
        return Err(SHELL);
    }
    cursor.skip_line();
    Ok(Item::Include { path, optional })
}

/// `[ -f path ] && source path`.
fn guarded_include(cursor: &mut Cursor<'_>) -> Result<Item> {
    let line = cursor.line_text();
    let (condition, _) = line.split_once("&&").ok_or(SHELL)?;
    cursor.skip_bytes(condition.len() + 2);
    cursor.skip_blanks();
    if cursor.skip_word("source") || cursor.skip_word(".") {
        return include(cursor, true);
    }
    Err(SHELL)
}

/// Why a line that does not begin with a name is refused.
fn refuse_line(line: &str) -> Refused {
    if line.starts_with("- ") {
        return COMPOSE;
    }
    let before = line.split('=').next().unwrap_or_default();
    if line.contains('=') && !before.trim_end().contains(char::is_whitespace) {
        return WRONG_NAME;
    }
    SHELL
}

/// Why a name that `=` does not follow is refused.
fn refuse_after_name(rest: &str) -> Refused {
    match rest.trim_start().chars().next() {
        None => BARE_NAME,
        Some('=') => SPACES,
        Some(':') => COMPOSE,
        Some('.' | '-') if rest.contains('=') => WRONG_NAME,
        Some(_) => SHELL,
    }
}

#[cfg(test)]
mod tests;
