//! The page and the schema of all variables, from the same tables that are read.
//!
//! ```
//! use maestro_config::{FromEnvironment, Identity, docs};
//!
//! let tables = Identity::tables();
//! assert_eq!(docs::faults(&tables), Vec::<String>::new());
//! assert!(docs::markdown(&tables).contains("| `MAESTRO_SERVICE_NAME` | name | required |"));
//! assert_eq!(docs::json_schema(&tables)["type"], "object");
//! ```

mod faults;
mod schema;

pub use faults::faults;
pub use schema::json_schema;

use std::fmt::Write as _;

use crate::variable::{Table, Variable};

/// `docs/configuration.md`: how configuration works, and every variable of these tables, a section
/// for each crate in the order given. A table that comes twice is shown once.
pub fn markdown(tables: &[&Table]) -> String {
    let mut page = INTRODUCTION.to_owned();
    for table in unique(tables) {
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## {}\n\n", table.owner);
        page.push_str("| variable | type | default | meaning |\n| --- | --- | --- | --- |\n");
        for variable in table.variables {
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                variable.name,
                variable.kind.word(),
                default(variable),
                cell(&meaning(variable))
            );
        }
    }
    page
}

/// Tables by owner, each variable once, in the order of their first appearance.
fn unique<'a>(tables: &[&'a Table]) -> Vec<&'a Table> {
    let mut seen: Vec<&Table> = Vec::new();
    for table in tables {
        let known = |other: &&Table| {
            other.owner == table.owner && std::ptr::eq(other.variables, table.variables)
        };
        if !seen.iter().any(known) {
            seen.push(table);
        }
    }
    seen
}

fn default(variable: &Variable) -> String {
    match variable.default {
        Some(default) => format!("`{default}`"),
        None if variable.required => "required".to_owned(),
        None => "none".to_owned(),
    }
}

fn meaning(variable: &Variable) -> String {
    let mut sentences = vec![variable.doc.to_owned()];
    match variable.kind {
        crate::Kind::Choice { words } => {
            sentences.push(format!("One of `{}`.", words.join("`, `")));
        }
        crate::Kind::Count { min, max } => sentences.push(format!("From {min} to {max}.")),
        crate::Kind::Url { schemes } | crate::Kind::Urls { schemes } => {
            sentences.push(format!("Begins with `{}://`.", schemes.join("://` or `")));
        }
        _ => {}
    }
    if let Some((min, max)) = variable.bounds {
        sentences.push(format!("From {min} to {max}."));
    }
    if !variable.zero.is_empty() {
        sentences.push(format!("`0`: {}.", variable.zero));
    }
    if variable.secret {
        sentences.push("Secret.".to_owned());
    }
    if !variable.aliases.is_empty() {
        sentences.push(format!("Alias: `{}`.", variable.aliases.join("`, `")));
    }
    if !variable.example.is_empty() {
        sentences.push(format!("Example: `{}`.", variable.example));
    }
    if !variable.hint.is_empty() {
        sentences.push(format!(
            "If missing: {}.",
            variable.hint.trim_end_matches('.')
        ));
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences.join(" ")
}

/// A text that stays inside one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

const INTRODUCTION: &str = "\
# Configuration

Generated from the variable tables of the crates by `cargo xtask docs`; do not edit.

Every setting of a service is an environment variable. A service reads the tables of all crates it
uses in one pass, and a wrong environment is refused at start with one report of every problem.

**Layers**, lowest first: defaults; the infrastructure's env files (`.env.infrastructure`, and every
env file in an `infrastructure/` folder in the working directory or above it); `.env.shared`;
`.env.<environment>`; `.env`; the process environment. Env files are read only outside staging and
production.

**Secret files.** `NAME_FILE` names a file that holds the value of `NAME`, for every variable; one
line end at its end is dropped. `NAME` and `NAME_FILE` in one layer is an error. A secret read from a
file is read again when the file changes.

**Empty values.** An empty value is no value: the default holds.

**Types.** *duration*: a whole number with `ms`, `s`, `m` or `h`. *size*: a whole number with `B`,
`KiB`, `MiB` or `GiB`. `0` needs no unit. *list*: separated by commas. *address*: IP address and
port. In a URL, `@`, `/`, `?`, `#`, `:` and `%` of a user or password are percent-encoded.

**Aliases** are older names of a variable; an alias and its variable with different values is an error.

**Env files** hold `NAME=value` lines with `export`, comments, quotes, `${OTHER}`,
`${OTHER:-default}`, and `source path` for another env file. Commands are not run.

**Staging and production** refuse: the user `guest`; an empty or well-known password, or the placeholder
of an example; a server's port on the host (25432, 27379, …); a Redis database above 15; a host outside
the platform's network without TLS; a name in a crate's area that the crate does not know, or a slip of a
name that it knows (in the other environments that is a warning).
";

#[cfg(test)]
mod tests;
