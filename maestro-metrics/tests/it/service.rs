//! A service's telemetry, for one test.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use maestro_config::{Environment, Identity};
use maestro_metrics::{Registry, Telemetry, TelemetryConfig, TelemetryReport};
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// Telemetry that is the current thread's subscriber as long as this lives.
pub(crate) struct Service {
    pub(crate) identity: Identity,
    pub(crate) registry: Registry,
    pub(crate) telemetry: Telemetry,
    pub(crate) logs: Lines,
    current: Option<tracing::dispatcher::DefaultGuard>,
}

impl Service {
    /// With these variables beside the identity's.
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        let base = [
            ("MAESTRO_SERVICE_NAME", "quality-fabric"),
            ("MAESTRO_SERVICE_VERSION", "1.2.3"),
            ("MAESTRO_ENVIRONMENT", "test"),
            ("MAESTRO_TEAM", "quality"),
            ("MAESTRO_INSTANCE_ID", "qf-1"),
        ];
        let environment = Environment::from_pairs(base.iter().chain(variables).copied());
        let (identity, config) = environment.read::<(Identity, TelemetryConfig)>().unwrap();
        let registry = Registry::new(&identity);
        keep_two_subscribers();
        let logs = Lines::default();
        let telemetry = Telemetry::builder(&config, &identity, &registry)
            .log_to(logs.clone())
            .start()
            .unwrap();
        let current = Some(tracing::dispatcher::set_default(telemetry.dispatch()));
        Self {
            identity,
            registry,
            telemetry,
            logs,
            current,
        }
    }

    pub(crate) async fn shutdown(mut self, within: Duration) -> TelemetryReport {
        self.current.take();
        self.telemetry.shutdown(Instant::now() + within).await
    }
}

/// With one subscriber in a process, a place in the code that another thread comes to first is silent
/// for good: tracing then asks that thread's subscriber alone. Tests are threads of one process.
fn keep_two_subscribers() {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
}

/// A loopback address that nobody else listens on, for programs that choose no port themselves: a port
/// that was free a moment ago may be taken by any outgoing connection.
pub(crate) fn own_host() -> String {
    // The end of such an id is random.
    let [.., a, b, c] = uuid::Uuid::now_v7().into_bytes();
    // Not 127.0.0.x, and neither the first nor the last of a network.
    format!("127.{}.{b}.{}", a % 253 + 1, c % 253 + 1)
}

/// A port nobody listens on, as long as this lives.
pub(crate) struct ClosedPort {
    pub(crate) address: SocketAddr,
    /// Bound, and not listening.
    _socket: tokio::net::TcpSocket,
}

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            _socket: socket,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The sum of the series of `name` whose labels hold every one of `labels`.
pub(crate) fn sum(registry: &Registry, name: &str, labels: &[&str]) -> f64 {
    registry
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|line| line.starts_with(['{', ' ']))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Log lines, as they were written.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>);

impl Lines {
    /// From now on nothing can be written.
    pub(crate) fn fail(&self) {
        self.1.store(true, Ordering::Relaxed);
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
            .collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::Error::other("no space left"));
        }
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for a condition; fails after a deadline that only a broken test reaches.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < deadline, "waited a minute for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
