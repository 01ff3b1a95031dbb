//! Loads across processes, and before their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maestro_cache::{Cache, ErrorKind, Region};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::place::{PATIENCE, Report, cache, eventually, in_memory, report, sandbox};

/// A region in each of so many processes: clients of their own, which share nothing but Redis.
async fn processes(
    count: usize,
    build: fn(&Cache) -> Region<Report>,
) -> (maestro_testkit::Sandbox, Vec<Region<Report>>) {
    let sandbox = sandbox().await;
    let mut regions = Vec::new();
    for _ in 0..count {
        regions.push(build(&cache(&sandbox).await));
    }
    (sandbox, regions)
}

/// Reads one cold entry from all processes at once; returns how often it was loaded.
async fn loads_of_one(regions: &[Region<Report>]) -> u64 {
    let loads = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for region in regions {
        for _ in 0..10 {
            let (region, loads) = (region.clone(), Arc::clone(&loads));
            callers.spawn(async move {
                let load = move || async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    // As long as a query takes, so that all of them meet.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    Ok::<_, std::io::Error>(report(1))
                };
                region.entry(1_u64).get_or_load(load).await
            });
        }
    }
    while let Some(read) = callers.join_next().await {
        assert_eq!(*read.unwrap().unwrap(), report(1));
    }
    loads.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_load_once_when_they_are_told_to() {
    let (_sandbox, regions) = processes(20, |cache| {
        let region = cache.region("report").one_load(Duration::from_secs(30));
        region.build().unwrap()
    })
    .await;
    assert_eq!(loads_of_one(&regions).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_processes_load_at_most_once_each_otherwise() {
    let (_sandbox, regions) = processes(20, |cache| cache.region("report").build().unwrap()).await;
    let loads = loads_of_one(&regions).await;
    assert!((1..=20).contains(&loads), "{loads}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_takes_too_long_to_load_is_not_waited_for() {
    let (_sandbox, regions) = processes(2, |cache| {
        let region = cache.region("report").one_load(Duration::from_millis(100));
        region.build().unwrap()
    })
    .await;
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, waits, slow) = (Arc::clone(&began), Arc::clone(&go_on), regions[0].clone());
    let slow = tokio::spawn(async move {
        let load = move || async move {
            told.notify_one();
            waits.notified().await;
            Ok::<_, std::io::Error>(report(1))
        };
        slow.entry(1_u64).get_or_load(load).await
    });
    began.notified().await;
    let load = || async { Ok::<_, std::io::Error>(report(2)) };
    let value = regions[1].entry(1_u64).get_or_load(load).await.unwrap();
    assert_eq!(*value, report(2));
    go_on.notify_one();
    assert_eq!(*slow.await.unwrap().unwrap(), report(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_load_gives_the_turn_to_the_next_process_at_once() {
    let (_sandbox, regions) = processes(2, |cache| {
        // Also how long a turn lasts that is not given back.
        let region = cache.region("report").load_timeout(PATIENCE * 2);
        region.one_load(PATIENCE * 2).build().unwrap()
    })
    .await;
    let fail = || async { Err::<Report, _>(std::io::Error::other("origin down")) };
    let failed = regions[0].entry(1_u64).get_or_load(fail).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Load);
    let load = || async { Ok::<_, std::io::Error>(report(2)) };
    let next = regions[1].entry(1_u64).get_or_load(load);
    let next = tokio::time::timeout(PATIENCE, next).await;
    assert_eq!(*next.expect("the turn was kept").unwrap(), report(2));
}

fn refreshing(cache: &Cache) -> Region<Report> {
    // To be loaded anew from somewhere in the first five seconds on, and current for five more.
    let region = cache.region("report").ttl(Duration::from_secs(10));
    let region = region
        .jitter(0.0)
        .early_refresh(Duration::from_millis(9_900))
        .retry_failed_after(Duration::from_mins(5));
    region.build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_in_use_is_loaded_anew_before_its_end_and_nobody_waits() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = refreshing(&cache);
    reports.put(1_u64, report(1)).await.unwrap();
    in_memory(&cache, &reports, 1).await;
    let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let loads = Arc::new(AtomicU64::new(0));
    eventually("a load begins while the value serves", || async {
        let (told, waits, counted) = (Arc::clone(&began), Arc::clone(&go_on), Arc::clone(&loads));
        let load = move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            told.notify_one();
            waits.notified().await;
            Ok::<_, std::io::Error>(report(2))
        };
        let read = reports.entry(1_u64).get_or_load(load);
        // The load hangs until it is told to go on: whoever waited for it would be stuck.
        let value = tokio::time::timeout(PATIENCE, read).await;
        let value = value.expect("a caller waited").unwrap();
        assert_eq!(*value, report(1));
        loads.load(Ordering::SeqCst) > 0
    })
    .await;
    began.notified().await;
    go_on.notify_one();
    eventually("the new value is there", || async {
        reports.get(1_u64).await.unwrap().as_deref() == Some(&report(2))
    })
    .await;
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_load_that_fails_leaves_the_value_in_place() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = refreshing(&cache);
    reports.put(1_u64, report(1)).await.unwrap();
    let tried = Arc::new(AtomicU64::new(0));
    eventually("an early load has failed", || async {
        let tried = Arc::clone(&tried);
        let counted = Arc::clone(&tried);
        let fail = move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Err::<Report, _>(std::io::Error::other("origin down"))
        };
        let value = reports.entry(1_u64).get_or_load(fail).await.unwrap();
        assert_eq!(*value, report(1));
        tried.load(Ordering::SeqCst) > 0
    })
    .await;
    // The pause after a failure holds for early loads, too.
    for _ in 0..20 {
        let tried = Arc::clone(&tried);
        let fail = move || async move {
            tried.fetch_add(1, Ordering::SeqCst);
            Err::<Report, _>(std::io::Error::other("origin down"))
        };
        reports.entry(1_u64).get_or_load(fail).await.unwrap();
    }
    assert!(tried.load(Ordering::SeqCst) <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_loaded_when_the_cache_is_closed_is_stored() {
    let sandbox = sandbox().await;
    let (ours, theirs) = (cache(&sandbox).await, cache(&sandbox).await);
    let region = ours.region::<Report>("report").build().unwrap();
    let (begun, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let caller = {
        let (begun, goes_on) = (Arc::clone(&begun), Arc::clone(&goes_on));
        tokio::spawn(async move {
            let load = || async move {
                begun.notify_one();
                goes_on.notified().await;
                Ok::<_, std::io::Error>(report(1))
            };
            region.entry(1_u64).get_or_load(load).await
        })
    };
    begun.notified().await;
    let close = ours.close(Duration::from_secs(30));
    tokio::join!(close, async { goes_on.notify_one() });
    assert_eq!(*caller.await.unwrap().unwrap(), report(1));
    let region = theirs.region::<Report>("report").build().unwrap();
    assert_eq!(
        region.get(1_u64).await.unwrap().as_deref(),
        Some(&report(1))
    );
}
