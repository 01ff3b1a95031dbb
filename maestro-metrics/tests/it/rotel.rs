//! A collector of somebody else's takes the spans over both protocols, and passes them on intact.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use maestro_metrics::Context;
use maestro_testkit::tied;
use tracing::{Instrument, info_span};

use crate::collector::{Behaviour, Collector, text};
use crate::service::{Service, own_host, until};

/// The release that the test was written against.
const VERSION: &str = "0.0.1a15";
const FLUSH: Duration = Duration::from_mins(1);

/// The agent of the Python package `rotel`, installed once for each clone, below `target`.
fn agent() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let home = target.join(format!("rotel-{VERSION}"));
    let agent = home.join("rotel/rotel-agent");
    // Tests of other processes may want it at the same time.
    let lock = std::fs::File::create(target.join("rotel.lock")).unwrap();
    lock.lock().unwrap();
    if !agent.exists() {
        let output = Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
            ])
            .arg("--target")
            .arg(&home)
            .arg(format!("rotel=={VERSION}"))
            .output()
            .expect("python3 with pip (Debian package `python3-pip`)");
        assert!(
            output.status.success(),
            "installing rotel: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    agent
}

/// Ends with the test.
struct Rotel {
    child: Child,
    folder: tempfile::TempDir,
}

impl Rotel {
    /// On OTLP's ports of an address of its own, passing everything on to `next`.
    async fn start(host: &str, next: &Collector) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("output")).unwrap();
        let child = tied(agent())
            .arg("start")
            .args(["--otlp-http-endpoint", &format!("{host}:4318")])
            .args(["--otlp-grpc-endpoint", &format!("{host}:4317")])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-endpoint", &next.url()])
            .args(["--otlp-exporter-retry-initial-backoff", "100ms"])
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .arg("--log-file")
            .arg(folder.path().join("log"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let rotel = Self { child, folder };
        until("rotel listens", || {
            [4317, 4318]
                .iter()
                .all(|port| std::net::TcpStream::connect((host, *port)).is_ok())
        })
        .await;
        rotel
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn passes_on(port: u16) {
    let next = Collector::http(Behaviour::Accept).await;
    let host = own_host();
    let rotel = Rotel::start(&host, &next).await;
    let url = format!("http://{host}:{port}");
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    let context = Context::new().or_new_correlation().with_tenant("acme");
    async {
        let statement = info_span!("select", otel.kind = "client", rows = 3_u64, ok = true);
        async { tracing::error!("no such table") }
            .instrument(statement)
            .await;
    }
    .instrument(context.span(|| info_span!("order", amount = 12.5)))
    .await;
    let report = service.shutdown(FLUSH).await;
    assert!(report.is_clean(), "{report}\n{}", rotel.output());
    assert_eq!(report.exported, 2, "{report}");

    until("rotel passes the spans on", || next.spans().len() == 2).await;
    let (order, select) = (next.span("order"), next.span("select"));
    assert_eq!(select.parent_span_id, order.span_id);
    assert_eq!(select.trace_id, order.trace_id);
    assert_eq!(select.kind, 3);
    assert_eq!(select.status.as_ref().unwrap().code, 2);
    assert_eq!(select.events[0].name, "no such table");
    assert!(order.end_time_unix_nano >= select.end_time_unix_nano);
    for (span, key, value) in [
        (&select, "rows", "3"),
        (&select, "ok", "true"),
        (&order, "amount", "12.5"),
        (&order, "tenant.id", "acme"),
    ] {
        assert_eq!(text(span, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(
        next.resource("service.name").as_deref(),
        Some("quality-fabric")
    );
    assert_eq!(next.resource("service.version").as_deref(), Some("1.2.3"));
}

#[tokio::test]
async fn rotel_takes_spans_over_http() {
    passes_on(4318).await;
}

#[tokio::test]
async fn rotel_takes_spans_over_grpc() {
    passes_on(4317).await;
}
