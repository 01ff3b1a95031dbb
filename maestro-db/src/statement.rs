//! What a statement is, from its text: operation and table for metrics, and whether it would change
//! the session or the transaction behind the back of the pool.

mod scan;
mod tags;
mod tokens;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use maestro_metrics::Histogram;
use parking_lot::RwLock;
use sqlx::SqlStr;

use crate::error::{Error, ErrorKind};

pub(crate) use tags::Tags;

/// What is known of one statement text.
#[derive(Debug)]
pub(crate) struct Statement {
    /// `SELECT`, `INSERT`, …; a closed set, because it is a metric label.
    pub(crate) operation: &'static str,
    /// The first table it names.
    pub(crate) table: Option<Box<str>>,
    /// The text, shortened for logs and reports; it holds placeholders, not values.
    pub(crate) summary: Box<str>,
    /// A prepared statement whose result can go stale when a migration changes a table.
    pub(crate) returns_rows: bool,
    pub(crate) effect: Effect,
    /// The text ends within a quoted text or a comment: nothing can follow it.
    pub(crate) is_open: bool,
    /// The text as it is sent, where that is another one.
    pub(crate) tagged: Option<SqlStr>,
    /// The series of its successes, so that it is looked up once.
    pub(crate) duration: OnceLock<Histogram>,
}

/// What a statement does beyond its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Begins, ends or divides a transaction.
    Transaction(&'static str),
    /// Changes the session beyond the end of the transaction.
    Session(&'static str),
    /// Holds until the end of the transaction, so it has no effect outside of one.
    Local(&'static str),
    /// As [`Effect::Local`], of something that says whose transaction it is.
    Scope(&'static str),
    /// Calls a function that may change the session; in a transaction the connection is closed at
    /// its end.
    Function(&'static str),
}

impl Statement {
    /// Whether it may run outside a transaction, on whichever connection is free.
    pub(crate) fn allow_on_pool(&self) -> Result<(), Error> {
        let (word, instead) = match self.effect {
            Effect::None => return Ok(()),
            Effect::Transaction(word) => (word, "use `db.begin()`, which checks the commit"),
            Effect::Session(word) | Effect::Function(word) => (
                word,
                "the next statement may run on another connection, and the next user of this one would inherit it",
            ),
            Effect::Local(word) | Effect::Scope(word) => (
                word,
                "it has no effect outside a transaction: use `db.begin()`",
            ),
        };
        Err(Error::new(
            ErrorKind::Rejected,
            format!(
                "`{word}` was not sent: {instead} (statement `{}`)",
                self.summary
            ),
        ))
    }

    /// Whether it may run in a transaction of ours; `scoped`, if that is a tenant's.
    pub(crate) fn allow_in_transaction(&self, scoped: bool) -> Result<(), Error> {
        let (kind, word, instead) = match self.effect {
            Effect::Scope(word) | Effect::Function(word) if scoped => (
                ErrorKind::Isolation,
                word,
                "it could change whose transaction this is, and this one is a tenant's",
            ),
            Effect::None | Effect::Local(_) | Effect::Scope(_) | Effect::Function(_) => {
                return Ok(());
            }
            Effect::Transaction(word) => (
                ErrorKind::Rejected,
                word,
                "use `commit`, `rollback` or `savepoint` of the transaction",
            ),
            Effect::Session(word) => (
                ErrorKind::Rejected,
                word,
                "it would outlive the transaction on a pooled connection: use SET LOCAL",
            ),
        };
        Err(Error::new(
            kind,
            format!(
                "`{word}` was not sent: {instead} (statement `{}`)",
                self.summary
            ),
        ))
    }

    /// True when the session may be another one after the transaction.
    pub(crate) fn touches_session(&self) -> bool {
        matches!(self.effect, Effect::Function(_))
    }
}

/// The statements of a text, without the semicolons between them; empty ones are left out.
pub(crate) fn split(sql: &str) -> Vec<&str> {
    scan::split(sql)
}

/// Statements seen before, so that their text is looked at once.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    tags: Tags,
    known: RwLock<HashMap<Box<str>, Arc<Statement>>>,
}

/// Services have some hundred statements; a service that builds texts without end stops being
/// remembered here and pays for the look at each text.
const REMEMBERED: usize = 1_024;

impl Statements {
    pub(crate) fn new(tags: Tags) -> Self {
        Self {
            tags,
            ..Self::default()
        }
    }

    pub(crate) fn look_up(&self, sql: &str) -> Arc<Statement> {
        if let Some(known) = self.known.read().get(sql) {
            return Arc::clone(known);
        }
        let mut statement = scan::scan(sql);
        if !statement.is_open {
            statement.tagged = self.tags.on(sql);
        }
        let statement = Arc::new(statement);
        let mut known = self.known.write();
        if known.len() < REMEMBERED {
            known.insert(sql.into(), Arc::clone(&statement));
        }
        statement
    }
}

#[cfg(test)]
mod tests;
