//! As the server's user of one service, with names made to get out: nothing of a neighbour is read,
//! written, listed or flushed, and the server was never asked for it.

use std::collections::BTreeMap;
use std::time::Duration;

use maestro_cache::{Cache, CacheConfig, Quota, Received, Region};
use maestro_config::Environment;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::aio::MultiplexedConnection;

use crate::place::{Dedicated, Report, cache, dedicated, report};

const HOUR: Duration = Duration::from_hours(1);
/// Reports, lists, counters and so on that the neighbour has.
const OWNED: u64 = 3;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// Names of entries, tags, locks, lists and channels by somebody who means harm.
fn hostile(theirs: &str) -> impl Strategy<Value = String> + use<> {
    let families = [
        "e:report:1",
        "t:a",
        "t:t:p",
        "l:k:1",
        "s:l:list:1",
        "c:1",
        "",
    ];
    let aimed = families.map(|family| format!("{theirs}{family}"));
    prop_oneof![
        any::<String>(),
        proptest::sample::select(aimed.to_vec()),
        "[*?\\[\\]{}:^\\\\\0\r\n a-z]{0,12}",
        proptest::sample::select(vec![
            "",
            "1",
            "*",
            "a",
            "{slot}",
            "\0",
            "../1",
            "a\r\nFLUSHALL\r\n",
            "%2e%2e",
            "\u{202e}1",
        ])
        .prop_map(str::to_owned),
        Just("x".repeat(1_024)),
        Just("x".repeat(1_048_576)),
    ]
}

/// Everything the public API can do under a name; what it refuses, it refuses by itself.
async fn everything(cache: &Cache, reports: &Region<Report>, name: &str) {
    // An entry that nobody here has written is not there, whatever it is called.
    if let Ok(found) = reports.get(name).await {
        assert_eq!(found, None, "{name:?}");
    }
    if let Ok(found) = reports.get_many([name, "1"]).await {
        assert_eq!(found, [None, None], "{name:?}");
    }
    let _ = reports.entry(name).tag(name).put(report(9)).await;
    let _ = reports.put_many([(name, report(9))]).await;
    let load = || async { Ok::<_, std::io::Error>(report(9)) };
    let _ = reports.entry(name).tag(name).get_or_load(load).await;
    let _ = reports.remove_many([name]).await;
    let _ = cache.invalidate_tag(name).await;
    let _ = reports.entry(name).put(report(9)).await;
    let _ = reports.clear().await;
    let _ = cache.clear().await;
    let _ = reports.remove(name).await;

    let list = cache.recent_list::<u64>("list", 5, HOUR).unwrap();
    if let Ok(found) = list.recent(name, 5).await {
        assert!(found.is_empty(), "{name:?}");
    }
    let _ = list.push(name, &9).await;
    let _ = list.remove(name).await;
    let counter = cache.counter("counter", HOUR).unwrap();
    if let Ok(sum) = counter.add(name, 1).await {
        assert_eq!(sum, 1, "{name:?}");
    }
    let _ = counter.remove(name).await;
    let sessions = cache.sessions::<u64>("session", HOUR, HOUR).unwrap();
    if let Ok(found) = sessions.get(name).await {
        assert_eq!(found, None, "{name:?}");
    }
    let _ = sessions.begin(name, &9).await;
    let _ = sessions.update(name, &9).await;
    let _ = sessions.end(name).await;
    if let Ok(lease) = cache.lock(name).try_acquire().await {
        // Whatever the neighbour holds: nobody of this service has the lock.
        let lease = lease.unwrap();
        assert!(lease.release().await.unwrap());
    }
    let _ = cache.limiter("limit", Quota::per_hour(1)).check(name).await;
    if let Ok(listener) = cache.subscribe::<u64>(name).await {
        drop(listener);
    }
    let _ = cache.publish(name, &9_u64).await;
}

/// All keys of the server with what they hold, but for times that pass.
async fn stored(admin: &mut MultiplexedConnection) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg("*")
        .query_async(admin)
        .await
        .unwrap();
    let mut stored = BTreeMap::new();
    for key in keys {
        let mut dump = redis::cmd("DUMP");
        let value: Option<Vec<u8>> = dump.arg(&key).query_async(admin).await.unwrap();
        // One that has just expired is no loss.
        stored.extend(value.map(|value| (key, value)));
    }
    stored
}

/// The server's administrator, in the sandbox's database.
async fn administrator(place: &Dedicated) -> MultiplexedConnection {
    let mut admin = place.admin().await;
    let environment = place.sandbox.environment();
    let url = environment
        .iter()
        .find(|(name, _)| name == "MAESTRO_CACHE_URL");
    let database = url.unwrap().1.rsplit('/').next().unwrap();
    let mut select = redis::cmd("SELECT");
    let () = select.arg(database).query_async(&mut admin).await.unwrap();
    admin
}

/// Fills a neighbour's place: one of each, under the names that are tried.
async fn furnish(theirs: &Cache, reports: &Region<Report>) {
    for id in 1..=OWNED {
        let entry = reports.entry(id).tag("p");
        entry.put(report(id)).await.unwrap();
        let list = theirs.recent_list::<u64>("list", 5, HOUR).unwrap();
        list.push(id, &id).await.unwrap();
        let counter = theirs.counter("counter", HOUR).unwrap();
        counter.add(id, 7).await.unwrap();
        let sessions = theirs.sessions::<u64>("session", HOUR, HOUR).unwrap();
        sessions.begin(id, &id).await.unwrap();
        let limiter = theirs.limiter("limit", Quota::per_hour(1));
        assert!(limiter.check(id).await.unwrap().allowed);
    }
}

#[test]
fn hostile_names_reach_nothing_of_a_neighbour_and_the_server_is_never_asked() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let place = runtime.block_on(dedicated());
    // A name that begins like ours.
    let neighbour = runtime
        .block_on(place.sandbox.neighbour("reports-2"))
        .unwrap();
    let (ours, theirs) = runtime.block_on(async {
        let ours = cache(&place.sandbox).await;
        (ours, cache(&neighbour).await)
    });
    let reports = ours.region("report").build().unwrap();
    let their_reports: Region<Report> = theirs.region("report").build().unwrap();
    let prefix = theirs.config().prefix().to_owned();
    let of_theirs = |stored: BTreeMap<Vec<u8>, Vec<u8>>| {
        let mut kept = stored;
        kept.retain(|key, _| key.starts_with(prefix.as_bytes()));
        kept
    };
    let (mut admin, mut listener, lease, before) = runtime.block_on(async {
        furnish(&theirs, &their_reports).await;
        let lease = theirs.lock("1").lease(HOUR).acquire().await.unwrap();
        let listener = theirs.subscribe::<u64>("1").await.unwrap();
        let mut admin = administrator(&place).await;
        let mut reset = redis::cmd("ACL");
        reset.arg(&["LOG", "RESET"]);
        let () = reset.query_async(&mut admin).await.unwrap();
        let before = of_theirs(stored(&mut admin).await);
        (admin, listener, lease, before)
    });
    assert!(before.len() as u64 > 5 * OWNED, "{}", before.len());

    let run = runner(96).run(&hostile(&prefix), |name| {
        runtime.block_on(everything(&ours, &reports, &name));
        Ok(())
    });
    run.unwrap();

    runtime.block_on(async {
        let after = stored(&mut admin).await;
        let allowed = [ours.config().prefix().as_bytes(), prefix.as_bytes()];
        let stray = after
            .keys()
            .find(|key| !allowed.iter().any(|prefix| key.starts_with(prefix)));
        assert_eq!(stray, None);
        assert!(
            of_theirs(after) == before,
            "the neighbour's keys have changed"
        );
        for id in 1..=OWNED {
            let read = their_reports.get(id).await.unwrap();
            assert_eq!(read.as_deref(), Some(&report(id)));
        }
        assert!(!lease.is_lost() && lease.release().await.unwrap());
        // The first message on the neighbour's channel is its own.
        assert_eq!(theirs.publish("1", &1_u64).await.unwrap(), 1);
        assert_eq!(listener.next().await, Some(Received::Message(1)));
        // A refusal would be logged: there was none, because nothing was asked for.
        let log: Vec<redis::Value> = redis::cmd("ACL")
            .arg("LOG")
            .query_async(&mut admin)
            .await
            .unwrap();
        assert!(log.is_empty(), "{log:?}");
    });
}

#[test]
fn a_prefix_is_refused_or_is_a_name_of_its_own() {
    let prefix = prop_oneof![any::<String>(), "[a-z*?\\[\\]{}:._ -]{0,6}:"];
    let run = runner(512).run(&prefix, |prefix| {
        let read = Environment::from_pairs([
            ("MAESTRO_SERVICE_NAME", "reports"),
            ("MAESTRO_CACHE_URL", "redis://h/0"),
            ("MAESTRO_CACHE_PREFIX", prefix.as_str()),
        ]);
        let Ok(config) = read.read::<CacheConfig>() else {
            return Ok(());
        };
        // Neither a pattern, nor the beginning of another service's prefix.
        let name = config.prefix().strip_suffix(':').unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        prop_assert!(!name.is_empty() && name.chars().all(plain), "{prefix:?}");
        Ok(())
    });
    run.unwrap();
}
