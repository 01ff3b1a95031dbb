//! A service's place on a real Redis, with a cache connected to it.

use std::future::Future;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Region};
use maestro_config::{Environment, provision};
use maestro_metrics::HealthState;
use maestro_testkit::{Sandbox, Server, Service, Stack};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

/// Longest wait for a condition that holds within milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) id: u64,
    pub(crate) title: String,
}

pub(crate) fn report(id: u64) -> Report {
    Report {
        id,
        title: format!("report {id}"),
    }
}

/// A sandbox on the shared server.
pub(crate) async fn sandbox() -> Sandbox {
    let stack = Stack::builder().only([Service::Redis]).start().await;
    stack.unwrap().sandbox("reports").await.unwrap()
}

/// A Redis of the test's own, to be killed and paused, with a sandbox on it.
pub(crate) struct Dedicated {
    pub(crate) redis: Server,
    pub(crate) sandbox: Sandbox,
    _stack: Stack,
}

pub(crate) async fn dedicated() -> Dedicated {
    let stack = Stack::builder().only([Service::Redis]).dedicated().await;
    let stack = stack.unwrap();
    Dedicated {
        redis: stack.redis().unwrap(),
        sandbox: stack.sandbox("reports").await.unwrap(),
        _stack: stack,
    }
}

impl Dedicated {
    /// Starts the server again with its data. Users it was told of are not data: the operator's ACL
    /// file brings them back, here the administrator does.
    pub(crate) async fn start_again(&self) {
        self.redis.start().await.unwrap();
        tell_of_user(&self.redis, &self.sandbox).await;
    }

    /// The server's administrator.
    pub(crate) async fn admin(&self) -> MultiplexedConnection {
        admin_of(&self.redis).await
    }
}

/// The administrator of a server.
pub(crate) async fn admin_of(server: &Server) -> MultiplexedConnection {
    connect(server.admin_url().expose()).await
}

/// Makes the sandbox's user known to a server.
pub(crate) async fn tell_of_user(server: &Server, sandbox: &Sandbox) {
    let rules = provision::redis::Server::default();
    let user = provision::redis::service_user(sandbox.resources(), &rules);
    let mut command = redis::Cmd::new();
    for argument in user.set_user() {
        command.arg(argument);
    }
    let mut admin = admin_of(server).await;
    let () = command.query_async(&mut admin).await.unwrap();
}

/// The administrator of the shared server, in the sandbox's database.
pub(crate) async fn admin(sandbox: &Sandbox) -> MultiplexedConnection {
    let stack = Stack::builder().only([Service::Redis]).start().await;
    let mut admin = admin_of(&stack.unwrap().redis().unwrap()).await;
    let url = sandbox.environment();
    let (_, url) = url
        .iter()
        .find(|(name, _)| name == "MAESTRO_CACHE_URL")
        .unwrap();
    let database = url.rsplit('/').next().unwrap();
    let () = redis::cmd("SELECT")
        .arg(database)
        .query_async(&mut admin)
        .await
        .unwrap();
    admin
}

async fn connect(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
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

/// Waits until the cache says it is well.
pub(crate) async fn healthy(cache: &Cache) {
    let check = cache.health_check();
    let started = Instant::now();
    loop {
        let status = check.run().await;
        if status.state() == HealthState::Healthy {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "not well within {PATIENCE:?}: {status:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the cache's health tells of this problem.
pub(crate) async fn says(cache: &Cache, problem: &str) {
    let check = cache.health_check();
    eventually(problem, || async {
        let status = check.run().await;
        status
            .reason()
            .is_some_and(|reason| reason.contains(problem))
    })
    .await;
}

/// The value of a series in the cache's metrics; 0 when there is none yet.
pub(crate) fn metric(cache: &Cache, series: &str) -> f64 {
    let text = cache.registry().text();
    text.lines()
        .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .map(|value| value.parse::<f64>().unwrap())
        .sum()
}

/// Reads an entry until process memory serves it: the news of the write that made it may come after
/// the first read, and takes it out again.
pub(crate) async fn in_memory(cache: &Cache, region: &Region<Report>, id: u64) {
    let series = format!(
        "maestro_cache_requests_total{{region=\"{}\",level=\"local\",result=\"hit\"}}",
        region.name()
    );
    eventually("process memory serves the entry", || async {
        let before = metric(cache, &series);
        assert!(region.get(id).await.unwrap().is_some());
        metric(cache, &series) > before
    })
    .await;
}
