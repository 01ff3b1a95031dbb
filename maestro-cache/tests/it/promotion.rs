//! A primary is lost and its replica promoted, or two servers change parts: real servers, and the
//! service's address leads to the new primary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Outcome, Region};
use maestro_testkit::{DevServicesConfig, Sandbox, Server, Service, Source, Stack};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use url::Url;

use crate::place::{
    BOUND, HASTY, Report, admin_of, cache, config, eventually, hasty, healthy, in_memory, report,
    says, tell_of_user,
};

/// Two servers of this machine, the second a replica of the first. The sandbox's link leads to the
/// first.
struct Pair {
    first: Server,
    second: Server,
    sandbox: Sandbox,
    _stacks: [Stack; 2],
}

impl Pair {
    async fn new() -> Self {
        let stacks = [server().await, server().await];
        let [first, second] = [0, 1].map(|index: usize| stacks[index].redis().unwrap());
        let sandbox = stacks[0].sandbox("reports").await.unwrap();
        // Users are not replicated.
        tell_of_user(&second, &sandbox).await;
        let pair = Self {
            first,
            second,
            sandbox,
            _stacks: stacks,
        };
        follow(&pair.second, &pair.first, &pair.first.authority()).await;
        pair
    }

    /// Waits until the second server has applied what the first one has acknowledged: replication is
    /// asynchronous, and what is lost with a primary nobody can bring back.
    async fn caught_up(&self) {
        let first = admin_of(&self.first).await;
        let second = admin_of(&self.second).await;
        let acknowledged = replication(&first, "master_repl_offset").await;
        let acknowledged: u64 = acknowledged.parse().unwrap();
        eventually("the replica has caught up", || async {
            let applied = replication(&second, "slave_repl_offset").await;
            applied.parse::<u64>().unwrap() >= acknowledged
        })
        .await;
    }

    async fn promote_second(&self) {
        let mut admin = admin_of(&self.second).await;
        let () = redis::cmd("REPLICAOF")
            .arg("NO")
            .arg("ONE")
            .query_async(&mut admin)
            .await
            .unwrap();
    }
}

async fn server() -> Stack {
    // On this machine, so that one server reaches the other under the address that we know.
    let mut config = DevServicesConfig::default();
    config.source = Source::Local;
    let stack = Stack::builder().only([Service::Redis]).config(config);
    stack.dedicated().await.unwrap()
}

/// Makes one server a replica of another, which it reaches at an address, and waits until it has its
/// data.
async fn follow(replica: &Server, primary: &Server, address: &str) {
    let (host, port) = address.rsplit_once(':').unwrap();
    let primary: Url = primary.admin_url().expose().parse().unwrap();
    let mut admin = admin_of(replica).await;
    let () = redis::cmd("CONFIG")
        .arg("SET")
        .arg("masterauth")
        .arg(primary.password().unwrap())
        .query_async(&mut admin)
        .await
        .unwrap();
    let () = redis::cmd("REPLICAOF")
        .arg(host)
        .arg(port)
        .query_async(&mut admin)
        .await
        .unwrap();
    eventually("the replica has the primary's data", || async {
        replication(&admin, "master_link_status").await == "up"
    })
    .await;
}

/// One line of what a server says of its replication.
async fn replication(admin: &MultiplexedConnection, name: &str) -> String {
    let mut info = redis::cmd("INFO");
    info.arg("replication");
    let text: String = info.query_async(&mut admin.clone()).await.unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn reports(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_stays_so_when_the_primary_is_lost_and_its_replica_promoted() {
    let pair = Pair::new().await;
    let (a, b) = (cache(&pair.sandbox).await, cache(&pair.sandbox).await);
    let (ours, theirs) = (reports(&a), reports(&b));
    for id in 1..=5_u64 {
        ours.entry(id)
            .tag(if id == 2 { "p" } else { "q" })
            .put(report(id))
            .await
            .unwrap();
        in_memory(&b, &theirs, id).await;
    }
    assert!(ours.remove(1_u64).await.unwrap().is_acknowledged());
    assert!(a.invalidate_tag("p").await.unwrap().is_acknowledged());
    pair.caught_up().await;
    pair.first.kill().await.unwrap();
    eventually("the loss is noticed", || async {
        ours.get(9_u64).await.is_err()
    })
    .await;
    assert_eq!(ours.remove(3_u64).await.unwrap(), Outcome::Deferred);
    pair.promote_second().await;
    pair.sandbox
        .cache_link()
        .lead_to(&pair.second)
        .await
        .unwrap();
    healthy(&a).await;
    healthy(&b).await;
    for id in 1..=2_u64 {
        assert_eq!(theirs.get(id).await.unwrap(), None, "{id}");
    }
    for id in 1..=3_u64 {
        assert_eq!(ours.get(id).await.unwrap(), None, "{id}");
    }
    eventually("what was deferred is told to the others", || async {
        theirs.get(3_u64).await.unwrap().is_none()
    })
    .await;
    // What was not invalidated is there, and news of it arrives.
    in_memory(&b, &theirs, 4).await;
    assert!(ours.remove(4_u64).await.unwrap().is_acknowledged());
    eventually("news arrives from the new primary", || async {
        theirs.get(4_u64).await.unwrap().is_none()
    })
    .await;
    assert!(theirs.get(5_u64).await.unwrap().is_some());
}

/// Processes that read a number which only grows, while one of them moves it on.
struct Readers {
    stop: Arc<AtomicBool>,
    /// The origin's number.
    origin: Arc<AtomicU64>,
    /// Numbers whose predecessor was invalidated, acknowledged, and when.
    acknowledged: Arc<parking_lot::Mutex<Vec<(Instant, u64)>>>,
    tasks: JoinSet<u64>,
}

impl Readers {
    fn start(regions: &[Region<u64>]) -> Self {
        let mut readers = Self {
            stop: Arc::default(),
            origin: Arc::new(AtomicU64::new(1)),
            acknowledged: Arc::default(),
            tasks: JoinSet::new(),
        };
        for region in regions.iter().flat_map(|region| [region, region]) {
            let (region, stop) = (region.clone(), Arc::clone(&readers.stop));
            let (origin, known) = (
                Arc::clone(&readers.origin),
                Arc::clone(&readers.acknowledged),
            );
            readers.tasks.spawn(async move {
                let mut reads = 0;
                while !stop.load(Ordering::SeqCst) {
                    let due = Instant::now().checked_sub(BOUND).unwrap();
                    let least = known
                        .lock()
                        .iter()
                        .rev()
                        .find(|(at, _)| *at <= due)
                        .map_or(0, |(_, number)| *number);
                    let origin = Arc::clone(&origin);
                    let load = move || async move {
                        Ok::<_, std::io::Error>(origin.load(Ordering::SeqCst))
                    };
                    let read = region.entry("n").get_or_load(load).await.unwrap();
                    assert!(*read >= least, "{read} was read where {least} was due");
                    reads += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                reads
            });
        }
        readers
    }

    /// Moves the number on until so many more invalidations were acknowledged.
    async fn advance(&self, region: &Region<u64>, more: usize) {
        let enough = self.acknowledged.lock().len() + more;
        eventually("invalidations are acknowledged", || async {
            let next = self.origin.fetch_add(1, Ordering::SeqCst) + 1;
            let removed = region.remove("n").await;
            let mut known = self.acknowledged.lock();
            match removed {
                Ok(Outcome::Acknowledged) => known.push((Instant::now(), next)),
                Ok(Outcome::Deferred) => {}
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            known.len() >= enough
        })
        .await;
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(reads) = self.tasks.join_next().await {
            assert!(reads.unwrap() > 0);
        }
    }
}

fn numbers(cache: &Cache) -> Region<u64> {
    // While Redis is away this is the bound on what memory serves, however long it takes to come back.
    let region = cache.region("number").local_ttl(Duration::from_secs(1));
    region.build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_never_see_what_was_invalidated_while_the_primary_is_lost_under_load() {
    let pair = Pair::new().await;
    let (a, b) = (hasty(&pair.sandbox).await, hasty(&pair.sandbox).await);
    let (ours, theirs) = (numbers(&a), numbers(&b));
    let readers = Readers::start(&[ours.clone(), theirs.clone()]);
    readers.advance(&ours, 50).await;
    pair.caught_up().await;
    pair.first.kill().await.unwrap();
    pair.promote_second().await;
    pair.sandbox
        .cache_link()
        .lead_to(&pair.second)
        .await
        .unwrap();
    readers.advance(&ours, 50).await;
    healthy(&b).await;
    readers.advance(&theirs, 50).await;
    readers.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_becomes_a_replica_is_neither_written_nor_read_any_more() {
    let pair = Pair::new().await;
    let (a, b) = (hasty(&pair.sandbox).await, hasty(&pair.sandbox).await);
    let (ours, theirs) = (numbers(&a), numbers(&b));
    let readers = Readers::start(&[ours.clone(), theirs.clone()]);
    readers.advance(&ours, 50).await;
    pair.caught_up().await;

    // The servers change parts. Both go on answering and nobody is disconnected, but the new replica
    // hears nothing more from its primary.
    pair.promote_second().await;
    let between = pair.second.link().await.unwrap();
    follow(&pair.first, &pair.second, &between.authority()).await;
    between.blackhole().await.unwrap();
    let elsewhere = Cache::connect(at(&pair.sandbox, &pair.second))
        .await
        .unwrap();
    for cache in [&a, &b] {
        says(cache, "the server is a replica").await;
    }
    readers.advance(&numbers(&elsewhere), 50).await;
    assert_eq!(ours.remove("n").await.unwrap(), Outcome::Deferred);

    let link = pair.sandbox.cache_link();
    link.lead_to(&pair.second).await.unwrap();
    healthy(&a).await;
    healthy(&b).await;
    readers.advance(&ours, 50).await;
    readers.advance(&theirs, 50).await;
    readers.end().await;
}

/// The settings of the sandbox's service on this server.
fn at(sandbox: &Sandbox, server: &Server) -> CacheConfig {
    let pairs = sandbox.environment();
    let url = pairs.iter().find(|(name, _)| name == "MAESTRO_CACHE_URL");
    let mut url: Url = url.unwrap().1.parse().unwrap();
    let authority: Url = server.admin_url().expose().parse().unwrap();
    url.set_port(authority.port()).unwrap();
    let mut changes = HASTY.to_vec();
    changes.push(("MAESTRO_CACHE_URL", url.as_str()));
    config(sandbox, &changes)
}
