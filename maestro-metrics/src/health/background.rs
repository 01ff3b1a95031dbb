//! All checks of a service, run in the background; who asks gets the latest answer at once.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use maestro_config::Identity;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{HealthCheck, HealthState, HealthStatus};
use crate::guard::catch_panic;
use crate::handle::{Gauge, Histogram};
use crate::metrics::{HEALTH_DURATION, HEALTH_STATE};
use crate::registry::Registry;
use crate::timestamp::timestamp;

/// The health of a service. A clone is the same.
///
/// ```
/// use maestro_config::{Environment, Identity};
/// use maestro_metrics::{Criticality, HealthCheck, HealthRegistry, HealthStatus, Probe, Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let environment = Environment::from_pairs([
/// #     ("MAESTRO_SERVICE_NAME", "orders"), ("MAESTRO_ENVIRONMENT", "test")]);
/// let identity: Identity = environment.read()?;
/// let health = HealthRegistry::new(&identity, &Registry::new(&identity));
/// health.register(HealthCheck::new("postgres", Criticality::Critical, || async {
///     HealthStatus::healthy()
/// }));
/// health.start();
/// health.started();
/// health.until_ready().await;
/// assert!(health.report().ready);
/// assert!(health.answer(Probe::Ready).good);
/// health.drain(); // not ready any more
/// health.stop().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HealthRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    identity: String,
    entries: Mutex<Vec<Arc<Entry>>>,
    /// The answers, rendered whenever something changes.
    answers: RwLock<Arc<Answers>>,
    ready: watch::Sender<bool>,
    running: Mutex<Option<JoinSet<()>>>,
    stop: watch::Sender<bool>,
    started: AtomicBool,
    draining: AtomicBool,
}

struct Entry {
    check: HealthCheck,
    duration: Histogram,
    states: [(HealthState, Gauge); 3],
    last: Mutex<Option<Last>>,
}

#[derive(Clone)]
struct Last {
    status: HealthStatus,
    at: SystemTime,
    took: Duration,
}

struct Answers {
    report: HealthReport,
    ready: Bytes,
    startup: Bytes,
    whole: Bytes,
}

/// A question asked of a service from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Probe {
    /// Does the process work at all? Always yes where this can be answered: a restart is no cure
    /// for a dependency that is away.
    Live,
    /// Should it get requests?
    Ready,
    /// Has it been complete once?
    Startup,
    /// How is everything? No only when unhealthy.
    Whole,
}

/// The answer to a [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Yes (200) or no (503).
    pub good: bool,
    /// JSON.
    pub body: Bytes,
}

/// The health of a service at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HealthReport {
    /// Unhealthy without something critical, degraded without something else or with something
    /// degraded.
    pub state: HealthState,
    /// Whether it should get requests: it has started, is not draining, and nothing critical is
    /// missing.
    pub ready: bool,
    /// Whether it has been complete once: [`HealthRegistry::started`] was called, and everything
    /// critical has been there.
    pub started: bool,
    /// Every check's latest answer.
    pub checks: Vec<CheckReport>,
}

/// The latest answer of one check.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckReport {
    /// What was checked.
    pub name: String,
    /// Whether the service is not ready without it.
    pub critical: bool,
    /// The answer; none before the first run has ended.
    pub status: Option<HealthStatus>,
    /// How long it took.
    pub took: Duration,
    /// When it was given.
    pub at: Option<SystemTime>,
}

/// While something is missing, its return is looked for more often than its loss.
const RETURN_PERIOD: Duration = Duration::from_secs(1);

impl HealthRegistry {
    /// A registry without checks. Nothing is ready before [`started`](Self::started).
    pub fn new(identity: &Identity, registry: &Registry) -> Self {
        let mut fields = String::new();
        for (name, value) in [
            ("service", identity.service().as_str()),
            ("version", identity.version()),
            ("environment", identity.deployment().as_str()),
            ("instance", identity.instance()),
        ] {
            let _ = write!(fields, ",\"{name}\":{}", quoted(value));
        }
        let health = Self {
            inner: Arc::new(Inner {
                registry: registry.clone(),
                identity: fields,
                entries: Mutex::default(),
                answers: RwLock::new(Arc::new(Answers::none())),
                ready: watch::Sender::new(false),
                running: Mutex::default(),
                stop: watch::Sender::new(false),
                started: AtomicBool::new(false),
                draining: AtomicBool::new(false),
            }),
        };
        health.inner.render();
        health
    }

    /// Adds a check; it runs at once if the registry is started. One of the same name takes the place of
    /// the earlier one, which is how a service says that it cannot do without its cache or its broker.
    pub fn register(&self, check: HealthCheck) {
        let durations = self.inner.registry.family(&HEALTH_DURATION);
        let states = self.inner.registry.family(&HEALTH_STATE);
        let entry = Arc::new(Entry {
            duration: durations.with([check.name()]),
            states: [
                HealthState::Healthy,
                HealthState::Degraded,
                HealthState::Unhealthy,
            ]
            .map(|state| (state, states.with([check.name(), state.as_str()]))),
            check,
            last: Mutex::default(),
        });
        {
            let mut entries = self.inner.entries.lock();
            let name = entry.check.name();
            match entries.iter_mut().find(|old| old.check.name() == name) {
                Some(old) => *old = Arc::clone(&entry),
                None => entries.push(Arc::clone(&entry)),
            }
        }
        if let Some(tasks) = &mut *self.inner.running.lock() {
            tasks.spawn(run(
                Arc::downgrade(&self.inner),
                entry,
                self.inner.stop.subscribe(),
            ));
        }
        self.inner.render();
    }

    /// Starts to run the checks, each in a task of its own. Must be called inside a tokio runtime;
    /// outside one nothing is ever ready. The tasks end with [`stop`](Self::stop), or with the last
    /// clone of this registry.
    pub fn start(&self) {
        if tokio::runtime::Handle::try_current().is_err() {
            tracing::error!("health checks cannot run: `start` was called outside a tokio runtime");
            return;
        }
        let mut running = self.inner.running.lock();
        if running.is_some() {
            return;
        }
        let mut tasks = JoinSet::new();
        for entry in self.inner.entries.lock().iter() {
            tasks.spawn(run(
                Arc::downgrade(&self.inner),
                Arc::clone(entry),
                self.inner.stop.subscribe(),
            ));
        }
        *running = Some(tasks);
    }

    /// The service has done what it does at its start (migrations, topology) and may become ready.
    pub fn started(&self) {
        self.inner.started.store(true, Ordering::Relaxed);
        self.inner.render();
    }

    /// The service is going to end: not ready from now on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
        self.inner.render();
    }

    /// Ends the checks.
    pub async fn stop(&self) {
        self.inner.stop.send_replace(true);
        let tasks = self.inner.running.lock().take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    /// The latest answers; never waits for a check.
    pub fn report(&self) -> HealthReport {
        self.inner.answers.read().report.clone()
    }

    /// Ends when the service is ready; bound it by a timeout. Dropping the future changes nothing.
    pub async fn until_ready(&self) {
        let mut ready = self.inner.ready.subscribe();
        // The sender lives as long as `self`.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// The latest answer as JSON, rendered when it last changed: asking costs a lock that nobody
    /// holds for long.
    pub fn answer(&self, probe: Probe) -> Answer {
        let answers = Arc::clone(&self.inner.answers.read());
        let report = &answers.report;
        let (good, body) = match probe {
            Probe::Live => (true, &LIVE),
            Probe::Ready => (report.ready, &answers.ready),
            Probe::Startup => (report.started, &answers.startup),
            Probe::Whole => (report.state != HealthState::Unhealthy, &answers.whole),
        };
        Answer {
            good,
            body: body.clone(),
        }
    }
}

static LIVE: Bytes = Bytes::from_static(b"{\"status\":\"alive\"}");

impl fmt::Debug for HealthRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthRegistry")
            .field("report", &self.report())
            .finish_non_exhaustive()
    }
}

async fn run(inner: Weak<Inner>, entry: Arc<Entry>, mut stop: watch::Receiver<bool>) {
    loop {
        let start = Instant::now();
        let status = match catch_panic(entry.check.run()).await {
            Ok(status) => status,
            Err(panic) => HealthStatus::unhealthy(format!("the check panicked: {panic}")),
        };
        let took = start.elapsed();
        let Some(inner) = inner.upgrade().filter(|inner| inner.has(&entry)) else {
            return;
        };
        let well = status.state() == HealthState::Healthy;
        entry.duration.observe_duration(took);
        for (state, gauge) in &entry.states {
            gauge.set(f64::from(u8::from(*state == status.state())));
        }
        let before = entry.last.lock().replace(Last {
            status: status.clone(),
            at: SystemTime::now(),
            took,
        });
        entry
            .check
            .say(before.map(|last| last.status.state()), &status);
        inner.render();
        drop(inner);
        let period = entry.check.interval();
        let pause = if well {
            period
        } else {
            period.min(RETURN_PERIOD)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

impl Inner {
    /// False for a check that another one has taken the place of.
    fn has(&self, entry: &Arc<Entry>) -> bool {
        self.entries
            .lock()
            .iter()
            .any(|one| Arc::ptr_eq(one, entry))
    }

    fn render(&self) {
        let entries = self.entries.lock();
        let checks: Vec<CheckReport> = entries.iter().map(|entry| entry.report()).collect();
        let state = checks.iter().map(CheckReport::effect).max();
        let state = state.unwrap_or(HealthState::Healthy);
        let complete = checks
            .iter()
            .all(|check| !check.critical || check.is_there());
        let (was_started, was_ready) = {
            let answers = self.answers.read();
            (answers.report.started, answers.report.ready)
        };
        let started = was_started || (self.started.load(Ordering::Relaxed) && complete);
        let draining = self.draining.load(Ordering::Relaxed);
        let report = HealthReport {
            state,
            ready: started && complete && !draining,
            started,
            checks,
        };
        let ready = report.ready;
        let reasons = self.reasons(&report, draining);
        let answers = Answers {
            ready: probe(ready, "ready", "not ready", &reasons),
            startup: probe(started, "started", "starting", &reasons),
            whole: self.whole(&report, draining),
            report,
        };
        *self.answers.write() = Arc::new(answers);
        if was_ready != ready {
            self.ready.send_replace(ready);
        }
        // Held until here, so that an older picture does not replace a newer one.
        drop(entries);
    }

    fn reasons(&self, report: &HealthReport, draining: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        if draining {
            reasons.push("the service is ending".to_owned());
        }
        if !self.started.load(Ordering::Relaxed) {
            reasons.push("the service is starting".to_owned());
        }
        for check in report
            .checks
            .iter()
            .filter(|check| check.critical && !check.is_there())
        {
            let why = check.status.as_ref().and_then(HealthStatus::reason);
            reasons.push(format!(
                "{}: {}",
                check.name,
                why.unwrap_or("not checked yet")
            ));
        }
        reasons
    }

    fn whole(&self, report: &HealthReport, draining: bool) -> Bytes {
        let checks: Vec<String> = report.checks.iter().map(CheckReport::json).collect();
        Bytes::from(format!(
            "{{\"status\":\"{}\",\"ready\":{},\"started\":{},\"draining\":{draining}{},\"checks\":[{}]}}",
            report.state,
            report.ready,
            report.started,
            self.identity,
            checks.join(",")
        ))
    }
}

impl Entry {
    fn report(&self) -> CheckReport {
        let last = self.last.lock().clone();
        CheckReport {
            name: self.check.name().to_owned(),
            critical: self.check.is_critical(),
            at: last.as_ref().map(|last| last.at),
            took: last.as_ref().map_or(Duration::ZERO, |last| last.took),
            status: last.map(|last| last.status),
        }
    }
}

impl CheckReport {
    fn is_there(&self) -> bool {
        let state = self.status.as_ref().map(HealthStatus::state);
        state.is_some_and(|state| state != HealthState::Unhealthy)
    }

    /// What it makes of the service.
    fn effect(&self) -> HealthState {
        match &self.status {
            Some(status) if !self.critical => status.state().min(HealthState::Degraded),
            Some(status) => status.state(),
            None if self.critical => HealthState::Unhealthy,
            None => HealthState::Healthy,
        }
    }

    fn json(&self) -> String {
        let state = self
            .status
            .as_ref()
            .map_or("unknown", |status| status.state().as_str());
        let mut text = format!(
            "{{\"name\":{},\"status\":\"{state}\",\"critical\":{}",
            quoted(&self.name),
            self.critical
        );
        if let Some(reason) = self.status.as_ref().and_then(HealthStatus::reason) {
            let _ = write!(text, ",\"reason\":{}", quoted(reason));
        }
        if let Some(at) = self.at {
            let mut time = Vec::new();
            timestamp(&mut time, at);
            let time = String::from_utf8_lossy(&time);
            let took = self.took.as_secs_f64() * 1e3;
            let _ = write!(text, ",\"checked_at\":\"{time}\",\"took_ms\":{took:.3}");
        }
        text.push('}');
        text
    }
}

impl Answers {
    fn none() -> Self {
        Self {
            report: HealthReport {
                state: HealthState::Unhealthy,
                ready: false,
                started: false,
                checks: Vec::new(),
            },
            ready: Bytes::new(),
            startup: Bytes::new(),
            whole: Bytes::new(),
        }
    }
}

fn probe(good: bool, yes: &'static str, no: &str, reasons: &[String]) -> Bytes {
    if good {
        return Bytes::from(format!("{{\"status\":\"{yes}\"}}"));
    }
    let reasons: Vec<String> = reasons.iter().map(|reason| quoted(reason)).collect();
    Bytes::from(format!(
        "{{\"status\":\"{no}\",\"reasons\":[{}]}}",
        reasons.join(",")
    ))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
