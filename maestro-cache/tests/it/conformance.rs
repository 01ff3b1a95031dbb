//! What callers rely on, once for the server and once for the Redis in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use maestro_cache::{Cache, Codec, ErrorKind, MemoryRedis, Quota, Received, Region};
use maestro_testkit::Sandbox;
use tokio::sync::Notify;

use crate::place::{self, Report, eventually, in_memory, report};

/// A place for the caches of one service.
pub(crate) enum Place {
    Server(Box<Sandbox>),
    Memory(MemoryRedis),
}

impl Place {
    /// A cache of its own, as another process has it.
    async fn cache(&self) -> Cache {
        match self {
            Self::Server(sandbox) => place::cache(sandbox).await,
            Self::Memory(redis) => redis.connect("reports").await.unwrap(),
        }
    }
}

/// Makes a test against the server and one against the Redis in memory of each of these.
macro_rules! suite {
    ($($name:ident),+ $(,)?) => {
        mod server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let sandbox = crate::place::sandbox().await;
                super::$name(super::Place::Server(Box::new(sandbox))).await;
            })+
        }
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Place::Memory(maestro_cache::MemoryRedis::new())).await;
            })+
        }
    };
}

suite!(
    what_is_put_is_read_until_it_is_removed,
    what_one_process_changes_another_one_hears_of,
    a_tag_takes_its_entries_along_and_no_others,
    clearing_a_region_leaves_the_others_and_clearing_the_cache_leaves_nothing,
    many_are_read_written_and_removed_at_once,
    a_value_ends_with_its_lifetime_and_may_stand_in_for_a_failed_load_afterwards,
    that_there_is_nothing_is_remembered_and_forgotten,
    each_form_of_a_value_is_read_whatever_the_region_writes,
    callers_of_a_cold_key_share_one_load_among_processes,
    what_was_invalidated_while_it_was_loaded_is_not_stored,
    a_lock_is_held_by_one_and_its_token_grows,
    a_lease_that_ends_frees_the_lock,
    a_limiter_lets_the_burst_pass_and_then_refuses,
    lists_keep_the_newest_and_counters_count,
    sessions_live_while_they_are_used_and_end_for_good,
    messages_reach_those_who_listen,
);

fn reports(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

async fn what_is_put_is_read_until_it_is_removed(place: Place) {
    let cache = place.cache().await;
    let reports = reports(&cache);
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    let put = reports.put(1_u64, report(1)).await.unwrap();
    assert!(put.is_acknowledged());
    assert_eq!(
        reports.get(1_u64).await.unwrap().as_deref(),
        Some(&report(1))
    );
    in_memory(&cache, &reports, 1).await;
    reports.put(1_u64, report(2)).await.unwrap();
    assert_eq!(
        reports.get(1_u64).await.unwrap().as_deref(),
        Some(&report(2))
    );
    assert!(reports.remove(1_u64).await.unwrap().is_acknowledged());
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
}

async fn what_one_process_changes_another_one_hears_of(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let (ours, theirs) = (reports(&a), reports(&b));
    ours.put(1_u64, report(1)).await.unwrap();
    in_memory(&b, &theirs, 1).await;
    ours.put(1_u64, report(2)).await.unwrap();
    eventually("the new value is read", || async {
        theirs.get(1_u64).await.unwrap().as_deref() == Some(&report(2))
    })
    .await;
    in_memory(&b, &theirs, 1).await;
    ours.remove(1_u64).await.unwrap();
    eventually("the removal is heard of", || async {
        theirs.get(1_u64).await.unwrap().is_none()
    })
    .await;
}

async fn a_tag_takes_its_entries_along_and_no_others(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let (ours, theirs) = (reports(&a), reports(&b));
    for (id, tags) in [(1_u64, ["p", "q"]), (2, ["p", "r"]), (3, ["q", "r"])] {
        let entry = ours.entry(id).tag(tags[0]).tag(tags[1]);
        entry.put(report(id)).await.unwrap();
        in_memory(&b, &theirs, id).await;
    }
    assert!(a.invalidate_tag("p").await.unwrap().is_acknowledged());
    for id in [1_u64, 2] {
        assert_eq!(ours.get(id).await.unwrap(), None);
        eventually("the tag is heard of", || async {
            theirs.get(id).await.unwrap().is_none()
        })
        .await;
    }
    assert!(ours.get(3_u64).await.unwrap().is_some());
    assert!(theirs.get(3_u64).await.unwrap().is_some());
    // What is written afterwards counts.
    ours.entry(1_u64).tag("p").put(report(9)).await.unwrap();
    assert_eq!(ours.get(1_u64).await.unwrap().as_deref(), Some(&report(9)));
}

async fn clearing_a_region_leaves_the_others_and_clearing_the_cache_leaves_nothing(place: Place) {
    let cache = place.cache().await;
    let reports = reports(&cache);
    let others = cache.region::<Report>("other").build().unwrap();
    reports.put(1_u64, report(1)).await.unwrap();
    others.put(1_u64, report(1)).await.unwrap();
    reports.clear().await.unwrap();
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    assert!(others.get(1_u64).await.unwrap().is_some());
    reports.put(1_u64, report(1)).await.unwrap();
    cache.clear().await.unwrap();
    assert_eq!(reports.get(1_u64).await.unwrap(), None);
    assert_eq!(others.get(1_u64).await.unwrap(), None);
}

async fn many_are_read_written_and_removed_at_once(place: Place) {
    let cache = place.cache().await;
    let reports = reports(&cache);
    let values = (0..700_u64).map(|id| (id, report(id)));
    assert!(reports.put_many(values).await.unwrap().is_acknowledged());
    let found = reports.get_many(0..701_u64).await.unwrap();
    for (id, found) in (0..700_u64).zip(&found) {
        assert_eq!(found.as_deref(), Some(&report(id)));
    }
    assert_eq!(found[700], None);
    reports.remove_many(0..650_u64).await.unwrap();
    let found = reports.get_many(0..700_u64).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 50);
}

async fn a_value_ends_with_its_lifetime_and_may_stand_in_for_a_failed_load_afterwards(
    place: Place,
) {
    let cache = place.cache().await;
    let region = cache.region::<Report>("short");
    let short = region
        .ttl(Duration::from_millis(50))
        .stale_for(Duration::from_mins(10))
        .build()
        .unwrap();
    short.put(1_u64, report(1)).await.unwrap();
    eventually("the value has ended", || async {
        short.get(1_u64).await.unwrap().is_none()
    })
    .await;
    let fail = || async { Err::<Report, _>(std::io::Error::other("origin down")) };
    let stale = short.entry(1_u64).get_or_load(fail).await.unwrap();
    assert_eq!(*stale, report(1));
    let error = short.entry(2_u64).get_or_load(fail).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    // What was removed does not stand in.
    short.remove(1_u64).await.unwrap();
    let error = short.entry(1_u64).get_or_load(fail).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
}

async fn that_there_is_nothing_is_remembered_and_forgotten(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let (ours, theirs) = (reports(&a), reports(&b));
    let nothing = || async { Ok::<_, std::io::Error>(None) };
    let entry = ours.entry(1_u64);
    assert_eq!(entry.get_or_load_optional(nothing).await.unwrap(), None);
    let unasked = || async { Err(std::io::Error::other("asked again")) };
    eventually("the other process believes it", || async {
        let entry = theirs.entry(1_u64);
        matches!(entry.get_or_load_optional(unasked).await, Ok(None))
    })
    .await;
    let found = || async { Ok::<_, std::io::Error>(Some(report(1))) };
    ours.remove(1_u64).await.unwrap();
    let entry = ours.entry(1_u64);
    let value = entry.get_or_load_optional(found).await.unwrap();
    assert_eq!(value.as_deref(), Some(&report(1)));
}

async fn each_form_of_a_value_is_read_whatever_the_region_writes(place: Place) {
    let build = async |codec, compress_above| {
        let region = place.cache().await.region::<Report>("report").codec(codec);
        region.compress_above(compress_above).build().unwrap()
    };
    let large = Report {
        id: 1,
        title: "a".repeat(10_000),
    };
    let forms = [
        build(Codec::Json, usize::MAX).await,
        build(Codec::Json, 1_000).await,
        build(Codec::MessagePack, usize::MAX).await,
        build(Codec::MessagePack, 1_000).await,
    ];
    for writes in &forms {
        for value in [&large, &report(1)] {
            writes.put(1_u64, value.clone()).await.unwrap();
            for reads in &forms {
                eventually("the value is read", || async {
                    reads.get(1_u64).await.unwrap().as_deref() == Some(value)
                })
                .await;
            }
        }
    }
    // The limit is for what is held in memory, not for what is stored.
    let huge = Report {
        id: 1,
        title: "a".repeat(2 << 20),
    };
    let error = forms[3].put(1_u64, huge).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

async fn callers_of_a_cold_key_share_one_load_among_processes(place: Place) {
    let loads = Arc::new(AtomicU64::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let cache = place.cache().await;
        let region = cache.region("report").one_load(Duration::from_secs(30));
        let region: Region<Report> = region.build().unwrap();
        for _ in 0..20 {
            let (region, loads) = (region.clone(), Arc::clone(&loads));
            callers.spawn(async move {
                let load = move || async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, std::io::Error>(report(1))
                };
                region.entry(1_u64).get_or_load(load).await
            });
        }
    }
    while let Some(read) = callers.join_next().await {
        assert_eq!(*read.unwrap().unwrap(), report(1));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

async fn what_was_invalidated_while_it_was_loaded_is_not_stored(place: Place) {
    for how in ["remove", "tag", "clear"] {
        let (a, b) = (place.cache().await, place.cache().await);
        let (ours, theirs) = (reports(&a), reports(&b));
        let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, waits) = (Arc::clone(&began), Arc::clone(&go_on));
        let entry_of = ours.clone();
        let slow = tokio::spawn(async move {
            let load = move || async move {
                told.notify_one();
                waits.notified().await;
                Ok::<_, std::io::Error>(report(1))
            };
            entry_of.entry(1_u64).tag("p").get_or_load(load).await
        });
        began.notified().await;
        match how {
            "remove" => theirs.remove(1_u64).await.unwrap(),
            "tag" => b.invalidate_tag("p").await.unwrap(),
            _ => b.clear().await.unwrap(),
        };
        go_on.notify_one();
        slow.await.unwrap().unwrap();
        assert_eq!(theirs.get(1_u64).await.unwrap(), None, "{how}");
    }
}

async fn a_lock_is_held_by_one_and_its_token_grows(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let first = a.lock("rebuild").acquire().await.unwrap();
    assert!(b.lock("rebuild").try_acquire().await.unwrap().is_none());
    assert!(b.lock("other").try_acquire().await.unwrap().is_some());
    let token = first.fencing_token();
    assert!(first.release().await.unwrap());
    let second = b.lock("rebuild").acquire().await.unwrap();
    assert!(second.fencing_token() > token);
    let wait = a.lock("rebuild").wait(Duration::from_millis(20));
    assert_eq!(
        wait.acquire().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
}

async fn a_lease_that_ends_frees_the_lock(place: Place) {
    let cache = place.cache().await;
    let lease = cache.lock("rebuild").lease(Duration::from_millis(200));
    let held = lease.acquire().await.unwrap();
    let token = held.fencing_token();
    // It renews itself well beyond its lease, and is given back when dropped.
    let other = place.cache().await;
    let began = Instant::now();
    eventually("a few leases have passed", || async {
        let taken = other.lock("rebuild").try_acquire().await.unwrap();
        assert!(taken.is_none() || held.is_lost());
        began.elapsed() > Duration::from_millis(600)
    })
    .await;
    drop(held);
    let next = other.lock("rebuild").wait(Duration::from_secs(30));
    assert!(next.acquire().await.unwrap().fencing_token() > token);
}

async fn a_limiter_lets_the_burst_pass_and_then_refuses(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let quota = Quota::per_hour(10);
    let (ours, theirs) = (a.limiter("api", quota), b.limiter("api", quota));
    for left in (0..10).rev() {
        let limiter = if left % 2 == 0 { &ours } else { &theirs };
        assert_eq!(limiter.peek("ann").await.unwrap().remaining, left + 1);
        let verdict = limiter.check("ann").await.unwrap();
        assert!(verdict.allowed && verdict.shared);
        assert_eq!(verdict.remaining, left);
    }
    let refused = theirs.check("ann").await.unwrap();
    assert!(!refused.allowed);
    assert!(refused.retry_after > Duration::from_mins(1), "{refused:?}");
    assert!(refused.reset_after > Duration::from_mins(50), "{refused:?}");
    assert!(ours.check_cost("ben", 10).await.unwrap().allowed);
    assert!(!ours.check("ben").await.unwrap().allowed);
}

async fn lists_keep_the_newest_and_counters_count(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let life = Duration::from_hours(1);
    let ours = a.recent_list::<u64>("event", 3, life).unwrap();
    let theirs = b.recent_list::<u64>("event", 3, life).unwrap();
    for event in 1..=5_u64 {
        ours.push("order-1", &event).await.unwrap();
    }
    assert_eq!(theirs.recent("order-1", 10).await.unwrap(), [5, 4, 3]);
    assert_eq!(theirs.recent("order-1", 1).await.unwrap(), [5]);
    assert!(theirs.remove("order-1").await.unwrap());
    assert_eq!(ours.recent("order-1", 10).await.unwrap(), [0_u64; 0]);

    let (ours, theirs) = (
        a.counter("visit", life).unwrap(),
        b.counter("visit", life).unwrap(),
    );
    assert_eq!(ours.add("home", 2).await.unwrap(), 2);
    assert_eq!(theirs.add("home", -5).await.unwrap(), -3);
    assert_eq!(ours.get("home").await.unwrap(), -3);
    assert!(ours.remove("home").await.unwrap());
    assert_eq!(theirs.get("home").await.unwrap(), 0);
}

async fn sessions_live_while_they_are_used_and_end_for_good(place: Place) {
    let cache = place.cache().await;
    let hour = Duration::from_hours(1);
    let sessions = cache.sessions::<String>("login", hour, hour).unwrap();
    let (ann, ben) = ("ann".to_owned(), "ben".to_owned());
    sessions.begin("1", &ann).await.unwrap();
    assert_eq!(sessions.get("1").await.unwrap(), Some(ann.clone()));
    assert!(sessions.update("1", &ben).await.unwrap());
    assert_eq!(sessions.get("1").await.unwrap(), Some(ben));
    assert!(sessions.end("1").await.unwrap());
    assert!(!sessions.update("1", &ann).await.unwrap());
    assert_eq!(sessions.get("1").await.unwrap(), None);
    let short = Duration::from_millis(30);
    let idle = cache.sessions::<String>("idle", short, hour).unwrap();
    let old = cache.sessions::<String>("old", hour, short).unwrap();
    for sessions in [&idle, &old] {
        sessions.begin("1", &ann).await.unwrap();
    }
    // Nobody reads the one; reading the other does not help it.
    eventually("the session is over", || async {
        old.get("1").await.unwrap().is_none()
    })
    .await;
    eventually("the session was idle for too long", || async {
        tokio::time::sleep(short * 2).await;
        idle.get("1").await.unwrap().is_none()
    })
    .await;
}

async fn messages_reach_those_who_listen(place: Place) {
    let (a, b) = (place.cache().await, place.cache().await);
    let mut prices = b.subscribe::<u64>("price").await.unwrap();
    assert_eq!(a.publish("price", &7_u64).await.unwrap(), 1);
    assert_eq!(a.publish("other", &8_u64).await.unwrap(), 0);
    assert_eq!(prices.next().await, Some(Received::Message(7)));
}
