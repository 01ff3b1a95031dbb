//! A service's telemetry, for one test.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use maestro_config::{Environment, Identity};
use maestro_metrics::{Registry, Telemetry, TelemetryConfig, TelemetryReport};

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
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 30 s for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
