//! The outbox of a service that has both a database and messaging: its tables and its relay.

use maestro_db::Db;
use maestro_messaging::Messaging;
use maestro_messaging::outbox;
use sqlx::Connection as _;

use crate::error::{Error, ErrorKind};
use crate::launch::{Launched, pause};

/// Creates or upgrades the tables of outbox and inbox, waiting for the database without end, then
/// starts the relay.
pub(crate) async fn start(db: Db, messaging: Messaging) -> Result<Launched, Error> {
    let mut attempt = 0;
    while let Err(failure) = migrate(&db).await {
        if !failure.is_transient() {
            let message = "the tables of outbox and inbox cannot be created";
            return Err(Error::new(ErrorKind::Migration, message).caused_by(failure));
        }
        tracing::warn!(error = %failure, "the tables of outbox and inbox cannot be created yet; trying again");
        tokio::time::sleep(pause(attempt)).await;
        attempt += 1;
    }
    let direct = db.direct_options().map_err(|error| {
        Error::new(ErrorKind::Start, "the outbox's relay cannot be set up").caused_by(error)
    })?;
    let relay = messaging.outbox().relay(db).listen(direct).start();
    Ok(Launched {
        step: Some(relay.drain_step()),
        settled: None,
    })
}

async fn migrate(db: &Db) -> Result<(), maestro_db::Error> {
    let mut connection = db.migration_connection().await?;
    let created = outbox::migrate(&mut connection).await;
    // What cannot be closed in order is closed by being dropped.
    let _ = connection.close().await;
    created.map_err(|error| match error.into_database_error() {
        Ok(error) => error.into(),
        Err(error) => sqlx::Error::Configuration(error.into()).into(),
    })
}
