//! PostgreSQL as a client of the service.

use maestro_config::Identity;
use maestro_db::{Db, DbConfig};
use maestro_metrics::{DrainStep, HealthCheck, Registry};

use sqlx::migrate::Migrator;

use super::sealed::Sealed;
use crate::error::{Error, ErrorKind};
use crate::launch::{Launched, pause};

impl Sealed for Db {
    type Config = DbConfig;

    async fn boot(config: DbConfig, _: &Identity, registry: &Registry) -> Result<Self, Error> {
        Db::builder(config)
            .registry(registry)
            .connect_lazy()
            .map_err(|error| {
                Error::new(ErrorKind::Start, "the database client cannot be set up")
                    .caused_by(error)
            })
    }

    fn health(&self) -> Vec<HealthCheck> {
        vec![self.health_check()]
    }

    fn close(&self) -> Vec<DrainStep> {
        vec![self.drain_step()]
    }

    fn as_db(&self) -> Option<&Db> {
        Some(self)
    }
}

/// Applies migrations, waiting for the server without end; only what waiting cannot mend is an error.
pub(crate) async fn migrate(db: Db, migrator: Migrator) -> Result<Launched, Error> {
    let mut attempt = 0;
    loop {
        match db.migrate(&migrator).await {
            Ok(report) => {
                tracing::info!(%report, "the database is migrated");
                return Ok(Launched::default());
            }
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "the database cannot be migrated yet; trying again");
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
            }
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::Migration, "the database cannot be migrated")
                        .caused_by(error),
                );
            }
        }
    }
}
