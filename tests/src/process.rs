//! One service as a process of its own.

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use maestro_testkit::tied;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::process::{Child, Command};

/// A started service; killed when dropped, so that a failed scenario leaves nothing behind.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    address: SocketAddr,
    log: PathBuf,
    child: Child,
    http: reqwest::Client,
    refusals: Mutex<String>,
}

impl Process {
    /// Starts `binary` with nothing but the given environment; its output goes to `<logs>/<name>.log`.
    pub fn start(
        name: &'static str,
        binary: &Path,
        environment: &[(String, String)],
        logs: &Path,
    ) -> Result<Self> {
        let address = free_address()?;
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = Command::from(tied(binary))
            .env_clear()
            .envs(environment.iter().cloned())
            .env("MAESTRO_HTTP_LISTEN", address.to_string())
            .env("MAESTRO_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        Ok(Self {
            name,
            address,
            log,
            child,
            http: http(),
            refusals: Mutex::default(),
        })
    }

    /// The service's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// The URL of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// GET: status and JSON body (null when it is no JSON).
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Value)> {
        self.answer(self.http.get(self.url(path))).await
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.answer(self.http.post(self.url(path)).json(body)).await
    }

    /// PUT of a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
        self.answer(self.http.put(self.url(path)).json(body)).await
    }

    /// GET of a body that is no JSON.
    pub async fn text(&self, path: &str) -> Result<String> {
        Ok(self
            .http
            .get(self.url(path))
            .timeout(CALL)
            .send()
            .await?
            .text()
            .await?)
    }

    /// Waits until `/health/ready` answers 200; says how long that took.
    pub async fn ready(&mut self, within: Duration) -> Result<Duration> {
        self.answers(within, "ready", async |process| {
            matches!(process.get("/health/ready").await, Ok((StatusCode::OK, _)))
        })
        .await
    }

    /// Waits until `/health` says that everything is healthy, subscriptions bound to their publishers
    /// included; says how long that took.
    pub async fn healthy(&mut self, within: Duration) -> Result<Duration> {
        self.answers(within, "healthy", async |process| {
            let health = process.get("/health").await;
            matches!(health, Ok((_, health)) if health["status"] == "healthy" && health["ready"] == true)
        })
        .await
    }

    /// Every answer so far that was no success: status, headers and body.
    pub fn refusals(&self) -> String {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<(StatusCode, Value)> {
        let response = request.timeout(CALL).send().await?;
        let status = response.status();
        let headers = format!("{:?}", response.headers());
        let body = response.bytes().await?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            // Writing to a string cannot fail.
            let _ = writeln!(refusals, "{status} {headers} {text}");
        }
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    async fn answers(
        &mut self,
        within: Duration,
        what: &str,
        good: impl AsyncFn(&Self) -> bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.log()?);
            }
            if good(self).await {
                return Ok(started.elapsed());
            }
            let log = || self.log().unwrap_or_default();
            ensure!(
                started.elapsed() < within,
                "{} is not {what} after {within:?}:\n{}",
                self.name,
                log()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it answers requests, be it "not ready"; says how long that took.
    pub async fn alive(&mut self, within: Duration) -> Result<Duration> {
        self.answers(within, "alive", async |process| {
            matches!(process.get("/health/live").await, Ok((StatusCode::OK, _)))
        })
        .await
    }

    /// Sends SIGTERM and waits for the end: exit code (none when a signal ended it) and time taken.
    pub async fn terminate(&mut self, within: Duration) -> Result<(Option<i32>, Duration)> {
        self.signal(rustix::process::Signal::TERM)?;
        self.ended(within).await
    }

    /// Waits for the end: exit code (none when a signal ended it) and time taken.
    pub async fn ended(&mut self, within: Duration) -> Result<(Option<i32>, Duration)> {
        let started = Instant::now();
        let status = tokio::time::timeout(within, self.child.wait())
            .await
            .with_context(|| format!("{} did not stop within {within:?}", self.name))??;
        Ok((status.code(), started.elapsed()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        rustix::process::kill_process(pid.context("the process has ended")?, signal)?;
        Ok(())
    }
}

/// An HTTP client. Nothing here speaks TLS, but reqwest wants a provider for it before it exists.
pub fn http() -> reqwest::Client {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().pool_idle_timeout(IDLE).build();
    // What can fail is TLS, which nothing here speaks.
    client.unwrap_or_default()
}

/// Polls until `look` finds something; an error of `look` ends the wait.
pub async fn until<T>(
    within: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    // Around the look too: it may be what never answers.
    match tokio::time::timeout(within, looking).await {
        Ok(found) => found,
        Err(_) => bail!("{what}: not seen within {within:?}"),
    }
}

/// The value below which `percent` of the samples lie; zero without samples.
pub fn percentile(samples: &mut [Duration], percent: usize) -> Duration {
    samples.sort_unstable();
    let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(index).copied().unwrap_or_default()
}

/// An address for a program that binds it itself, a moment after it was found free. Nobody else takes it
/// in between: of the sixteen million loopback addresses everybody else uses 127.0.0.1, and the port lies
/// below those that the kernel gives to outgoing connections.
pub fn free_address() -> Result<SocketAddr> {
    let candidate = || {
        let part = || fastrand::u8(1..255);
        SocketAddr::from(([127, part(), part(), part()], fastrand::u16(25_000..32_000)))
    };
    std::iter::repeat_with(candidate)
        .take(1_000)
        .find(|address| std::net::TcpListener::bind(address).is_ok())
        .context("no free loopback address")
}

/// Longest a single request of a scenario may take: longer than every deadline of the services, on a
/// machine that is slow at the same time.
const CALL: Duration = Duration::from_mins(1);

/// A service closes a connection that was silent for 30 s, perhaps just when the next request is written.
const IDLE: Duration = Duration::from_secs(5);

/// How often a condition is looked at again.
pub const POLL: Duration = Duration::from_millis(25);
