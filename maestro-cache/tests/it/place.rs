//! A service's place on a real Redis, with a cache connected to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Error, Region};
use maestro_config::{Environment, provision};
use maestro_metrics::HealthState;
use maestro_testkit::{Sandbox, Server, Service, Stack};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Longest wait for a condition that holds within milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

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
    // The driver's own are half a second and one.
    let patient = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(PATIENCE))
        .set_connection_timeout(Some(PATIENCE));
    client
        .get_multiplexed_async_connection_with_config(&patient)
        .await
        .unwrap()
}

/// Deadlines that a busy machine does not exceed: only where nothing answers on purpose is no answer an
/// outage.
pub(crate) const PATIENT: [(&str, &str); 2] = [
    ("MAESTRO_CACHE_COMMAND_TIMEOUT", "20s"),
    ("MAESTRO_CACHE_CONNECT_TIMEOUT", "20s"),
];
/// The deadlines that a service has when it sets none.
pub(crate) const HASTY: [(&str, &str); 2] = [
    ("MAESTRO_CACHE_COMMAND_TIMEOUT", "500ms"),
    ("MAESTRO_CACHE_CONNECT_TIMEOUT", "1s"),
];

/// How long after an acknowledged change a hasty cache may still serve what it has: a heartbeat and the
/// deadline of one.
pub(crate) const BOUND: Duration = Duration::from_millis(1_500);

/// Settings of a service in this sandbox, patient unless changed.
pub(crate) fn config(sandbox: &Sandbox, changes: &[(&str, &str)]) -> CacheConfig {
    changed(sandbox.environment(), changes)
}

/// Settings with which the sandbox's link is passed by.
pub(crate) fn direct_config(sandbox: &Sandbox) -> CacheConfig {
    changed(sandbox.direct_environment(), &[])
}

fn changed(pairs: Vec<(String, String)>, changes: &[(&str, &str)]) -> CacheConfig {
    let mut all: BTreeMap<String, String> = pairs.into_iter().collect();
    for (name, value) in PATIENT.iter().chain(changes) {
        all.insert((*name).to_owned(), (*value).to_owned());
    }
    Environment::from_pairs(all).read().unwrap()
}

/// A patient cache of a service in this sandbox.
pub(crate) async fn cache(sandbox: &Sandbox) -> Cache {
    Cache::connect(config(sandbox, &[])).await.unwrap()
}

/// A cache that notices soon when nothing answers, and takes a busy machine for that.
pub(crate) async fn hasty(sandbox: &Sandbox) -> Cache {
    Cache::connect(config(sandbox, &HASTY)).await.unwrap()
}

/// Changes the service's user on the shared server and hangs up on it.
pub(crate) async fn change_user(sandbox: &Sandbox, rules: &[&str]) {
    let mut admin = admin(sandbox).await;
    let user = sandbox.resources().redis_user();
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER").arg(user).arg(rules);
    let () = set.query_async(&mut admin).await.unwrap();
    let mut kill = redis::cmd("CLIENT");
    kill.arg(&["KILL", "USER", user]);
    let () = kill.query_async(&mut admin).await.unwrap();
}

/// A load of entry 1 that has begun, brings `report(1)`, and goes on until it is told to end.
pub(crate) struct HeldLoad {
    go_on: Arc<Notify>,
    caller: JoinHandle<Result<Arc<Report>, Error>>,
}

impl HeldLoad {
    pub(crate) async fn begin(reports: &Region<Report>) -> Self {
        let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, waits) = (Arc::clone(&began), Arc::clone(&go_on));
        let load = move || async move {
            told.notify_one();
            waits.notified().await;
            Ok::<_, std::io::Error>(report(1))
        };
        let reports = reports.clone();
        let caller = tokio::spawn(async move { reports.entry(1_u64).get_or_load(load).await });
        began.notified().await;
        Self { go_on, caller }
    }

    /// What its own caller got.
    pub(crate) async fn end(self) -> Arc<Report> {
        self.go_on.notify_one();
        self.caller.await.unwrap().unwrap()
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Around the condition too: it may be what never answers.
    let held = tokio::time::timeout(PATIENCE, wait).await;
    assert!(held.is_ok(), "not within {PATIENCE:?}: {what}");
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

/// Reads of entries and markers that this cache has sent to the server.
pub(crate) fn reads_sent(cache: &Cache) -> u64 {
    let text = cache.registry().text();
    let counts = text.lines().filter(|line| {
        line.starts_with("db_client_operation_duration_seconds_count")
            && ["GET", "MGET"]
                .iter()
                .any(|operation| line.contains(&format!("db_operation_name=\"{operation}\"")))
    });
    counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Reads an entry until process memory serves it: the news of the write that made it may come after
/// the first read, and takes it out again. That may also happen after this has returned; where it
/// matters, see [`has_heard`].
pub(crate) async fn in_memory(cache: &Cache, region: &Region<Report>, id: u64) {
    eventually("process memory serves the entry", || async {
        let before = reads_sent(cache);
        let read = region.get(id).await;
        read.is_ok_and(|found| found.is_some()) && reads_sent(cache) == before
    })
    .await;
}

/// Waits until a cache has heard of all that was written so far, by whomever: news comes in order, so it
/// waits for that of one write more, by another cache.
pub(crate) async fn has_heard(cache: &Cache, other: &Cache) {
    let read: Region<Report> = cache.region("fence").build().unwrap();
    let written: Region<Report> = other.region("fence").build().unwrap();
    written.put(1_u64, report(1)).await.unwrap();
    in_memory(cache, &read, 1).await;
    written.put(1_u64, report(2)).await.unwrap();
    // What is in memory stays there until some news of this entry comes.
    eventually("the news of a write comes", || async {
        read.get(1_u64).await.unwrap().as_deref() == Some(&report(2))
    })
    .await;
}
