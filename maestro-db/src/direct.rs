//! Connections past the pool, for what belongs to no statement of the service.

use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::client::Db;
use crate::connect::{Connector, Purpose};
use crate::error::Error;

impl Db {
    /// Options of a connection to the server itself (`MAESTRO_POSTGRES_DIRECT_URL`), past a pooler:
    /// for LISTEN and other session features of a library that opens its own connection, such as the
    /// outbox's relay. They hold the password of this moment.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use sqlx::{Connection as _, PgConnection};
    ///
    /// let mut session = PgConnection::connect_with(&db.direct_options()?).await?;
    /// sqlx::query("set work_mem = '256MB'").execute(&mut session).await?; // holds: it is one session
    /// session.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when the environment holds `PG*` variables
    /// that would change the connection.
    pub fn direct_options(&self) -> Result<PgConnectOptions, Error> {
        let config = self.config();
        let login = self.inner().login_to(&config.direct);
        Ok(Connector::new(config, login, Purpose::Direct)?.options())
    }

    /// A connection of the migrating role that acts as the database's owner, for the tables of a
    /// library. Close it when done; it does not belong to the pool.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use sqlx::Connection as _;
    ///
    /// let mut owner = db.migration_connection().await?;
    /// sqlx::query("create table if not exists jobs (id bigint primary key)").execute(&mut owner).await?;
    /// owner.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`migrate`](Self::migrate), while it waits for the server.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection.
    pub async fn migration_connection(&self) -> Result<PgConnection, Error> {
        self.open_migration_session().await
    }
}
