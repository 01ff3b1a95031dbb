//! Settings of the bootstrap itself: where the service listens and how it stops.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use maestro_config::{Deployment, FromEnvironment, Kind, Reader, Table, Variable};

/// Where the service listens and how long it takes to stop.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// Address of the service's listener. Default `0.0.0.0:8000`, the port every container of the
    /// platform listens on.
    pub listen: SocketAddr,
    /// Address of an own listener for `/metrics` and `/health*`; `None` makes them routes of the
    /// service's listener.
    pub operations: Option<SocketAddr>,
    /// Time between "not ready" and closed listeners, in which load balancers take the instance
    /// out. `None` means 5 s; 0 in development and test, where nothing balances.
    pub shutdown_delay: Option<Duration>,
    /// Bound of the whole drain, the delay included. Default 30 s, the grace Kubernetes gives.
    pub shutdown_timeout: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8_000)),
            operations: None,
            shutdown_delay: None,
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

const DELAY: Duration = Duration::from_secs(5);

const LISTEN: Variable = Variable::new("MAESTRO_HTTP_LISTEN", Kind::Address)
    .default("0.0.0.0:8000")
    .doc("Address the service listens on. `SERVICE_PORT` of a compose file is the host's port, not this one.")
    .example("0.0.0.0:8000");
const OPERATIONS: Variable = Variable::new("MAESTRO_METRICS_LISTEN", Kind::Address)
    .doc("Address of an own listener for `/metrics` and `/health*`; when absent they are routes of the service.")
    .example("0.0.0.0:9100");
const SHUTDOWN_DELAY: Variable = Variable::new("MAESTRO_SHUTDOWN_DELAY", Kind::Duration)
    .doc("Time between not-ready and closed listeners: `5s`; `0` in development and test.")
    .example("5s");
const SHUTDOWN_TIMEOUT: Variable = Variable::new("MAESTRO_SHUTDOWN_TIMEOUT", Kind::Duration)
    .default("30s")
    .doc("Bound of the whole drain, `MAESTRO_SHUTDOWN_DELAY` included.")
    .example("30s")
    .hint("make it longer than MAESTRO_SHUTDOWN_DELAY and shorter than the orchestrator's grace period");

static TABLE: Table = Table {
    owner: "maestro",
    areas: &["MAESTRO_HTTP_", "MAESTRO_SHUTDOWN_", "MAESTRO_METRICS_"],
    variables: &[LISTEN, OPERATIONS, SHUTDOWN_DELAY, SHUTDOWN_TIMEOUT],
};

impl FromEnvironment for ServiceConfig {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let listen = reader.address(&LISTEN);
        let operations = reader.optional(&OPERATIONS, Reader::address);
        let delay = reader.optional(&SHUTDOWN_DELAY, Reader::duration);
        let timeout = reader.duration(&SHUTDOWN_TIMEOUT);
        let (listen, operations, delay, timeout) = (listen?, operations?, delay?, timeout?);
        if delay.unwrap_or_default() >= timeout {
            reader.problem(
                &SHUTDOWN_TIMEOUT,
                "leaves no time to drain: it must be longer than MAESTRO_SHUTDOWN_DELAY",
                "MAESTRO_SHUTDOWN_TIMEOUT=30s",
            );
            return None;
        }
        Some(Self {
            listen,
            operations,
            shutdown_delay: delay,
            shutdown_timeout: timeout,
        })
    }
}

impl ServiceConfig {
    /// The delay that holds for this kind of environment.
    pub(crate) fn delay(&self, deployment: Deployment) -> Duration {
        match deployment {
            Deployment::Development | Deployment::Test => self.shutdown_delay.unwrap_or_default(),
            _ => self.shutdown_delay.unwrap_or(DELAY),
        }
    }
}
