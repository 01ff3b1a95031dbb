//! Lists, counters, sessions and channels; and that none of their names leaves the prefix.

use std::time::{Duration, Instant};

use maestro_cache::{Cache, ErrorKind, Quota, Received};
use proptest::prelude::*;

use crate::place::{PATIENCE, admin, cache, eventually, healthy, sandbox};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_recent_list_keeps_the_newest_in_order() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let ours = a.recent_list::<u64>("message", 100, MINUTE).unwrap();
    let theirs = b.recent_list::<u64>("message", 100, MINUTE).unwrap();
    for n in 0..150 {
        ours.push("room", &n).await.unwrap();
    }
    let newest: Vec<u64> = theirs.recent("room", 3).await.unwrap();
    assert_eq!(newest, [149, 148, 147]);
    assert_eq!(theirs.recent("room", 1_000).await.unwrap().len(), 100);
    assert!(theirs.recent("room", 0).await.unwrap().is_empty());
    assert!(theirs.recent("other", 5).await.unwrap().is_empty());
    assert!(theirs.remove("room").await.unwrap());
    assert!(!theirs.remove("room").await.unwrap());
    let error = a.recent_list::<u64>("message", 0, MINUTE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_is_summed_over_processes_and_goes_after_its_lifetime() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (
        a.counter("download", HOUR).unwrap(),
        b.counter("download", HOUR).unwrap(),
    );
    assert_eq!(ours.get("f").await.unwrap(), 0);
    let mut adding = tokio::task::JoinSet::new();
    for counter in [ours.clone(), theirs.clone()] {
        adding.spawn(async move {
            for _ in 0..100 {
                counter.add("f", 3).await.unwrap();
            }
        });
    }
    while let Some(done) = adding.join_next().await {
        done.unwrap();
    }
    assert_eq!(ours.get("f").await.unwrap(), 600);
    assert_eq!(theirs.add("f", -2).await.unwrap(), 598);

    let short = a.counter("short", Duration::from_secs(1)).unwrap();
    assert_eq!(short.add("f", 5).await.unwrap(), 5);
    // Its lifetime counts from the first addition, so later ones do not prolong it.
    eventually("the counter is gone and begins anew", || async {
        short.add("f", 1).await.unwrap() == 1
    })
    .await;
}

/// Uses a session all the time until it ends, and says whether it was its age that ended it. Times are
/// taken before a request is sent and after it is answered, so that what is said of them holds however
/// long it takes; a hundredth is for two clocks and for whole milliseconds.
async fn lives_by_its_age(
    sessions: &maestro_cache::Sessions<String>,
    idle: Duration,
    age: Duration,
) -> bool {
    let sent = Instant::now();
    sessions.begin("s", &"ann".to_owned()).await.unwrap();
    let begun = Instant::now();
    let mut used = sent;
    loop {
        let asked = Instant::now();
        let Some(user) = sessions.get("s").await.unwrap() else {
            let now = Instant::now();
            let old = now.duration_since(sent) >= age.mul_f64(0.99);
            let unused = now.duration_since(used) >= idle.mul_f64(0.99);
            assert!(old || unused, "it ended for no reason");
            return old && !unused;
        };
        assert_eq!(user, "ann");
        let lived = asked.duration_since(begun);
        assert!(lived < age.mul_f64(1.01), "it outlives its age");
        used = asked;
        tokio::time::sleep(idle / 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_while_it_is_used_and_no_longer_than_it_may() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let idle = Duration::from_secs(1);
    let age = Duration::from_secs(3);
    let sessions = cache.sessions::<String>("login", idle, age).unwrap();
    // On a machine that stands still for longer than `idle` it is not in use.
    eventually("used, it lives longer than `idle`", || {
        lives_by_its_age(&sessions, idle, age)
    })
    .await;
    assert!(!sessions.update("s", &"bob".to_owned()).await.unwrap());
    assert_eq!(
        sessions.get("s").await.unwrap(),
        None,
        "an update does not bring it back"
    );

    let long = cache.sessions::<String>("long", HOUR, HOUR).unwrap();
    long.begin("t", &"ann".to_owned()).await.unwrap();
    assert!(long.update("t", &"bob".to_owned()).await.unwrap());
    assert_eq!(long.get("t").await.unwrap().as_deref(), Some("bob"));
    assert!(long.end("t").await.unwrap());
    assert_eq!(long.get("t").await.unwrap(), None);

    sessions.begin("u", &"ann".to_owned()).await.unwrap();
    let admin = admin(&sandbox).await;
    let key = format!("{}s:s:login:u", cache.config().prefix());
    eventually("an unused session ends", || {
        let mut admin = admin.clone();
        let key = key.clone();
        async move {
            let there: i64 = redis::cmd("EXISTS")
                .arg(key)
                .query_async(&mut admin)
                .await
                .unwrap();
            there == 0
        }
    })
    .await;
}

async fn next_message(subscription: &mut maestro_cache::Subscription<u64>) -> Received<u64> {
    tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_hears_every_message_or_that_some_were_missed() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let mut prices = a.subscribe::<u64>("price").await.unwrap();
    let mut others = a.subscribe::<u64>("other").await.unwrap();
    for n in 0..100_u64 {
        assert_eq!(b.publish("price", &n).await.unwrap(), 1);
    }
    for n in 0..100_u64 {
        assert_eq!(next_message(&mut prices).await, Received::Message(n));
    }
    b.publish("price", &"no number").await.unwrap();
    assert_eq!(next_message(&mut prices).await, Received::Missed);

    sandbox.cache_link().reset().await.unwrap();
    assert_eq!(next_message(&mut prices).await, Received::Missed);
    healthy(&b).await;
    let mut again = async || {
        // Published until it arrives: the server may not have noticed the lost listener yet.
        let _ = b.publish("price", &7_u64).await;
        loop {
            let next = tokio::time::timeout(Duration::from_millis(50), prices.next()).await;
            match next {
                Ok(Some(Received::Message(7))) => return true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    };
    let began = Instant::now();
    while !again().await {
        assert!(began.elapsed() < PATIENCE, "no message arrives again");
    }

    // A subscriber that is too slow is told, and the publisher never waits. How fast messages come in is
    // not for the publisher to say, so it goes on until there were too many at a time.
    let began = Instant::now();
    let mut missed = false;
    while !missed {
        assert!(began.elapsed() < PATIENCE, "nothing was missed");
        for n in 0..3_000_u64 {
            b.publish("price", &n).await.unwrap();
        }
        missed = next_message(&mut prices).await == Received::Missed;
    }
    drop(prices);
    eventually("the subscription has ended", || async {
        b.publish("price", &1_u64).await.unwrap() == 0
    })
    .await;
    assert_eq!(next_message(&mut others).await, Received::Missed);
    a.close(Duration::from_secs(5)).await;
    while others.next().await.is_some() {}
}

#[test]
fn no_name_reaches_what_a_neighbour_has() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (sandbox, neighbour, ours, theirs) = runtime.block_on(async {
        let sandbox = sandbox().await;
        let neighbour = sandbox.neighbour("neighbour").await.unwrap();
        let (ours, theirs) = (cache(&sandbox).await, cache(&neighbour).await);
        (sandbox, neighbour, ours, theirs)
    });
    let prefix = theirs.config().prefix().to_owned();
    let hostile = prop_oneof![
        any::<String>(),
        Just(String::new()),
        Just("*".to_owned()),
        Just("?[a-z]*".to_owned()),
        Just("\0".to_owned()),
        Just("a\r\nFLUSHALL\r\n".to_owned()),
        Just(format!("{prefix}l:k:x")),
        Just(format!("../{prefix}")),
        Just("x".repeat(1_024)),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let run = runner.run(&hostile, |name| {
        runtime.block_on(async {
            touch_everything(&ours, &name, 1).await;
            // A neighbour that uses the very same names sees nothing of it.
            let list = theirs.recent_list::<u64>("x", 5, MINUTE).unwrap();
            prop_assert!(list.recent(&name, 5).await.unwrap().is_empty());
            let counter = theirs.counter("x", MINUTE).unwrap();
            prop_assert_eq!(counter.get(&name).await.unwrap(), 0);
            let sessions = theirs.sessions::<u64>("x", MINUTE, MINUTE).unwrap();
            prop_assert_eq!(sessions.get(&name).await.unwrap(), None);
            let lock = theirs.lock(&name).try_acquire().await.unwrap();
            prop_assert!(
                lock.expect("another service's lock")
                    .release()
                    .await
                    .unwrap()
            );
            let limiter = theirs.limiter("x", Quota::per_hour(1));
            prop_assert!(limiter.peek(&name).await.unwrap().allowed);
            Ok(())
        })
    });
    run.unwrap();
    runtime.block_on(async {
        let mut admin = admin(&sandbox).await;
        let log: redis::Value = redis::cmd("ACL")
            .arg("LOG")
            .query_async(&mut admin)
            .await
            .unwrap();
        // What is refused is logged with the user's name: the API never even asked.
        let user = sandbox.resources().redis_user();
        assert!(!format!("{log:?}").contains(user), "{log:?}");
        drop(neighbour);
    });
}

async fn touch_everything(cache: &Cache, name: &str, value: u64) {
    let list = cache.recent_list::<u64>("x", 5, MINUTE).unwrap();
    list.push(name, &value).await.unwrap();
    cache
        .counter("x", MINUTE)
        .unwrap()
        .add(name, 1)
        .await
        .unwrap();
    let sessions = cache.sessions::<u64>("x", MINUTE, MINUTE).unwrap();
    sessions.begin(name, &value).await.unwrap();
    assert_eq!(sessions.get(name).await.unwrap(), Some(value));
    let lease = cache.lock(name).try_acquire().await.unwrap().unwrap();
    let limiter = cache.limiter("x", Quota::per_hour(1));
    let _ = limiter.check(name).await.unwrap();
    cache.publish(name, &value).await.unwrap();
    lease.release().await.unwrap();
}
