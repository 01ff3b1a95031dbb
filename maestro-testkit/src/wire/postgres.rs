//! PostgreSQL by `tokio-postgres`: authentication is not worth a second implementation.

use std::time::Duration;

use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use super::{ANSWER, within};
use crate::background;
use crate::error::{Error, ErrorKind, sentence};
use crate::service::Address;

/// Longest wait for a lock: many processes make sandboxes at once, and a migration may be long.
const WAIT: Duration = Duration::from_mins(5);

/// A connection as the administrator. Its driver runs on the background runtime and ends when the
/// client is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    client: tokio_postgres::Client,
    whom: String,
}

pub(crate) async fn connect(address: &Address, database: &str) -> Result<Client, Error> {
    let whom = format!("PostgreSQL at {} as {}", address.authority(), address.user);
    let mut config = Config::new();
    config
        .port(address.port)
        .user(&address.user)
        .password(address.password.expose())
        .dbname(database)
        .application_name("maestro-testkit")
        .connect_timeout(Duration::from_secs(15));
    match &address.socket {
        Some(directory) => config.host_path(directory),
        None => config.host(address.host.trim_matches(['[', ']'])),
    };
    let connecting = async {
        let (client, connection) = config.connect(NoTls).await.map_err(|e| {
            // Before the handshake is over nobody answered; after it somebody refused.
            let kind = if e.as_db_error().is_some() {
                ErrorKind::Refused
            } else {
                ErrorKind::Unavailable
            };
            Error::new(kind, format!("connecting to {whom}, database {database}")).with(explain(&e))
        })?;
        background::spawn(async move {
            // The same error reaches the caller through the client.
            let _ = connection.await;
        })?;
        Ok(client)
    };
    let client = within(Duration::from_secs(30), &whom, connecting).await?;
    Ok(Client { client, whom })
}

impl Client {
    /// True once the server or the driver closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements as one simple query; `what` names them in errors, because they may hold
    /// passwords.
    pub(crate) async fn run(&self, what: &str, sql: &str) -> Result<(), Error> {
        within(ANSWER, &format!("{what} on {}", self.whom), async {
            self.client
                .batch_execute(sql)
                .await
                .map_err(|e| self.refused(what, &e))
        })
        .await
    }

    /// Runs a statement that waits for others.
    pub(crate) async fn wait(&self, what: &str, sql: &str) -> Result<(), Error> {
        within(WAIT, &format!("{what} on {}", self.whom), async {
            self.client
                .batch_execute(sql)
                .await
                .map_err(|e| self.refused(what, &e))
        })
        .await
    }

    /// The rows of a query, first column, as text.
    pub(crate) async fn column(&self, query: &str) -> Result<Vec<String>, Error> {
        within(ANSWER, &format!("{query} on {}", self.whom), async {
            let messages = self
                .client
                .simple_query(query)
                .await
                .map_err(|e| self.refused(query, &e))?;
            Ok(messages
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                    _ => None,
                })
                .collect())
        })
        .await
    }

    /// The first column of the first row.
    pub(crate) async fn value(&self, query: &str) -> Result<String, Error> {
        Ok(self
            .column(query)
            .await?
            .into_iter()
            .next()
            .unwrap_or_default())
    }

    fn refused(&self, what: &str, error: &tokio_postgres::Error) -> Error {
        let kind = if error.as_db_error().is_some() {
            ErrorKind::Refused
        } else {
            ErrorKind::Unavailable
        };
        Error::new(kind, format!("{what} on {}", self.whom)).with(explain(error))
    }
}

/// `tokio-postgres` says `db error` and keeps the server's words in the source.
fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => sentence(error),
    }
}

#[cfg(test)]
mod tests {
    use maestro_config::Secret;

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_down_is_told_from_one_that_cannot_be_found() {
        let nobody = Address {
            host: "127.0.0.1".to_owned(),
            port: 1,
            tls_port: None,
            management: None,
            socket: None,
            user: "postgres".to_owned(),
            password: Secret::new("canary".to_owned()),
            database: "postgres".to_owned(),
        };
        let error = connect(&nobody, "postgres").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
