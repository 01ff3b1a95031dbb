//! What has to happen before the service may work: migrations first, then relay and consumers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use maestro_metrics::{DrainStep, HealthRegistry};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::Error;

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    /// Waiting for a server, or migrating.
    Pending,
    /// Everything runs.
    Done,
    /// It can never run; the process ends.
    Failed,
}

/// One thing to do at the start; run in the order they were added.
pub(crate) type Launch = Box<dyn FnOnce() -> BoxFuture<'static, Result<Launched, Error>> + Send>;

/// What runs after a launch.
#[derive(Default)]
pub(crate) struct Launched {
    /// The step that ends it.
    pub(crate) step: Option<DrainStep>,
    /// Completes when it is fully at work; the start waits for it a little ([`SETTLE`]).
    pub(crate) settled: Option<BoxFuture<'static, ()>>,
}

/// Collects what has to be launched and drained, and launches it once the service serves.
pub(crate) struct Launcher {
    startup: watch::Sender<Startup>,
    launches: Mutex<Vec<Launch>>,
    steps: Arc<Mutex<Vec<DrainStep>>>,
}

impl Launcher {
    pub(crate) fn new() -> Self {
        Self {
            startup: watch::Sender::new(Startup::Pending),
            launches: Mutex::default(),
            steps: Arc::default(),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Startup> {
        self.startup.subscribe()
    }

    pub(crate) fn add(&self, launch: Launch) {
        self.launches.lock().push(launch);
    }

    pub(crate) fn drain_later(&self, step: DrainStep) {
        self.steps.lock().push(step);
    }

    pub(crate) fn take_steps(&self) -> Vec<DrainStep> {
        std::mem::take(&mut *self.steps.lock())
    }

    /// Runs the launches in a task of its own.
    pub(crate) fn launch(&self, health: HealthRegistry) -> Launching {
        let launches = std::mem::take(&mut *self.launches.lock());
        let startup = self.startup.clone();
        let steps = self.steps.clone();
        let failure = Arc::new(Mutex::new(None));
        let failed = failure.clone();
        let task = tokio::spawn(async move {
            let mut settling = Vec::new();
            for launch in launches {
                match launch().await {
                    Ok(launched) => {
                        steps.lock().extend(launched.step);
                        settling.extend(launched.settled);
                    }
                    Err(error) => {
                        tracing::error!(?error, "the start failed");
                        *failed.lock() = Some(error);
                        startup.send_replace(Startup::Failed);
                        return;
                    }
                }
            }
            let settled = tokio::time::timeout(SETTLE, join_all(settling))
                .await
                .is_ok();
            tracing::info!(settled, "the service is started");
            // In this order: whoever hears that the service is ready is not to find its routes closed.
            startup.send_replace(Startup::Done);
            health.started();
        });
        Launching {
            task,
            failure,
            startup: self.startup.subscribe(),
        }
    }
}

/// The start under way; aborted when dropped.
pub(crate) struct Launching {
    task: JoinHandle<()>,
    failure: Arc<Mutex<Option<Error>>>,
    startup: watch::Receiver<Startup>,
}

impl Launching {
    /// Completes when the start failed for good, with the reason; never otherwise.
    pub(crate) async fn failed(&self) -> Error {
        let mut startup = self.startup.clone();
        let _ = startup
            .wait_for(|startup| *startup == Startup::Failed)
            .await;
        let failure = self.failure.lock().take();
        match failure {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }
}

impl Launching {
    /// Ends what is still being launched, so that nothing new starts during the drain.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Pause before the `attempt`-th next try of something that waits for a server: 100 ms, doubled up to
/// 2 s (so that a service is up within seconds of its database), each between half and whole, so that
/// replicas do not try in step.
pub(crate) fn pause(attempt: u32) -> Duration {
    let whole = FIRST.saturating_mul(1 << attempt.min(10)).min(LONGEST);
    whole.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
}

/// How long the start waits for subscriptions to be bound: an event that is published before reaches
/// nobody here. Not longer, because a broker that is down must not keep requests away.
const SETTLE: Duration = Duration::from_secs(5);

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn health() -> HealthRegistry {
        let pairs = [
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_ENVIRONMENT", "test"),
        ];
        let identity = maestro_config::Environment::from_pairs(pairs)
            .read()
            .unwrap();
        HealthRegistry::new(&identity, &maestro_metrics::Registry::new(&identity))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_sees_it_ready_finds_its_routes_open() {
        for _ in 0..200 {
            let (launcher, health) = (Launcher::new(), health());
            let startup = launcher.watch();
            let _launching = launcher.launch(health.clone());
            let seen = tokio::task::spawn_blocking(move || {
                while !health.report().ready {
                    std::hint::spin_loop();
                }
                *startup.borrow()
            });
            assert_eq!(seen.await.unwrap(), Startup::Done);
        }
    }

    #[tokio::test]
    async fn launches_run_in_order_and_the_first_failure_stops_them() {
        let launcher = Launcher::new();
        let order = Arc::new(Mutex::new(Vec::new()));
        for (n, fails) in [(1, false), (2, true), (3, false)] {
            let order = order.clone();
            launcher.add(Box::new(move || {
                Box::pin(async move {
                    order.lock().push(n);
                    if fails {
                        Err(Error::new(ErrorKind::Migration, "checksum"))
                    } else {
                        Ok(Launched::default())
                    }
                })
            }));
        }
        let error = launcher.launch(health()).failed().await;
        assert_eq!(error.to_string(), "checksum");
        assert_eq!(*order.lock(), [1, 2]);
        assert_eq!(*launcher.watch().borrow(), Startup::Failed);
    }

    #[test]
    fn pauses_grow_to_two_seconds_and_are_never_zero() {
        for attempt in 0..64 {
            let pause = pause(attempt);
            assert!(
                pause >= FIRST / 2 && pause <= LONGEST,
                "{pause:?} at {attempt}"
            );
        }
        assert!(pause(40) >= LONGEST / 2);
    }
}
