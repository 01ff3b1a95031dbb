//! A service's place on a real Redis, with a cache connected to it.

use std::future::Future;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig};
use maestro_config::Environment;
use maestro_testkit::{Sandbox, Service, Stack};

/// Longest wait for a condition that holds within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A sandbox on the shared server.
pub(crate) async fn sandbox() -> Sandbox {
    let stack = Stack::builder().only([Service::Redis]).start().await;
    stack.unwrap().sandbox("reports").await.unwrap()
}

/// Settings of a service in this sandbox, with some changed.
pub(crate) fn config(sandbox: &Sandbox, changes: &[(&str, &str)]) -> CacheConfig {
    let mut pairs = sandbox.environment();
    pairs.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    pairs.extend(
        changes
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned())),
    );
    Environment::from_pairs(pairs).read().unwrap()
}

/// A cache of a service in this sandbox.
pub(crate) async fn cache(sandbox: &Sandbox) -> Cache {
    Cache::connect(config(sandbox, &[])).await.unwrap()
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let started = Instant::now();
    while !condition().await {
        assert!(
            started.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
