//! Events that are published if, and only if, the transaction that caused them commits; and effects
//! that happen once although messages come twice.
//!
//! Everything lives in schema `maestro` of the service's own database, with a ledger of its own
//! ([`migrate`]).

mod inbox;
mod lease;
mod listen;
mod relay;
mod saga;
mod schema;
mod standstill;
mod store;

pub use inbox::Inbox;
pub use relay::{Relay, RelayBuilder};
pub use saga::Saga;
pub use schema::migrate;
pub use store::Outbox;

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// One statement's answer, within [`STATEMENT_DEADLINE`].
async fn answered<T>(
    what: &str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(STATEMENT_DEADLINE, statement).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(database(what, error)),
        Err(_) => Err(Error::new(
            ErrorKind::Database,
            format!("{what}: no answer within {STATEMENT_DEADLINE:?}"),
        )),
    }
}

fn database(what: &str, error: sqlx::Error) -> Error {
    let missing = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == UNDEFINED_TABLE || code == UNDEFINED_SCHEMA);
    let hint = if missing {
        "; run the migrations first: `maestro_messaging::outbox::migrate`"
    } else {
        ""
    };
    Error::new(ErrorKind::Database, format!("{what}{hint}")).with_source(error)
}

const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_SCHEMA: &str = "3F000";
/// The relay's own statements touch hundreds of rows by index.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
