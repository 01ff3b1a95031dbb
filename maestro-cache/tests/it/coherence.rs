//! No stale value reaches Redis, and none stays in process memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, Region};
use proptest::prelude::*;
use tokio::sync::Notify;

use crate::place::{
    self, BOUND, PATIENCE, Report, admin, cache, eventually, has_heard, hasty, in_memory, metric,
    reads_sent, report, sandbox,
};

fn region(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

/// A load that has read the origin and not returned yet.
pub(crate) struct SlowLoad {
    began: Arc<Notify>,
    go_on: Arc<Notify>,
    read: tokio::task::JoinHandle<Result<Arc<Report>, maestro_cache::Error>>,
}

impl SlowLoad {
    pub(crate) async fn start(
        reports: &Region<Report>,
        tag: Option<&'static str>,
        value: Report,
    ) -> Self {
        let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (reports, told, waits) = (reports.clone(), Arc::clone(&began), Arc::clone(&go_on));
        let read = tokio::spawn(async move {
            let mut entry = reports.entry(1_u64);
            if let Some(tag) = tag {
                entry = entry.tag(tag);
            }
            let load = move || async move {
                told.notify_one();
                waits.notified().await;
                Ok::<_, std::io::Error>(value)
            };
            entry.get_or_load(load).await
        });
        began.notified().await;
        Self { began, go_on, read }
    }

    pub(crate) async fn finish(self) -> Report {
        drop(self.began);
        self.go_on.notify_one();
        let value = self.read.await.unwrap().unwrap();
        Report::clone(&value)
    }
}

/// Loaded values that this process was not allowed to store.
fn refused(cache: &Cache) -> f64 {
    let text = cache.registry().text();
    let counts = text
        .lines()
        .filter(|line| line.starts_with("maestro_cache_unstored_loads_total{"));
    counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Waits until so many stores were refused: a load stores in the background what it brought.
async fn is_refused(cache: &Cache, count: f64) {
    eventually("the loaded value is refused", || async {
        refused(cache) >= count
    })
    .await;
}

async fn is_absent(region: &Region<Report>) {
    assert_eq!(region.get(1_u64).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_loaded_before_it_was_removed_never_reaches_redis() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    let load = SlowLoad::start(&ours, None, report(1)).await;
    theirs.remove(1_u64).await.unwrap();
    assert_eq!(
        load.finish().await,
        report(1),
        "who asked before may see it"
    );
    is_refused(&a, 1.0).await;
    is_absent(&theirs).await;
    is_absent(&ours).await;
    let newer = "maestro_cache_unstored_loads_total{region=\"report\",reason=\"newer\"}";
    assert!(metric(&a, newer) > 0.0, "{}", a.registry().text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_loaded_before_its_tag_was_invalidated_never_reaches_redis() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    for clear in 0..3_u8 {
        let load = SlowLoad::start(&ours, Some("p"), report(1)).await;
        match clear {
            0 => b.invalidate_tag("p").await.unwrap(),
            1 => theirs.clear().await.unwrap(),
            _ => b.clear().await.unwrap(),
        };
        load.finish().await;
        is_refused(&a, f64::from(clear + 1)).await;
        is_absent(&theirs).await;
        is_absent(&ours).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_loaded_before_the_server_was_emptied_never_reaches_redis() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    let load = SlowLoad::start(&ours, None, report(1)).await;
    theirs.remove(1_u64).await.unwrap();
    // Evicted, lost with a crash, or expired: tombstone and markers are gone.
    let mut admin = admin(&sandbox).await;
    let prefix = a.config().prefix();
    for key in ["e:report:1", "t:a", "t:r:report"] {
        let key = format!("{prefix}{key}");
        let () = redis::cmd("DEL")
            .arg(key)
            .query_async(&mut admin)
            .await
            .unwrap();
    }
    load.finish().await;
    is_refused(&a, 1.0).await;
    is_absent(&theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_after_a_removal_does_not_get_what_was_loaded_before() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    for own in [true, false] {
        let load = SlowLoad::start(&ours, None, report(1)).await;
        let writer = if own { &ours } else { &theirs };
        writer.remove(1_u64).await.unwrap();
        let fresh = || async { Ok::<_, std::io::Error>(report(2)) };
        eventually("a later caller loads anew", || async {
            // Until the news of another process' removal is here, the older load may be shared, which
            // hangs. Our own removal is known at once.
            let patience = if own {
                PATIENCE
            } else {
                Duration::from_millis(100)
            };
            let read = tokio::time::timeout(patience, ours.entry(1_u64).get_or_load(fresh));
            if let Ok(value) = read.await {
                return *value.unwrap() == report(2);
            }
            assert!(!own, "the older load was joined");
            false
        })
        .await;
        load.finish().await;
        ours.remove(1_u64).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_follows_what_another_process_writes() {
    let sandbox = sandbox().await;
    let (a, b) = (hasty(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    for round in 0..50_u64 {
        theirs.put(1_u64, report(round)).await.unwrap();
        let finished = Instant::now();
        loop {
            // A read that is asked for within the bound may end after it.
            let asked = finished.elapsed();
            match ours.get(1_u64).await {
                Ok(read) if read.as_deref() == Some(&report(round)) => break,
                Ok(old) => assert!(asked < BOUND, "round {round}: {old:?}"),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
    in_memory(&a, &ours, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_reaches_entries_whose_readers_did_not_name_it() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    for id in 1..=3_u64 {
        let entry = theirs.entry(id).tag("project-7").tag(id);
        entry.put(report(id)).await.unwrap();
        in_memory(&a, &ours, id).await;
    }
    b.invalidate_tag(2_u64).await.unwrap();
    eventually("the entry is dead everywhere", || async {
        ours.get(2_u64).await.unwrap().is_none()
    })
    .await;
    assert!(ours.get(1_u64).await.unwrap().is_some());
    b.invalidate_tag("project-7").await.unwrap();
    for id in [1_u64, 3] {
        eventually("the entry is dead everywhere", || async {
            ours.get(id).await.unwrap().is_none()
        })
        .await;
    }
    ours.entry(1_u64)
        .tag("project-7")
        .put(report(9))
        .await
        .unwrap();
    assert!(
        ours.get(1_u64).await.unwrap().is_some(),
        "what comes later lives"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn clearing_a_region_leaves_the_others() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    let other: Region<Report> = cache.region("other").build().unwrap();
    reports.put(1_u64, report(1)).await.unwrap();
    other.put(1_u64, report(1)).await.unwrap();
    reports.clear().await.unwrap();
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    assert!(other.get(1_u64).await.unwrap().is_some());
    cache.clear().await.unwrap();
    assert_eq!(other.get(1_u64).await.unwrap(), None);
    reports.put(1_u64, report(1)).await.unwrap();
    assert!(reports.get(1_u64).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_is_lost_kills_its_entries_and_never_revives_them() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    let mut admin = admin(&sandbox).await;
    let prefix = cache.config().prefix();
    for marker in ["t:a", "t:r:report", "t:t:p"] {
        reports.entry(1_u64).tag("p").put(report(1)).await.unwrap();
        in_memory(&cache, &reports, 1).await;
        let key = format!("{prefix}{marker}");
        let () = redis::cmd("DEL")
            .arg(key)
            .query_async(&mut admin)
            .await
            .unwrap();
        eventually("the entry is dead", || async {
            reports.get(1_u64).await.unwrap().is_none()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbours_flush_does_not_empty_our_memory() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    for id in 0..100_u64 {
        reports.put(id, report(id)).await.unwrap();
    }
    let second = place::cache(&sandbox).await;
    has_heard(&cache, &second).await;
    for id in 0..100_u64 {
        in_memory(&cache, &reports, id).await;
    }
    let mut neighbour = admin(&sandbox).await;
    flush_an_empty_database(&mut neighbour).await;
    eventually("the flush is heard of", || async {
        let sent = reads_sent(&cache);
        assert_eq!(
            reports.get(0_u64).await.unwrap().as_deref(),
            Some(&report(0))
        );
        reads_sent(&cache) > sent
    })
    .await;
    // Before any other was read again.
    let kept = metric(&cache, "maestro_cache_local_entries");
    assert!(kept >= 100.0, "{kept} are left");
    for id in 0..100_u64 {
        assert_eq!(reports.get(id).await.unwrap().as_deref(), Some(&report(id)));
    }
}

/// Flushes a database in which nothing is lost: a server that somebody gave has few, and in any of them
/// may be another test's keys, or somebody's. Looked at and flushed in one step.
async fn flush_an_empty_database(admin: &mut redis::aio::MultiplexedConnection) {
    let script = redis::Script::new(
        "if redis.pcall('SELECT', ARGV[1]).err or redis.call('DBSIZE') > 0 then return 0 end
         redis.call('FLUSHDB')
         return 1",
    );
    let mut flushed = false;
    let mut databases = (0..64).rev();
    while !flushed {
        let database: u16 = databases.next().unwrap();
        flushed = script.arg(database).invoke_async(admin).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_over_a_link_that_was_lost_is_seen_when_it_is_back() {
    let sandbox = sandbox().await;
    let a = hasty(&sandbox).await;
    let reports = region(&a);
    let other = region(&cache(&sandbox).await);
    other.put(1_u64, report(1)).await.unwrap();
    in_memory(&a, &reports, 1).await;
    let mut direct = admin(&sandbox).await;
    let key = format!("{}e:report:1", a.config().prefix());
    for (round, fault) in ["cut", "blackhole", "reset"].into_iter().enumerate() {
        match fault {
            "cut" => sandbox.cache_link().cut().await.unwrap(),
            "blackhole" => sandbox.cache_link().blackhole().await.unwrap(),
            _ => sandbox.cache_link().reset().await.unwrap(),
        }
        let value = report(100 + round as u64);
        let text = serde_json::to_string(&value).unwrap();
        // Written past our link, as a process elsewhere would.
        let stored = format!(
            "m1 j- {:016} 9795000300000000 []\n{text}",
            8_000_000_000_000_000_u64 + round as u64
        );
        let () = redis::cmd("SET")
            .arg(&key)
            .arg(stored)
            .query_async(&mut direct)
            .await
            .unwrap();
        sandbox.cache_link().restore().await.unwrap();
        eventually("the newer value is seen", || async {
            reports.get(1_u64).await.ok().flatten().as_deref() == Some(&value)
        })
        .await;
    }
}

#[test]
fn no_id_or_tag_reaches_a_key_outside_the_prefix() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (sandbox, cache) = runtime.block_on(async {
        let sandbox = sandbox().await;
        let cache = cache(&sandbox).await;
        (sandbox, cache)
    });
    let reports = region(&cache);
    let neighbour = runtime.block_on(sandbox.neighbour("neighbour")).unwrap();
    let theirs = runtime.block_on(place::cache(&neighbour));
    let their_reports = region(&theirs);
    let hostile = prop_oneof![
        any::<String>(),
        Just(String::new()),
        Just("*".to_owned()),
        Just("?[a-z]*".to_owned()),
        Just("{slot}".to_owned()),
        Just("\0".to_owned()),
        Just("a\r\nDEL x\r\n".to_owned()),
        Just("../../x".to_owned()),
        Just(format!("{}e:report:1", theirs.config().prefix())),
        Just("x".repeat(1_024)),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let run = runner.run(&(hostile.clone(), hostile), |(id, tag)| {
        runtime.block_on(async {
            reports.entry(&id).tag(&tag).put(report(1)).await.unwrap();
            let read = reports.get(&id).await.unwrap();
            prop_assert_eq!(read.as_deref(), Some(&report(1)));
            prop_assert_eq!(their_reports.get(&id).await.unwrap(), None);
            cache.invalidate_tag(&tag).await.unwrap();
            prop_assert_eq!(reports.get(&id).await.unwrap(), None);
            reports.remove(&id).await.unwrap();
            Ok(())
        })
    });
    run.unwrap();
    // The administrator sees every key: all of ours carry our prefix, and none is the neighbour's.
    runtime.block_on(async {
        let mut admin = admin(&sandbox).await;
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
            .arg("*report*")
            .query_async(&mut admin)
            .await
            .unwrap();
        let ours = cache.config().prefix().as_bytes();
        let stray: Vec<_> = keys
            .iter()
            .filter(|key| {
                !key.starts_with(ours) && key.starts_with(theirs.config().prefix().as_bytes())
            })
            .collect();
        assert!(stray.is_empty(), "{stray:?}");
    });
}
