//! Redis killed, paused, restarted empty, cut: the service answers throughout.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_cache::{Cache, ErrorKind, Outcome, Region, WhenDown};
use tokio::task::JoinSet;

use crate::place::{
    self, Report, cache, config, dedicated, eventually, has_heard, hasty, healthy, in_memory,
    metric, report, sandbox,
};

/// Requests that run while something happens to Redis.
struct Traffic {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<(Duration, Option<String>)>>,
    loads: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    most_running: Arc<AtomicU64>,
    /// Requests that each client has made.
    made: Arc<[AtomicU64; 32]>,
}

impl Traffic {
    fn start(reports: &Region<Report>) -> Self {
        let mut traffic = Self {
            stop: Arc::default(),
            tasks: JoinSet::new(),
            loads: Arc::default(),
            running: Arc::default(),
            most_running: Arc::default(),
            made: Arc::default(),
        };
        for client in 0..32_u64 {
            let made = Arc::clone(&traffic.made);
            let reports = reports.clone();
            let stop = Arc::clone(&traffic.stop);
            let loader = traffic.loader();
            traffic.tasks.spawn(async move {
                let mut requests = Vec::new();
                let mut id = client;
                while !stop.load(Ordering::Relaxed) {
                    id = (id * 31 + 7) % 500;
                    let started = Instant::now();
                    let loader = loader.clone();
                    let read = reports.entry(id).get_or_load(move || loader(id)).await;
                    let wrong = match read {
                        Ok(value) if *value == report(id) => None,
                        Ok(value) => Some(format!("{value:?} for {id}")),
                        Err(error) => Some(error.to_string()),
                    };
                    requests.push((started.elapsed(), wrong));
                    made[usize::try_from(client).unwrap()].fetch_add(1, Ordering::SeqCst);
                    // A request a millisecond for each of 32 clients.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                requests
            });
        }
        traffic
    }

    fn loader(
        &self,
    ) -> impl Fn(
        u64,
    )
        -> std::pin::Pin<Box<dyn Future<Output = Result<Report, std::io::Error>> + Send>>
    + Clone
    + Send
    + 'static {
        let (loads, running) = (Arc::clone(&self.loads), Arc::clone(&self.running));
        let most = Arc::clone(&self.most_running);
        move |id| {
            let (loads, running) = (Arc::clone(&loads), Arc::clone(&running));
            let most = Arc::clone(&most);
            Box::pin(async move {
                loads.fetch_add(1, Ordering::Relaxed);
                let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                most.fetch_max(now, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
                running.fetch_sub(1, Ordering::Relaxed);
                Ok(report(id))
            })
        }
    }

    /// Waits until every request that is under way has been answered.
    async fn turned_over(&self) {
        let made = || self.made.each_ref().map(|made| made.load(Ordering::SeqCst));
        let before = made();
        eventually("every client is two requests further", || async {
            made()
                .iter()
                .zip(before)
                .all(|(now, then)| *now >= then + 2)
        })
        .await;
    }

    /// Ends the traffic: no request may have failed, and 99 of 100 took less than a second.
    async fn check(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        while let Some(requests) = self.tasks.join_next().await {
            for (time, wrong) in requests.unwrap() {
                assert_eq!(wrong, None, "a request failed");
                times.push(time);
            }
        }
        times.sort();
        let p99 = times[times.len() * 99 / 100];
        println!(
            "{} requests, p50 {:?}, p99 {p99:?}, max {:?}, {} loads, at most {} at a time",
            times.len(),
            times[times.len() / 2],
            times.last(),
            self.loads.load(Ordering::Relaxed),
            self.most_running.load(Ordering::Relaxed)
        );
        assert!(p99 < Duration::from_secs(1), "{p99:?}");
    }
}

const BREAKER_OPEN: &str = "maestro_resilience_breaker_open{target=\"redis\"}";

async fn breaker_opens(cache: &Cache) {
    eventually("the breaker opens", || async {
        metric(cache, BREAKER_OPEN) > 0.0
    })
    .await;
}

fn reports(cache: &Cache) -> Region<Report> {
    let region = cache.region("report").stale_for(Duration::from_mins(10));
    region.build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_redis_is_killed_and_comes_back() {
    let place = dedicated().await;
    let cache = hasty(&place.sandbox).await;
    let reports = reports(&cache);
    let traffic = Traffic::start(&reports);
    traffic.turned_over().await;
    place.redis.kill().await.unwrap();
    breaker_opens(&cache).await;
    // Loads that began before count for another limit.
    traffic.turned_over().await;
    traffic.most_running.store(0, Ordering::SeqCst);
    for _ in 0..20 {
        traffic.turned_over().await;
    }
    // `Load { at_most: 16 }` is the default.
    let most = traffic.most_running.load(Ordering::SeqCst);
    assert!(most <= 16, "{most} loads at a time while Redis was away");
    place.start_again().await;
    healthy(&cache).await;
    traffic.turned_over().await;
    traffic.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_redis_hangs() {
    let place = dedicated().await;
    let cache = hasty(&place.sandbox).await;
    let reports = reports(&cache);
    let traffic = Traffic::start(&reports);
    traffic.turned_over().await;
    place.redis.pause().await.unwrap();
    breaker_opens(&cache).await;
    for _ in 0..20 {
        traffic.turned_over().await;
    }
    place.redis.resume().await.unwrap();
    healthy(&cache).await;
    traffic.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_missed_while_it_was_away_is_invalidated_when_it_is_back() {
    let place = dedicated().await;
    let (a, b) = (cache(&place.sandbox).await, cache(&place.sandbox).await);
    let (ours, theirs) = (reports(&a), reports(&b));
    ours.put(1_u64, report(1)).await.unwrap();
    ours.entry(2_u64).tag("p").put(report(2)).await.unwrap();
    ours.put(3_u64, report(3)).await.unwrap();
    for id in 1..=3_u64 {
        assert!(theirs.get(id).await.unwrap().is_some());
    }
    place.redis.kill().await.unwrap();
    eventually("the loss is noticed", || async {
        ours.get(9_u64).await.is_err()
    })
    .await;
    assert_eq!(ours.remove(1_u64).await.unwrap(), Outcome::Deferred);
    assert_eq!(a.invalidate_tag("p").await.unwrap(), Outcome::Deferred);
    place.start_again().await;
    healthy(&a).await;
    healthy(&b).await;
    assert_eq!(ours.get(1_u64).await.unwrap(), None);
    assert_eq!(ours.get(2_u64).await.unwrap(), None);
    for id in 1..=2_u64 {
        eventually("the other process hears of it", || async {
            theirs.get(id).await.unwrap().is_none()
        })
        .await;
    }
    assert!(theirs.get(3_u64).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_empty_leads_to_loads_and_no_old_value() {
    let place = dedicated().await;
    let cache = cache(&place.sandbox).await;
    let reports = reports(&cache);
    reports.put(1_u64, report(1)).await.unwrap();
    assert!(reports.get(1_u64).await.unwrap().is_some());
    let mut admin = place.admin().await;
    let () = redis::cmd("FLUSHALL")
        .query_async(&mut admin)
        .await
        .unwrap();
    place.redis.kill().await.unwrap();
    place.start_again().await;
    healthy(&cache).await;
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    let load = || async { Ok::<_, std::io::Error>(report(100)) };
    let value = reports.entry(1_u64).get_or_load(load).await.unwrap();
    assert_eq!(*value, report(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_breaker_open_a_call_is_decided_in_less_than_a_millisecond() {
    let place = dedicated().await;
    let cache = cache(&place.sandbox).await;
    let reports = reports(&cache);
    place.redis.kill().await.unwrap();
    breaker_opens(&cache).await;
    let mut times = Vec::new();
    for id in 0..1_000_u64 {
        let started = Instant::now();
        let error = reports.get(id).await.unwrap_err();
        times.push(started.elapsed());
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    times.sort();
    assert!(times[500] < Duration::from_millis(1), "{:?}", times[500]);
    place.start_again().await;
    healthy(&cache).await;
    eventually("the breaker is closed", || async {
        metric(&cache, BREAKER_OPEN) < 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_starts_without_redis_and_finds_it_when_it_is_there() {
    let sandbox = sandbox().await;
    sandbox.cache_link().cut().await.unwrap();
    let changes = [("MAESTRO_CACHE_CONNECT_TIMEOUT", "1s")];
    let started = Instant::now();
    let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
    // Ten times the longest wait for the first attempt.
    assert!(started.elapsed() < Duration::from_secs(10));
    let reports = reports(&cache);
    let load = || async { Ok::<_, std::io::Error>(report(1)) };
    assert_eq!(
        *reports.entry(1_u64).get_or_load(load).await.unwrap(),
        report(1)
    );
    sandbox.cache_link().restore().await.unwrap();
    healthy(&cache).await;
    reports.put(2_u64, report(2)).await.unwrap();
    assert_eq!(
        reports.get(2_u64).await.unwrap().as_deref(),
        Some(&report(2))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_the_middle_of_a_reply_fails_no_request() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    // Larger than what a socket holds, so that a reply is really cut.
    let region = cache.region::<String>("large").local_ttl(Duration::ZERO);
    let large = region.build().unwrap();
    let value = "x".repeat(900_000);
    for id in 0..8_u64 {
        large.put(id, value.clone()).await.unwrap();
    }
    for _ in 0..10 {
        let mut readers = JoinSet::new();
        for id in 0..8_u64 {
            let (large, value) = (large.clone(), value.clone());
            readers.spawn(async move {
                let load = move || async move { Ok::<_, std::io::Error>(value) };
                large.entry(id).get_or_load(load).await.map(|v| v.len())
            });
        }
        tokio::task::yield_now().await;
        sandbox.cache_link().reset().await.unwrap();
        while let Some(read) = readers.join_next().await {
            assert_eq!(read.unwrap().unwrap(), 900_000);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_a_region_serves_stale_or_fails_as_it_was_told() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let stale = cache.region::<Report>("stale");
    let stale = stale
        .local_ttl(Duration::from_millis(300))
        .stale_for(Duration::from_mins(1))
        .when_down(WhenDown::ServeStale { at_most: 1 })
        .build()
        .unwrap();
    let fail = cache.region::<Report>("fail").when_down(WhenDown::Fail);
    let fail = fail.build().unwrap();
    stale.put(1_u64, report(1)).await.unwrap();
    has_heard(&cache, &place::cache(&sandbox).await).await;
    in_memory(&cache, &stale, 1).await;
    sandbox.cache_link().cut().await.unwrap();
    eventually("its time in memory is over", || async {
        stale.get(1_u64).await.is_err()
    })
    .await;
    let load = || async { Ok::<_, std::io::Error>(report(100)) };
    let served = stale.entry(1_u64).get_or_load(load).await.unwrap();
    assert_eq!(*served, report(1));
    let error = fail.entry(1_u64).get_or_load(load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_transient());
}
