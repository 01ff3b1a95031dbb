//! From an environment to a booted service.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use maestro_config::{Environment, Identity};
use maestro_metrics::{
    HealthRegistry, Registry, Telemetry, TelemetryConfig, observe_process, observe_runtime,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
#[cfg(feature = "db")]
use crate::client::db::migrate;
use crate::client::sealed::Sealed;
use crate::error::{Error, ErrorKind};
use crate::launch::Launcher;
#[cfg(all(feature = "db", feature = "messaging"))]
use crate::relay;
use crate::service::{Core, Service};
use crate::settings::ServiceConfig;

/// Says which clients a service has, then boots it; from [`Service::builder`].
///
/// ```no_run
/// use maestro::Service;
///
/// # async fn example() -> Result<(), maestro::Error> {
/// // A service with a database and messages, and therefore with outbox and inbox, without a cache.
/// let service = Service::builder()
///     .db()
///     .migrations(sqlx::migrate!("tests/migrations"))
///     .messaging()
///     .start()
///     .await?;
/// let outbox = service.outbox();
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is started until `start` is called"]
pub struct ServiceBuilder<D = (), C = (), M = ()> {
    environment: Option<Environment>,
    #[cfg(feature = "db")]
    migrations: Option<sqlx::migrate::Migrator>,
    clients: PhantomData<(D, C, M)>,
}

impl ServiceBuilder {
    pub(crate) fn new() -> Self {
        Self {
            environment: None,
            #[cfg(feature = "db")]
            migrations: None,
            clients: PhantomData,
        }
    }
}

impl<D, C, M> ServiceBuilder<D, C, M> {
    /// Boots from this environment instead of the process's own: for tests, several services in one
    /// process. Such a service installs no global subscriber and listens to no signal.
    ///
    /// ```no_run
    /// use maestro::Service;
    /// use maestro::config::Environment;
    ///
    /// # async fn example() -> Result<(), maestro::Error> {
    /// let environment = Environment::from_pairs([
    ///     ("MAESTRO_SERVICE_NAME", "orders"),
    ///     ("MAESTRO_ENVIRONMENT", "test"),
    ///     ("MAESTRO_HTTP_LISTEN", "127.0.0.1:0"),
    /// ]);
    /// let service = Service::builder().environment(environment).start().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    fn with<D2, C2, M2>(self) -> ServiceBuilder<D2, C2, M2> {
        ServiceBuilder {
            environment: self.environment,
            #[cfg(feature = "db")]
            migrations: self.migrations,
            clients: PhantomData,
        }
    }
}

#[cfg(feature = "db")]
impl<C, M> ServiceBuilder<(), C, M> {
    /// Asks for PostgreSQL: [`Service::db`].
    pub fn db(self) -> ServiceBuilder<maestro_db::Db, C, M> {
        self.with()
    }
}

#[cfg(feature = "db")]
impl<C, M> ServiceBuilder<maestro_db::Db, C, M> {
    /// The service's migrations (`sqlx::migrate!()`), applied when it starts, once, whatever number
    /// of replicas start together.
    pub fn migrations(mut self, migrations: sqlx::migrate::Migrator) -> Self {
        self.migrations = Some(migrations);
        self
    }
}

#[cfg(feature = "cache")]
impl<D, M> ServiceBuilder<D, (), M> {
    /// Asks for Redis: [`Service::cache`].
    pub fn cache(self) -> ServiceBuilder<D, maestro_cache::Cache, M> {
        self.with()
    }
}

#[cfg(feature = "messaging")]
impl<D, C> ServiceBuilder<D, C, ()> {
    /// Asks for RabbitMQ: [`Service::messaging`]; together with [`db`](Self::db) also the outbox and
    /// the inbox.
    pub fn messaging(self) -> ServiceBuilder<D, C, maestro_messaging::Messaging> {
        self.with()
    }
}

impl<D: Client, C: Client, M: Client> ServiceBuilder<D, C, M> {
    /// Reads every table, sets up telemetry, and builds the clients. It waits for no server: those
    /// that are down are connected to as they come, and readiness says so.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with every problem of the environment in one report.
    pub async fn start(self) -> Result<Service<D, C, M>, Error> {
        let owns_process = self.environment.is_none();
        let environment = match self.environment {
            Some(environment) => environment,
            None => Environment::load()?,
        };
        let (identity, config, telemetry, db, cache, messaging) =
            environment.read::<Settings<D, C, M>>()?;
        let registry = Registry::new(&identity);
        if owns_process {
            observe_process(&registry);
        }
        observe_runtime(&registry);
        let telemetry = Telemetry::start(&telemetry, &identity, &registry)
            .and_then(|telemetry| {
                if owns_process {
                    telemetry.install()?;
                }
                Ok(telemetry)
            })
            .map_err(|error| {
                Error::new(ErrorKind::Start, "telemetry cannot be set up").caused_by(error)
            })?;

        let db = D::boot(db, &identity, &registry).await?;
        let cache = C::boot(cache, &identity, &registry).await?;
        let messaging = M::boot(messaging, &identity, &registry).await?;
        let health = HealthRegistry::new(&identity, &registry);
        for check in [db.health(), cache.health(), messaging.health()]
            .into_iter()
            .flatten()
        {
            health.register(check);
        }
        let launcher = Launcher::new();
        #[cfg(feature = "db")]
        if let (Some(db), Some(migrations)) = (db.as_db(), self.migrations) {
            let db = db.clone();
            launcher.add(Box::new(move || Box::pin(migrate(db, migrations))));
        }
        #[cfg(all(feature = "db", feature = "messaging"))]
        if let (Some(db), Some(messaging)) = (db.as_db(), messaging.as_messaging()) {
            let (db, messaging) = (db.clone(), messaging.clone());
            launcher.add(Box::new(move || Box::pin(relay::start(db, messaging))));
        }
        let core = Core {
            identity,
            config,
            registry,
            health,
            telemetry: Mutex::new(Some(telemetry)),
            launcher,
            stopping: CancellationToken::new(),
            owns_process,
        };
        let service = Service {
            core: Arc::new(core),
            db,
            cache,
            messaging,
        };
        Ok(service)
    }
}

/// Everything that is read from the environment, so that all problems are in one report.
type Settings<D, C, M> = (
    Identity,
    ServiceConfig,
    TelemetryConfig,
    <D as Sealed>::Config,
    <C as Sealed>::Config,
    <M as Sealed>::Config,
);

impl<D, C, M> fmt::Debug for ServiceBuilder<D, C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceBuilder")
            .field("clients", &std::any::type_name::<(D, C, M)>())
            .finish_non_exhaustive()
    }
}
