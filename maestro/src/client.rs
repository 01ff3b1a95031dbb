//! The clients a service can ask for, so that `start` treats them alike.

#[cfg(feature = "cache")]
pub(crate) mod cache;
#[cfg(feature = "db")]
pub(crate) mod db;
#[cfg(feature = "messaging")]
pub(crate) mod messaging;

use maestro_config::{FromEnvironment, Identity, Reader, Table};
use maestro_metrics::{DrainStep, HealthCheck, Registry};

use crate::error::Error;

/// A client that [`ServiceBuilder`](crate::ServiceBuilder) can boot: `()` stands for "not asked for".
///
/// Sealed: the clients of the SDK implement it, behind the features of the same names.
pub trait Client: sealed::Sealed + Clone + Send + Sync + 'static {}

impl<T: sealed::Sealed + Clone + Send + Sync + 'static> Client for T {}

pub(crate) mod sealed {
    use super::{DrainStep, Error, FromEnvironment, HealthCheck, Identity, Registry};

    /// How a client is read, connected, watched and closed. Connecting never waits for a server: a
    /// service starts in any order with its servers and becomes ready when they are there.
    pub trait Sealed: Sized {
        /// Its settings.
        type Config: FromEnvironment + Send;

        fn boot(
            config: Self::Config,
            identity: &Identity,
            registry: &Registry,
        ) -> impl Future<Output = Result<Self, Error>> + Send;

        fn health(&self) -> Vec<HealthCheck>;

        /// Closes connections; the last thing done with the client.
        fn close(&self) -> Vec<DrainStep>;

        /// Itself, if it is PostgreSQL.
        #[cfg(feature = "db")]
        fn as_db(&self) -> Option<&maestro_db::Db> {
            None
        }

        /// Itself, if it is RabbitMQ.
        #[cfg(feature = "messaging")]
        fn as_messaging(&self) -> Option<&maestro_messaging::Messaging> {
            None
        }
    }
}

/// The settings of a client that was not asked for: none.
#[derive(Debug)]
pub struct NoConfig;

impl FromEnvironment for NoConfig {
    fn tables() -> Vec<&'static Table> {
        Vec::new()
    }

    fn read(_: &mut Reader<'_>) -> Option<Self> {
        Some(Self)
    }
}

impl sealed::Sealed for () {
    type Config = NoConfig;

    async fn boot(_: NoConfig, _: &Identity, _: &Registry) -> Result<Self, Error> {
        Ok(())
    }

    fn health(&self) -> Vec<HealthCheck> {
        Vec::new()
    }

    fn close(&self) -> Vec<DrainStep> {
        Vec::new()
    }
}
