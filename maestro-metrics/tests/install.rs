//! What becomes of log lines once telemetry is the whole process's. A process of its own, because there
//! is one such subscriber.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail the test they help"
)]

use std::io;
use std::sync::{Arc, Mutex};

use maestro_config::{Environment, Identity};
use maestro_metrics::{Registry, Telemetry, TelemetryConfig};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_a_thread_came_to_between_start_and_installation_is_logged_afterwards() {
    let say = || tracing::info!("heard");
    let environment = Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "orders"),
        ("MAESTRO_ENVIRONMENT", "test"),
    ]);
    let (identity, config) = environment.read::<(Identity, TelemetryConfig)>().unwrap();
    let registry = Registry::new(&identity);
    let lines = Lines::default();
    let telemetry = Telemetry::builder(&config, &identity, &registry)
        .log_to(lines.clone())
        .start()
        .unwrap();
    std::thread::spawn(say).join().unwrap();
    telemetry.install().unwrap();
    say();
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("heard").count(), 1, "{text}");
}
