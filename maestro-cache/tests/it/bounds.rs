//! How old something may be that is served without asking Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, Outcome, Region};
use maestro_metrics::HealthState;

use crate::place::{
    BOUND, HeldLoad, PATIENCE, Report, cache, change_user, config, eventually, hasty, healthy,
    metric, reads_sent, report, sandbox,
};

const LOCAL_HITS: &str =
    "maestro_cache_requests_total{region=\"report\",level=\"local\",result=\"hit\"}";

fn region(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_time_in_memory_counts_from_before_the_read_was_sent() {
    let sandbox = sandbox().await;
    let changes = [("MAESTRO_CACHE_LOCAL_TTL", "300ms")];
    let cache = Cache::connect(config(&sandbox, &changes)).await.unwrap();
    let reports = region(&cache);
    reports.put(1_u64, report(1)).await.unwrap();
    // A read takes twice as long as a value may be in memory.
    let delay = Duration::from_millis(300);
    sandbox.cache_link().delay(delay).await.unwrap();
    for _ in 0..4 {
        assert!(reports.get(1_u64).await.unwrap().is_some());
    }
    assert!(metric(&cache, LOCAL_HITS) < 1.0);
    sandbox.cache_link().restore().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_served_from_memory_after_one_read_that_did_not_name_its_tags() {
    let sandbox = sandbox().await;
    let writer = cache(&sandbox).await;
    let written = region(&writer).clone();
    let entry = written.entry(1_u64).tag("p").tag("q");
    entry.put(report(1)).await.unwrap();
    // A reader that has just been started serves from memory what it has read once. One that loses its
    // connection meanwhile may have to read again, so another one is started then.
    eventually("the second read asks nobody", || async {
        // Connected after the write, so that no news of it is on the way.
        let reader = cache(&sandbox).await;
        let reports = region(&reader);
        assert!(reports.get(1_u64).await.unwrap().is_some());
        let sent = reads_sent(&reader);
        assert!(sent > 0, "there was nothing in memory");
        assert!(reports.get(1_u64).await.unwrap().is_some());
        reads_sent(&reader) == sent
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_has_connected_hears_of_changes_already() {
    let sandbox = sandbox().await;
    for _ in 0..20 {
        let cache = cache(&sandbox).await;
        let status = cache.health_check().run().await;
        assert_eq!(status.state(), HealthState::Healthy, "{status:?}");
    }
}

/// While invalidations do not arrive, nobody here knows whether a load that is under way began
/// before the last of them.
#[tokio::test(flavor = "multi_thread")]
async fn without_news_a_later_caller_does_not_join_a_load_that_is_older_than_a_removal() {
    let sandbox = sandbox().await;
    let (ours, theirs) = (cache(&sandbox).await, cache(&sandbox).await);
    let (reports, their_reports) = (region(&ours), region(&theirs));
    deny_tracking(&sandbox).await;
    hears_nothing(&ours).await;
    hears_nothing(&theirs).await;

    let older = HeldLoad::begin(&reports).await;
    let sharing = reports.clone();
    let sharing = tokio::spawn(async move {
        let other = || async { Ok::<_, std::io::Error>(report(3)) };
        sharing.entry(1_u64).get_or_load(other).await
    });
    let removed = their_reports.remove(1_u64).await.unwrap();
    assert_eq!(removed, Outcome::Acknowledged);
    let later = reports.entry(1_u64);
    let later = later.get_or_load(|| async { Ok::<_, std::io::Error>(report(2)) });
    // The older load goes on for ever: whoever joined it would never be answered.
    let later = tokio::time::timeout(PATIENCE, later).await;
    let later = later.expect("the older load was joined").unwrap();
    assert_ne!(*later, report(1));
    assert_eq!(*older.end().await, report(1));
    sharing.await.unwrap().unwrap();
}

/// Nobody can say then whether a load that is under way is older than a change elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_away_a_load_is_joined_no_longer_than_memory_serves_without_news() {
    let sandbox = sandbox().await;
    let cache = hasty(&sandbox).await;
    let reports = region(&cache);
    sandbox.cache_link().cut().await.unwrap();
    eventually("Redis is known to be away", || async {
        let error = reports.get(2_u64).await.err().map(|e| e.to_string());
        error.is_some_and(|error| error.contains("no connection") || error.contains("breaker"))
    })
    .await;
    let since = Instant::now();
    let older = HeldLoad::begin(&reports).await;
    let later = reports.clone();
    eventually("a later caller loads for itself", || async {
        let load = || async { Ok::<_, std::io::Error>(report(2)) };
        let asked = later.entry(1_u64).get_or_load(load);
        let got = tokio::time::timeout(Duration::from_millis(100), asked).await;
        got.is_ok_and(|got| *got.unwrap() == report(2))
    })
    .await;
    assert!(since.elapsed() >= BOUND, "nobody shares a load");
    assert_eq!(*older.end().await, report(1));
}

/// Takes the right to be told of changes from the service's user, and its connections.
async fn deny_tracking(sandbox: &maestro_testkit::Sandbox) {
    change_user(sandbox, &["-client|tracking"]).await;
}

/// Waits until a cache answers and knows that it is told of nothing.
async fn hears_nothing(cache: &Cache) {
    eventually("no news arrives", || async {
        cache.health_check().run().await.state() == HealthState::Degraded
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_news_callers_who_came_before_still_share_one_load() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    healthy(&cache).await;
    let reports = region(&cache);
    deny_tracking(&sandbox).await;
    hears_nothing(&cache).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (reports, loads) = (reports.clone(), Arc::clone(&loads));
        callers.spawn(async move {
            let load = move || async move {
                loads.fetch_add(1, Ordering::Relaxed);
                // As long as a query takes, so that others come meanwhile; those who come later find
                // the value in Redis.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok::<_, std::io::Error>(report(1))
            };
            reports.entry(1_u64).get_or_load(load).await
        });
    }
    while let Some(read) = callers.join_next().await {
        read.unwrap().unwrap();
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}
