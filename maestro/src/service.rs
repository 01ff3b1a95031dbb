//! The running service: its clients, and `serve`, which holds it together until it is asked to stop.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use maestro_config::Identity;
use maestro_metrics::{DrainPhase, DrainStep, HealthRegistry, Leftover, Registry, Telemetry};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::builder::ServiceBuilder;
use crate::client::Client;
use crate::drain::{Drain, DrainReport};
use crate::error::Error;
use crate::launch::{Launcher, Launching};
use crate::routes;
use crate::server::Server;
use crate::settings::ServiceConfig;
use crate::signals::Signals;

/// A booted service: identity, telemetry, and the clients that were asked for.
///
/// The type says which clients there are: `Service<Db, Cache, Messaging>` has all three, `()` stands
/// for one that was not asked for, and asking for it does not compile. Clones share everything.
pub struct Service<D = (), C = (), M = ()> {
    pub(crate) core: Arc<Core>,
    pub(crate) db: D,
    pub(crate) cache: C,
    pub(crate) messaging: M,
}

/// What every service has, whatever its clients.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) config: ServiceConfig,
    pub(crate) registry: Registry,
    pub(crate) health: HealthRegistry,
    pub(crate) telemetry: Mutex<Option<Telemetry>>,
    pub(crate) launcher: Launcher,
    /// Cancelled when the service begins to stop.
    pub(crate) stopping: CancellationToken,
    /// Only a service that was built from the process's own environment listens to its signals.
    pub(crate) owns_process: bool,
}

impl Service {
    /// A service without clients yet; ask for them one by one.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), maestro::Error> {
    /// let service = maestro::Service::builder().db().cache().messaging().start().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ServiceBuilder {
        ServiceBuilder::new()
    }
}

impl<D: Client, C: Client, M: Client> Service<D, C, M> {
    /// Who the service is.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), maestro::Error> {
    /// let service = maestro::Service::builder().start().await?;
    /// let who = service.identity();
    /// println!("{} {} as {}", who.service(), who.version(), who.instance());
    /// # Ok(())
    /// # }
    /// ```
    pub fn identity(&self) -> &Identity {
        &self.core.identity
    }

    /// Where the service's own metrics are registered.
    ///
    /// ```no_run
    /// use maestro::Service;
    /// use maestro::metrics::{Counter, Metric};
    ///
    /// const PLACED: Metric<Counter> = Metric::counter("orders_placed_total", "Orders placed.");
    ///
    /// # async fn example() -> Result<(), maestro::Error> {
    /// let service = Service::builder().start().await?;
    /// let placed = service.registry().metric(&PLACED); // once; then wherever an order is placed:
    /// placed.increment();
    /// # Ok(())
    /// # }
    /// ```
    pub fn registry(&self) -> &Registry {
        &self.core.registry
    }

    /// Where further health checks are registered.
    ///
    /// ```no_run
    /// use maestro::Service;
    /// use maestro::metrics::Criticality;
    ///
    /// # async fn example() -> Result<(), maestro::Error> {
    /// let service = Service::builder().cache().start().await?;
    /// // This one cannot do without its cache: not ready as long as Redis is away.
    /// let check = service.cache().health_check().criticality(Criticality::Critical);
    /// service.health().register(check);
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> &HealthRegistry {
        &self.core.health
    }

    /// Asks the service to stop, as SIGTERM does; returns at once.
    pub fn stop(&self) {
        self.core.stopping.cancel();
    }

    /// Completes when the service begins to stop: for handlers of endless responses (SSE), which
    /// would otherwise be cut off at the deadline.
    ///
    /// # Cancellation
    /// Safe; it only waits.
    pub async fn stopping(&self) {
        self.core.stopping.cancelled().await;
    }

    /// Adds a step to the shutdown, run in its phase after the SDK's own steps of that phase.
    pub fn on_drain(&self, step: DrainStep) {
        self.core.launcher.drain_later(step);
    }

    /// Serves `app` on `MAESTRO_HTTP_LISTEN` until SIGTERM or SIGINT (or [`stop`](Self::stop)), then
    /// drains: not ready, `MAESTRO_SHUTDOWN_DELAY`, listener closed, requests finished, consumers
    /// drained, outbox flushed, pools closed, telemetry flushed, all within
    /// `MAESTRO_SHUTDOWN_TIMEOUT`. A second signal ends the process at once.
    ///
    /// The app gets request metrics, spans, correlation ids, panic protection, `/metrics` and
    /// `/health*`. Until the migrations are applied its own routes answer 503; a server that is not
    /// there yet is waited for, without end.
    ///
    /// # Errors
    /// [`ErrorKind::Listen`](crate::ErrorKind::Listen) when the address cannot be bound, [`ErrorKind::Migration`](crate::ErrorKind::Migration) when a
    /// migration can never be applied, [`ErrorKind::Drain`](crate::ErrorKind::Drain) when something was left behind: return it
    /// from `main` and the exit code is honest.
    ///
    /// # Cancellation
    /// Dropping the future stops at once, without a drain.
    pub async fn serve(self, app: Router) -> Result<(), Error> {
        let address = self.core.config.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| Error::listening(address, error))?;
        self.serve_on(listener, app).await.map(|_| ())
    }

    /// As [`serve`](Self::serve), on a listener that is bound already: for tests that let the system
    /// choose a port. Gives the account of the drain.
    pub async fn serve_on(self, listener: TcpListener, app: Router) -> Result<DrainReport, Error> {
        let core = self.core.clone();
        let mut signals = Signals::listen(core.owns_process)?;
        let (public, operational) = routes::assemble(&core, app);
        let operations = match operational {
            Some((address, router)) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|error| Error::listening(address, error))?;
                Some(Server::spawn(listener, router)?)
            }
            None => None,
        };
        let server = Server::spawn(listener, public)?;
        tracing::info!(address = %server.address(), version = core.identity.version(), "the service is listening");
        core.health.start();
        let launching = core.launcher.launch(core.health.clone());

        let failed = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "asked to stop");
                None
            }
            () = core.stopping.cancelled() => None,
            error = launching.failed() => Some(error),
        };
        core.stopping.cancel();
        let report = tokio::select! {
            report = self.drain(server, operations, launching) => report,
            signal = signals.next() => Signals::end_process(signal),
        };
        match failed {
            Some(error) => Err(error),
            None if report.is_clean() => Ok(report),
            None => Err(Error::unclean(&report)),
        }
    }

    async fn drain(
        self,
        server: Server,
        operations: Option<Server>,
        launching: Launching,
    ) -> DrainReport {
        let core = self.core;
        let mut drain = Drain::until(Instant::now() + core.config.shutdown_timeout);
        // The probes say "not ready" and every response says "come back elsewhere" from the start of
        // the delay; new requests are still answered, for a balancer that has not looked yet.
        core.health.drain();
        server.leave();
        tokio::time::sleep(core.config.delay(core.identity.deployment())).await;
        launching.stop().await;

        let mut steps = vec![DrainStep::new("http", DrainPhase::Requests, |deadline| {
            server.close(deadline)
        })];
        steps.extend(core.launcher.take_steps());
        steps.extend(
            [self.messaging.close(), self.cache.close(), self.db.close()]
                .into_iter()
                .flatten(),
        );
        steps.sort_by_key(DrainStep::phase);
        for step in steps {
            drain.run(step).await;
        }
        // Probes are answered until everything else is closed; then telemetry says what happened.
        if let Some(operations) = operations {
            drain
                .run(DrainStep::new(
                    "operations",
                    DrainPhase::Telemetry,
                    |deadline| operations.close(deadline),
                ))
                .await;
        }
        core.health.stop().await;
        let telemetry = core.telemetry.lock().take();
        if let Some(telemetry) = telemetry {
            drain
                .run(DrainStep::new(
                    "telemetry",
                    DrainPhase::Telemetry,
                    |deadline| flush(telemetry, deadline),
                ))
                .await;
        }
        drain.finish()
    }
}

/// Delivers what is queued; spans that could not be delivered are what is left. It ends a little
/// before the deadline: a step that is cut off there cannot say how many spans that was.
async fn flush(telemetry: Telemetry, deadline: Instant) -> Leftover {
    let room = deadline.saturating_duration_since(Instant::now());
    let end = deadline.checked_sub((room / 4).min(REPORT));
    let report = telemetry.shutdown(end.unwrap_or(deadline)).await;
    if report.is_clean() {
        Leftover::none()
    } else {
        Leftover::unknown(report.to_string())
    }
}

/// To say what was not delivered: the export thread gets 250 ms to end after its deadline.
const REPORT: Duration = Duration::from_millis(500);

impl<D: Clone, C: Clone, M: Clone> Clone for Service<D, C, M> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            db: self.db.clone(),
            cache: self.cache.clone(),
            messaging: self.messaging.clone(),
        }
    }
}

impl<D, C, M> fmt::Debug for Service<D, C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("identity", &self.core.identity)
            .field("config", &self.core.config)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "db")]
impl<C, M> Service<maestro_db::Db, C, M> {
    /// The service's PostgreSQL.
    pub fn db(&self) -> &maestro_db::Db {
        &self.db
    }
}

#[cfg(feature = "cache")]
impl<D, M> Service<D, maestro_cache::Cache, M> {
    /// The service's Redis.
    pub fn cache(&self) -> &maestro_cache::Cache {
        &self.cache
    }
}
