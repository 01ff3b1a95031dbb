//! Options of a database that are code and not configuration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_metrics::Registry;

use crate::client::{Db, Inner};
use crate::config::{DbConfig, Endpoint};
use crate::error::Error;
use crate::login::{Given, Login};
use crate::pool::{Holder, Pool, Servers};
use crate::replica::Replica;
use crate::retry::Backoff;
use crate::schema::Parts;
use crate::tenant::{Entered, TenantModel};

/// Builds a [`Db`].
///
/// ```no_run
/// # async fn example(config: maestro_db::DbConfig) -> Result<(), maestro_db::Error> {
/// use std::time::Duration;
/// use maestro_db::{Db, TenantModel};
/// use maestro_metrics::Registry;
///
/// let registry = Registry::detached();
/// let db = Db::builder(config)
///     .registry(&registry)
///     .tenants(TenantModel::Rows)
///     .leases() // for `db.elect(…)`
///     .wait_for_server(Duration::from_mins(1))
///     .connect()
///     .await?;
/// # let _ = db;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct DbBuilder {
    config: DbConfig,
    registry: Option<Registry>,
    wait: Option<Duration>,
    tenants: Option<TenantModel>,
    leases: bool,
}

impl DbBuilder {
    pub(crate) fn new(config: DbConfig) -> Self {
        Self {
            config,
            registry: None,
            wait: None,
            tenants: None,
            leases: false,
        }
    }

    /// Where metrics are recorded; a registry of its own otherwise.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = Some(registry.clone());
        self
    }

    /// How long [`connect`](Self::connect) waits for a server that is not there yet; the acquire
    /// timeout otherwise.
    pub fn wait_for_server(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    /// The database has tenants, kept apart like this. [`Db::migrate`] then makes the schema
    /// `maestro` first, with `maestro.protect(table)` for the service's own migrations.
    pub fn tenants(mut self, model: TenantModel) -> Self {
        self.tenants = Some(model);
        self
    }

    /// The database has leases for [`Db::elect`]. [`Db::migrate`] then makes their table in the
    /// schema `maestro` first.
    pub fn leases(mut self) -> Self {
        self.leases = true;
        self
    }

    /// Connects, and waits for a server that is starting or not reachable yet. What waiting cannot
    /// mend (a wrong password, a database that does not exist) is an error at once.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) with what to mend, or
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) with the last reason once the wait
    /// is over.
    ///
    /// # Cancellation
    /// Dropping the future closes what was opened.
    pub async fn connect(self) -> Result<Db, Error> {
        let limit = self.wait.unwrap_or(self.config.timeouts.acquire);
        let db = self.connect_lazy()?;
        let started = Instant::now();
        let mut backoff = Backoff::connecting();
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let acquired = db
                .pool()
                .acquire_within(left, Holder::Internal("connect"))
                .await;
            let Err(error) = acquired else { return Ok(db) };
            let pause = backoff.next();
            if !error.is_transient() || started.elapsed() + pause >= limit {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// A database without a connection yet: the first one is opened when it is needed, so a service
    /// starts before its server does. Its health check is unhealthy until the server is there.
    ///
    /// ```no_run
    /// # async fn example(config: maestro_db::DbConfig) -> Result<(), maestro_db::Error> {
    /// use maestro_db::Db;
    ///
    /// let db = Db::builder(config).connect_lazy()?; // nothing is awaited here
    /// println!("{:?}", db.health_check().run().await.state());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Must be called in a tokio runtime, which runs the pool's upkeep.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when the environment holds `PG*` variables
    /// that would change connections.
    pub fn connect_lazy(self) -> Result<Db, Error> {
        let Self {
            config,
            registry,
            wait: _,
            tenants,
            leases,
        } = self;
        let registry = registry.unwrap_or_else(Registry::detached);
        let given = Given::default();
        let login_to = |endpoint: &Endpoint| {
            let own = endpoint.user == config.main.user;
            let given = if own { given.clone() } else { Given::default() };
            Login::new(endpoint.clone(), given)
        };
        let name = config.database().to_owned();
        let servers = Servers {
            login: login_to(&config.main),
            successor: config.read.as_ref().map(login_to),
            patient: true,
        };
        let pool = Arc::new(Pool::new(&config, servers, &registry, &name)?);
        let replica = config
            .read
            .as_ref()
            .map(|read| Replica::new(&config, login_to(read), &registry, &pool))
            .transpose()?;
        Ok(Db::from_inner(Inner {
            config,
            pool,
            replica,
            given,
            tenants,
            parts: Parts {
                tenants: tenants.is_some(),
                leases,
            },
            entered: Entered::default(),
        }))
    }
}
