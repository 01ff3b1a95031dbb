//! Rate limits, and the layer that applies them.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use maestro_cache::{Cache, ErrorKind, LimitWhenDown, Quota};
use tokio::task::JoinSet;

use crate::place::{admin, cache, eventually, metric, sandbox};

/// One request at a limiter.
struct Pressed {
    sent: Instant,
    answered: Instant,
    allowed: bool,
}

/// Presses a limiter from ten clients.
async fn press(caches: &[Cache], quota: Quota, length: Duration) -> Vec<Pressed> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for cache in caches {
        let cache = cache.clone();
        clients.spawn(async move {
            let limiter = cache.limiter("api", quota);
            let mut pressed = Vec::new();
            while started.elapsed() < length {
                let sent = Instant::now();
                let verdict = limiter.check("one").await.unwrap();
                assert!(verdict.shared, "Redis decides");
                pressed.push(Pressed {
                    sent,
                    answered: Instant::now(),
                    allowed: verdict.allowed,
                });
            }
            pressed
        });
    }
    let mut pressed = Vec::new();
    while let Some(one) = clients.join_next().await {
        pressed.extend(one.unwrap());
    }
    pressed.sort_by_key(|request| request.sent);
    pressed
}

/// In seconds, between two clocks that run at different speeds.
const CLOCKS: f64 = 0.001;

/// No window holds more than the burst and what its length earns.
fn check_most(pressed: &[Pressed], rate: f64, burst: f64) {
    let passed: Vec<_> = pressed.iter().filter(|request| request.allowed).collect();
    // A window that begins before a request was sent and ends after another was answered holds both.
    for (first, from) in passed.iter().enumerate() {
        let mut to = from.answered;
        for (last, request) in passed.iter().enumerate().skip(first) {
            to = to.max(request.answered);
            let inside = (last - first + 1) as f64;
            let length = to.duration_since(from.sent).as_secs_f64();
            let bound = burst + rate * (length * (1.0 + CLOCKS) + 1e-6);
            assert!(inside <= bound, "{inside} passed where {bound} may");
        }
    }
}

/// As long as callers press, what is earned is given out: between two refusals, all of it but one. Returns
/// the longest time for which they did, in seconds.
///
/// They pressed while one refusal followed another before the burst could fill up, which is for a busy
/// machine to say.
fn check_least(pressed: &[Pressed], rate: f64, burst: f64) -> f64 {
    let refused: Vec<_> = pressed.iter().filter(|request| !request.allowed).collect();
    let full = Duration::from_secs_f64((burst - 1.0) / rate * 0.9);
    let mut longest = 0.0_f64;
    for chain in refused.chunk_by(|a, b| b.answered.duration_since(a.sent) < full) {
        let (from, to) = (chain[0], chain[chain.len() - 1]);
        let length = to.sent.saturating_duration_since(from.answered);
        let length = length.as_secs_f64();
        let passed = pressed.iter().filter(|request| {
            request.allowed && request.answered >= from.sent && request.sent <= to.answered
        });
        let passed = passed.count() as f64;
        let least = rate * length * (1.0 - CLOCKS) - 1.0;
        assert!(passed >= least, "{passed} of {least} in {length} s");
        longest = longest.max(length);
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_clients_on_one_key_stay_within_the_bound_in_every_window() {
    let sandbox = sandbox().await;
    let mut caches = Vec::new();
    for _ in 0..10 {
        caches.push(cache(&sandbox).await);
    }
    // A rate with a remainder, so that rounding would show.
    let quota = Quota::per_second(70).burst(20);
    eventually("they press for a second without a pause", || async {
        let pressed = press(&caches, quota, Duration::from_secs(3)).await;
        check_most(&pressed, 70.0, 20.0);
        let longest = check_least(&pressed, 70.0, 20.0);
        println!(
            "{} requests, {longest} s of them without a pause",
            pressed.len()
        );
        longest > 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_says_what_is_left_and_when_to_come_back() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    // Earned so slowly that no machine takes long enough for another one.
    let limiter = cache.limiter("api", Quota::per_hour(10).burst(3));
    let peeked = limiter.peek("u").await.unwrap();
    assert!(peeked.allowed && peeked.remaining == 3);
    assert_eq!(limiter.check("u").await.unwrap().remaining, 2);
    assert_eq!(limiter.check_cost("u", 2).await.unwrap().remaining, 0);
    let refused = limiter.check("u").await.unwrap();
    assert!(!refused.allowed);
    let wait = refused.retry_after.as_secs_f64();
    assert!((240.0..=360.0).contains(&wait), "{wait}");
    assert!(limiter.check("v").await.unwrap().allowed, "another caller");
    let other = cache.limiter("other", Quota::per_hour(1));
    assert!(other.check("u").await.unwrap().allowed, "another limiter");
    let error = limiter.check_cost("u", 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let error = cache.limiter("api", Quota::per_hour(0)).check("u").await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Config);
    let error = cache
        .limiter("Not a label", Quota::per_hour(1))
        .check("u")
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Config);
    let refused = "maestro_cache_limit_checks_total{limiter=\"api\",result=\"refused\"}";
    assert!((metric(&cache, refused) - 1.0).abs() < 0.5);
    // The key goes by itself.
    let mut admin = admin(&sandbox).await;
    let left: i64 = redis::cmd("PTTL")
        .arg(format!("{}q:api:u", cache.config().prefix()))
        .query_async(&mut admin)
        .await
        .unwrap();
    assert!((1..=1_080_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_a_limiter_does_what_it_was_told() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let quota = Quota::per_hour(5);
    let local = cache.limiter("local", quota);
    let allow = cache
        .limiter("allow", quota)
        .when_down(LimitWhenDown::Allow);
    let deny = cache.limiter("deny", quota).when_down(LimitWhenDown::Deny);
    sandbox.cache_link().cut().await.unwrap();
    eventually("Redis is known to be away", || async {
        !deny.peek("u").await.unwrap().shared
    })
    .await;
    let mut passed = 0;
    for _ in 0..20 {
        passed += u32::from(local.check("u").await.unwrap().allowed);
        assert!(allow.check("u").await.unwrap().allowed);
        assert!(!deny.check("u").await.unwrap().allowed);
    }
    assert_eq!(passed, 5);
    let refused =
        "maestro_cache_limit_checks_total{limiter=\"local\",result=\"refused_without_redis\"}";
    assert!((metric(&cache, refused) - 15.0).abs() < 0.5);
}

/// A gateway's limits: 1,000 an hour for a user, 100 a minute for an address nobody is known at.
mod gateway {
    use maestro_cache::ThrottleLayer;
    use tower::{Layer as _, Service, ServiceExt as _};

    use super::*;

    type Answer = Response<String>;

    fn gateway(
        cache: &Cache,
    ) -> impl Service<Request<()>, Response = Answer, Error = Infallible> + Clone {
        let layer = ThrottleLayer::new()
            .limit(cache.limiter("user", Quota::per_hour(1_000)), |request| {
                let user = request.headers().get("x-user-id")?;
                Some(user.to_str().ok()?.to_owned())
            })
            .or_limit(
                cache.limiter("address", Quota::per_minute(100)),
                |request| {
                    let address = request.extensions().get::<IpAddr>()?;
                    Some(address.to_string())
                },
            );
        let answer = |_: Request<()>| async { Ok(Response::new("hello".to_owned())) };
        layer.layer(tower::service_fn(answer))
    }

    fn request(user: Option<&str>, address: &str) -> Request<()> {
        let mut request = Request::builder().uri("/orders");
        if let Some(user) = user {
            request = request.header("x-user-id", user);
        }
        let address: IpAddr = address.parse().unwrap();
        request.extension(address).body(()).unwrap()
    }

    fn header(answer: &Answer, name: &str) -> u64 {
        let value = answer.headers().get(name);
        assert!(value.is_some(), "{name}: {answer:?}");
        let value = value.unwrap();
        value.to_str().unwrap().parse().unwrap()
    }

    /// Sends requests until so many were refused; returns how many passed and the last refusal.
    async fn send_until(
        caches: &[Cache],
        refusals: usize,
        make: fn() -> Request<()>,
    ) -> (usize, Answer) {
        let (mut passed, mut refused) = (0, Vec::new());
        for cache in caches.iter().cycle() {
            let answer = gateway(cache).oneshot(make()).await.unwrap();
            match answer.status() {
                StatusCode::OK => passed += 1,
                StatusCode::TOO_MANY_REQUESTS => refused.push(answer),
                other => assert!(other.is_success(), "{other}"),
            }
            if refused.len() >= refusals {
                break;
            }
        }
        (passed, refused.pop().unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn users_and_addresses_have_their_quotas_over_all_processes() {
        let sandbox = sandbox().await;
        let caches = [cache(&sandbox).await, cache(&sandbox).await];
        let started = Instant::now();
        let (passed, refused) = send_until(&caches, 100, || request(Some("ann"), "10.0.0.1")).await;
        let earned = started.elapsed().as_secs_f64() / 3.6 + 1.0;
        let bound = 1_000.0..=1_000.0 + earned;
        assert!(bound.contains(&(passed as f64)), "{passed}");
        assert_eq!(header(&refused, "ratelimit-limit"), 1_000);
        assert_eq!(header(&refused, "ratelimit-remaining"), 0);
        assert!((1..=4).contains(&header(&refused, "retry-after")));
        assert!(header(&refused, "ratelimit-reset") >= 3_500);
        assert_eq!(refused.headers()["ratelimit-policy"], "1000;w=3600");
        assert_eq!(
            refused.headers()["content-type"],
            "application/problem+json"
        );

        // The address of a known user is not counted: nobody takes from a neighbour behind one NAT.
        let started = Instant::now();
        let (passed, refused) = send_until(&caches, 30, || request(None, "10.0.0.1")).await;
        let earned = started.elapsed().as_secs_f64() * 100.0 / 60.0 + 1.0;
        assert!(
            (100.0..=100.0 + earned).contains(&(passed as f64)),
            "{passed}"
        );
        assert_eq!(header(&refused, "ratelimit-limit"), 100);

        let other = gateway(&caches[0])
            .oneshot(request(Some("bob"), "10.0.0.1"))
            .await;
        let other = other.unwrap();
        assert_eq!(other.status(), StatusCode::OK);
        assert_eq!(header(&other, "ratelimit-remaining"), 999);
        assert_eq!(other.body(), "hello");
        // Without user and address nothing applies.
        let neither = Request::builder().body(()).unwrap();
        let neither = gateway(&caches[0]).oneshot(neither).await.unwrap();
        assert!(neither.headers().get("ratelimit-limit").is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_id_too_long_to_be_one_is_refused_and_not_let_through() {
        let sandbox = sandbox().await;
        let cache = cache(&sandbox).await;
        let long = "x".repeat(5_000);
        let answer = gateway(&cache)
            .oneshot(request(Some(&long), "10.0.0.1"))
            .await;
        assert_eq!(answer.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    }
}
