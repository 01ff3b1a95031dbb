//! The Prometheus that Debian packages, in two generations, started for one test.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::get;
use http_body_util::BodyExt;
use maestro_config::Secret;
use maestro_metrics::{
    ErrorKind, HealthRegistry, Histogram, Metric, Operations, Pusher, observe_process,
    observe_runtime,
};
use maestro_testkit::tied;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::collector::{Behaviour, Collector};
use crate::service::{Service, own_host};

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_secs(90);

/// Ends with the test.
struct Prometheus {
    child: Child,
    folder: tempfile::TempDir,
    url: String,
}

/// The one that is installed (2.42 in Debian 12), and the one of Debian 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    Installed,
    Second,
}

impl Generation {
    fn program(self) -> PathBuf {
        match self {
            Self::Installed => PathBuf::from("prometheus"),
            Self::Second => second_generation(),
        }
    }
}

/// Prometheus 2.53, unpacked once for each clone, below `target`; from the Debian mirror that this
/// machine's apt uses.
fn second_generation() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let home = target.join("prometheus-trixie");
    let program = home.join("usr/bin/prometheus");
    // Tests of other processes may want it at the same time.
    let lock = std::fs::File::create(target.join("prometheus.lock")).unwrap();
    lock.lock().unwrap();
    if !program.exists() {
        let architecture = output(Command::new("dpkg").arg("--print-architecture"));
        let mirrors = output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Component: main",
        ]));
        let mirror = mirrors
            .lines()
            .find(|mirror| mirror.starts_with("http"))
            .map(|mirror| mirror.trim_end_matches('/'))
            .expect("a mirror in apt's sources; `apt-get update` reads them");
        let package = target.join("prometheus-trixie.deb");
        output(
            Command::new("python3")
                .args(["-c", FETCH, mirror, architecture.trim()])
                .arg(&package),
        );
        output(Command::new("dpkg-deb").arg("-x").args([&package, &home]));
    }
    program
}

/// Downloads the package that the mirror's index of Debian 13 names.
const FETCH: &str = r#"
import lzma, sys, time, urllib.request
mirror, architecture, package = sys.argv[1:]
def fetch(path):
    for pause in (1, 5, 15, None):
        try:
            return urllib.request.urlopen(f"{mirror}/{path}", timeout=60).read()
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
index = lzma.decompress(fetch(f"dists/trixie/main/binary-{architecture}/Packages.xz")).decode()
for stanza in index.split("\n\n"):
    if stanza.startswith("Package: prometheus\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        open(package, "wb").write(fetch(fields["Filename"]))
"#;

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

impl Prometheus {
    fn scraping(generation: Generation, target: std::net::SocketAddr) -> Self {
        Self::of(generation, &format!("['{target}']"), &[])
    }

    fn start(targets: &str, more: &[&str]) -> Self {
        Self::of(Generation::Installed, targets, more)
    }

    fn of(generation: Generation, targets: &str, more: &[&str]) -> Self {
        let listen = format!("{}:9090", own_host());
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 5s\n  scrape_timeout: 5s\nscrape_configs:\n- job_name: maestro\n  \
             honor_labels: true\n  static_configs:\n  - targets: {targets}\n"
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = tied(generation.program())
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={listen}"))
            .arg("--enable-feature=exemplar-storage")
            .arg("--log.level=debug")
            .args(more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the package `prometheus` is installed");
        Self {
            child,
            folder,
            url: format!("http://{listen}"),
        }
    }

    async fn until_ready(&self) {
        self.until("/api/v1/status/runtimeinfo", |answer| {
            answer["status"] == "success"
        })
        .await;
        let deadline = Instant::now() + SOON;
        while get_text(&format!("{}/-/ready", self.url))
            .await
            .is_none_or(|said| !said.contains("is Ready"))
        {
            assert!(Instant::now() < deadline, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn complaints(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains("level=warn") || line.contains("level=error"))
            .map(str::to_owned)
            .collect()
    }

    async fn ask(&self, path: &str) -> Option<serde_json::Value> {
        let body = get_text(&format!("{}{path}", self.url)).await?;
        serde_json::from_str(&body).ok()
    }

    /// The answer, once it satisfies the condition.
    async fn until(
        &self,
        path: &str,
        good: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Instant::now() + SOON;
        let mut last = None;
        while Instant::now() < deadline {
            let answer = self.ask(path).await;
            if let Some(answer) = answer.clone().filter(&good) {
                return answer;
            }
            last = answer.or(last);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{path} answered {last:?}\n{}", self.log());
    }

    /// The first series that a query finds, once it finds one.
    async fn series(&self, query: &str) -> serde_json::Value {
        let answer = self
            .until(&format!("/api/v1/query?query={query}"), |answer| {
                answer["data"]["result"]
                    .as_array()
                    .is_some_and(|all| !all.is_empty())
            })
            .await;
        answer["data"]["result"][0].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One GET over HTTP/1.1.
async fn get_text(url: &str) -> Option<String> {
    let address = url.strip_prefix("http://")?.split('/').next()?.to_owned();
    let stream = tokio::net::TcpStream::connect(&address).await.ok()?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
    let driver = tokio::spawn(connection);
    let path = url.strip_prefix("http://")?.strip_prefix(&address)?;
    let request = Request::get(path)
        .header("host", &address)
        .body(Body::empty())
        .ok()?;
    let response = sender.send_request(request).await.ok()?;
    let body = response.into_body().collect().await.ok()?.to_bytes();
    driver.abort();
    String::from_utf8(body.to_vec()).ok()
}

fn app(service: &Service) -> Router {
    let health = HealthRegistry::new(&service.identity, &service.registry);
    observe_process(&service.registry);
    observe_runtime(&service.registry);
    let routes = Router::new().route("/orders/{id}", get(|| async { "here" }));
    Operations::new(&service.registry, &health).around(routes)
}

#[tokio::test]
async fn a_real_prometheus_scrapes_without_a_warning_and_keeps_exemplars() {
    scraped_with_exemplars(Generation::Installed).await;
}

#[tokio::test]
async fn the_second_generation_scrapes_without_a_warning_and_keeps_exemplars() {
    let prometheus = scraped_with_exemplars(Generation::Second).await;
    let build = prometheus.ask("/api/v1/status/buildinfo").await.unwrap();
    let version = build["data"]["version"].as_str().unwrap();
    assert!(version.starts_with("2.53."), "{version}");
}

/// Serves `app`, and starts a Prometheus that scrapes it.
async fn scraped(
    generation: Generation,
    app: Router,
) -> (JoinHandle<std::io::Result<()>>, Prometheus) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    (serving, Prometheus::scraping(generation, target))
}

async fn scraped_with_exemplars(generation: Generation) -> Prometheus {
    let collector = Collector::http(Behaviour::Accept).await;
    let url = collector.url();
    let service = Service::start(&[("MAESTRO_TRACING_ENDPOINT", url.as_str())]);
    let app = app(&service);
    for id in 0..10 {
        let request = Request::get(format!("/orders/{id}"))
            .body(Body::empty())
            .unwrap();
        app.clone().oneshot(request).await.unwrap();
    }
    let (serving, prometheus) = scraped(generation, app).await;
    let series = prometheus
        .series("http_server_request_duration_seconds_count")
        .await;
    let labels = &series["metric"];
    assert_eq!(labels["service"], "quality-fabric");
    assert_eq!(labels["team"], "quality");
    assert_eq!(labels["environment"], "test");
    assert_eq!(labels["http_route"], "/orders/{id}");
    assert_eq!(series["value"][1], "10");

    let exemplars = "/api/v1/query_exemplars?query=http_server_request_duration_seconds_bucket&start=0&end=9999999999";
    let answer = prometheus
        .until(exemplars, |answer| {
            answer["data"].as_array().is_some_and(|all| !all.is_empty())
        })
        .await;
    let id = &answer["data"][0]["exemplars"][0]["labels"]["trace_id"];
    assert_eq!(id.as_str().unwrap().len(), 32);

    // A scrape that a busy machine was too slow for is followed by another.
    prometheus
        .until("/api/v1/targets", |targets| {
            let target = &targets["data"]["activeTargets"][0];
            target["health"] == "up" && target["lastError"] == ""
        })
        .await;
    let described = "/api/v1/metadata?metric=http_server_request_duration_seconds";
    let meta = prometheus
        .until(described, |meta| {
            meta["data"]["http_server_request_duration_seconds"].is_array()
        })
        .await;
    let meta = &meta["data"]["http_server_request_duration_seconds"][0];
    assert_eq!(
        (&meta["type"], &meta["unit"]),
        (&"histogram".into(), &"seconds".into())
    );
    let complaints = prometheus.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    serving.abort();
    prometheus
}

#[tokio::test]
async fn promtool_finds_nothing_to_say() {
    let service = Service::start(&[]);
    let app = app(&service);
    let request = Request::get("/orders/1").body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap();
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the package `prometheus` is installed");
    check
        .stdin
        .take()
        .unwrap()
        .write_all(service.registry.text().as_bytes())
        .unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[tokio::test]
async fn the_text_format_is_scraped_without_a_warning_too() {
    scraped_as_text(Generation::Installed).await;
}

#[tokio::test]
async fn the_second_generation_scrapes_the_text_format_without_a_warning_too() {
    scraped_as_text(Generation::Second).await;
}

async fn scraped_as_text(generation: Generation) {
    let service = Service::start(&[]);
    let app = app(&service);
    let request = Request::get("/orders/1").body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap();
    // Who asks for nothing gets text; this Prometheus always asks.
    let app = app.layer(axum::middleware::map_request(
        |mut request: Request<Body>| async move {
            request.headers_mut().remove("accept");
            request
        },
    ));
    let (serving, prometheus) = scraped(generation, app).await;
    let series = prometheus.series("maestro_build_info").await;
    assert_eq!(series["metric"]["version"], "1.2.3");
    let complaints = prometheus.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    serving.abort();
}

const PUSHED: Metric<Histogram, 1> =
    Metric::seconds("job_step_duration_seconds", "Steps.").labels(["step"]);

#[tokio::test]
async fn a_job_pushes_what_it_measured() {
    let service = Service::start(&[]);
    let steps = service.registry.family(&PUSHED);
    for _ in 0..3 {
        steps.with(["load"]).observe(0.3);
    }
    let prometheus = Prometheus::start("[]", &["--web.enable-remote-write-receiver"]);
    prometheus.until_ready().await;
    let endpoint = Secret::new(prometheus.url.clone());
    let pusher = Pusher::new(&endpoint, &service.identity, &service.registry).unwrap();
    pusher.push(Instant::now() + SOON).await.unwrap();
    let result = prometheus.series("job_step_duration_seconds_count").await;
    assert_eq!(result["value"][1], "3");
    for (label, value) in [
        ("job", "quality-fabric"),
        ("instance", "qf-1"),
        ("service", "quality-fabric"),
        ("step", "load"),
    ] {
        assert_eq!(result["metric"][label], value, "{label}");
    }
    let complaints = prometheus.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[tokio::test]
async fn a_prometheus_that_takes_no_pushes_is_named_with_the_fix() {
    let service = Service::start(&[]);
    let prometheus = Prometheus::start("[]", &[]);
    prometheus.until_ready().await;
    let url = prometheus.url.replace("http://", "http://user:canary@");
    let pusher = Pusher::new(&Secret::new(url), &service.identity, &service.registry).unwrap();
    let error = pusher.push(Instant::now() + SOON).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    let said = format!("{error} {error:?} {pusher:?}");
    assert!(
        said.contains("--web.enable-remote-write-receiver"),
        "{said}"
    );
    assert!(!said.contains("canary"), "{said}");
}

#[tokio::test]
async fn a_push_ends_by_its_deadline_when_nobody_answers() {
    let service = Service::start(&[]);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Secret::new(format!("http://{}", silent.local_addr().unwrap()));
    let pusher = Pusher::new(&endpoint, &service.identity, &service.registry).unwrap();
    let start = Instant::now();
    let error = pusher
        .push(start + Duration::from_millis(500))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(start.elapsed() < SOON);
}
