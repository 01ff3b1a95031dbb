//! What stands between us and the server, found out before the first statement of the service.
//!
//! A pooler in transaction mode hands each transaction to another session. Settings and prepared
//! statements of the session before are then missing or somebody else's, and some of that shows as
//! wrong rows instead of errors. So the first connection is not used before this was looked at.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::config::Pooler;
use crate::connect::Connector;
use crate::error::{Error, ErrorKind};

/// Looks, and gives back the connection it looked through; an error is for whoever wanted one.
pub(crate) async fn check(connector: &Connector) -> Result<PgConnection, Error> {
    let limit = connector.timeout() * 2;
    let look = async {
        match connector.pooler() {
            Pooler::None => no_pooler(connector).await,
            Pooler::PgBouncer => pgbouncer(connector).await,
        }
    };
    match tokio::time::timeout(limit, look).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "what stands before {} could not be found out within {limit:?}",
                connector.endpoint()
            ),
        )),
    }
}

/// A direct connection has what was sent with its start-up message. PgBouncer refuses that, unless it
/// was told to ignore it; then the mark is missing.
async fn no_pooler(connector: &Connector) -> Result<PgConnection, Error> {
    let mut connection = connector.open().await?;
    let (name, wanted) = MARK;
    let found = simple(
        &mut connection,
        &format!("select coalesce(pg_catalog.current_setting('{name}', true), '')"),
    )
    .await?;
    if found == wanted {
        return Ok(connection);
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "{} does not take the session's settings: a pooler stands between that ignores start-up parameters; set MAESTRO_POSTGRES_POOLER=pgbouncer",
            connector.endpoint()
        ),
    ))
}

/// A setting of nobody's that is sent along with the session's own.
pub(crate) const MARK: (&str, &str) = ("maestro.session", "direct");

/// How often the probe tries to get the first client's session for the second: PgBouncer hands out
/// the session that was used last, but others may come in between.
const ROUNDS: u32 = 5;

/// Longest wait for the second session. With one session in PgBouncer's pool it never comes.
const SECOND_SESSION: Duration = Duration::from_secs(2);

/// Prepares a statement on one client, takes the session away with another, and runs the statement
/// again: only a PgBouncer that knows prepared statements brings it along to the next session.
async fn pgbouncer(connector: &Connector) -> Result<PgConnection, Error> {
    let endpoint = connector.endpoint();
    let mut first = connector.open().await?;
    let mut second = connector.open().await?;
    // Unlike any other client's text, so that another's statement under the same name shows.
    let mark = format!("maestro-{:016x}", fastrand::u64(..));
    let probe = format!("select pg_catalog.pg_backend_pid(), '{mark}'::text");
    for _ in 0..ROUNDS {
        let before = run_probe(&mut first, &probe)
            .await
            .map_err(|error| refused(connector, error))?;
        second.execute("BEGIN").await.map_err(|error| match &error {
            sqlx::Error::Database(database) if database.message().contains("statement pooling") => {
                Error::new(
                    ErrorKind::Config,
                    format!("the PgBouncer at {endpoint} runs in statement mode, in which there are no transactions: set `pool_mode = transaction` in pgbouncer.ini"),
                )
            }
            _ => Error::during(format!("a transaction through the PgBouncer at {endpoint} failed"), error),
        })?;
        let taken = backend(&mut second).await?;
        let outcome = if taken == before.0 {
            Some(tokio::time::timeout(SECOND_SESSION, run_probe(&mut first, &probe)).await)
        } else {
            None
        };
        second.execute("ROLLBACK").await.map_err(|error| {
            Error::during(
                format!("a transaction through the PgBouncer at {endpoint} failed"),
                error,
            )
        })?;
        match outcome {
            // Somebody else came in between, or the sessions are the clients' own.
            None => {}
            Some(Ok(Ok((_, found)))) if found == mark => {
                good_bye(first).await;
                return settings_of_the_role(connector, second).await;
            }
            Some(Ok(Ok(_))) => return Err(refused(connector, sqlx::Error::RowNotFound)),
            Some(Ok(Err(error))) => return Err(refused(connector, error)),
            Some(Err(_)) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the PgBouncer at {endpoint} gave no second session within {SECOND_SESSION:?}: is its pool busy, or `default_pool_size` 1?"
                    ),
                ));
            }
        }
    }
    tracing::debug!(%endpoint, "each client keeps its own session: no pooler, or one in session mode");
    good_bye(first).await;
    settings_of_the_role(connector, second).await
}

/// The reason, when prepared statements do not survive; else the error as it is.
fn refused(connector: &Connector, error: sqlx::Error) -> Error {
    let lost = match &error {
        // Missing, or there already under another client's text.
        sqlx::Error::Database(database) => {
            matches!(
                database.code().as_deref(),
                Some("26000" | "42P05" | "08P01")
            )
        }
        // Another client's statement answered.
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => true,
        _ => false,
    };
    let endpoint = connector.endpoint();
    if lost {
        return Error::new(
            ErrorKind::Config,
            format!(
                "the PgBouncer at {endpoint} loses prepared statements between its sessions, so statements would fail or answer with another client's rows: use PgBouncer 1.21 or later with `max_prepared_statements = 200` in pgbouncer.ini, or connect to PostgreSQL itself with MAESTRO_POSTGRES_POOLER=none"
            ),
        )
        .with_source(error);
    }
    Error::during(
        format!("a statement through the PgBouncer at {endpoint} failed"),
        error,
    )
}

async fn run_probe(connection: &mut PgConnection, sql: &str) -> Result<(i32, String), sqlx::Error> {
    sqlx::query_as(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
}

/// In the simple protocol, which leaves no statement behind.
async fn backend(connection: &mut PgConnection) -> Result<i32, Error> {
    let number = simple(connection, "select pg_catalog.pg_backend_pid()::text").await?;
    number.parse().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the session has no number").with_source(error)
    })
}

async fn setting(connection: &mut PgConnection, name: &str) -> Result<String, Error> {
    // Names come from this crate.
    simple(
        connection,
        &format!("select setting from pg_catalog.pg_settings where name = '{name}'"),
    )
    .await
}

async fn simple(connection: &mut PgConnection, sql: &str) -> Result<String, Error> {
    use sqlx::Row as _;
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await;
    row.and_then(|row| row.try_get_unchecked(0))
        .map_err(|error| Error::during("looking at the session failed", error))
}

/// Behind a pooler the session's limits are the role's. Missing ones are no reason to refuse, but one
/// to be told.
async fn settings_of_the_role(
    connector: &Connector,
    mut connection: PgConnection,
) -> Result<PgConnection, Error> {
    let endpoint = connector.endpoint();
    for (name, wanted) in connector.rules() {
        let found = setting(&mut connection, name).await?;
        if found != *wanted {
            tracing::warn!(
                setting = name,
                found,
                wanted,
                mend = %format_args!(
                    "ALTER ROLE \"{}\" IN DATABASE \"{}\" SET {name} = '{wanted}'",
                    endpoint.user, endpoint.database
                ),
                "behind a pooler this setting comes from the role, and the role has another one"
            );
        }
    }
    Ok(connection)
}

async fn good_bye(connection: PgConnection) {
    let _ = tokio::time::timeout(Duration::from_secs(1), connection.close()).await;
}
