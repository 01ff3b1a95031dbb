//! Everything that is declared is measured, and nothing else is.

use std::time::Duration;

use maestro_cache::{CATALOGUE, Cache, Quota};
use maestro_metrics::{Registry, coverage};

use crate::coherence::SlowLoad;
use crate::place::{Report, cache, config, eventually, in_memory, metric, report, sandbox};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_is_emitted_and_what_is_emitted_is_declared() {
    let sandbox = sandbox().await;
    let registry = Registry::detached();
    // Long enough for a busy machine, short enough to notice that nothing answers.
    let ours = Cache::builder(config(
        &sandbox,
        &[
            ("MAESTRO_CACHE_COMMAND_TIMEOUT", "2s"),
            ("MAESTRO_CACHE_CONNECT_TIMEOUT", "2s"),
        ],
    ))
    .registry(&registry)
    .connect()
    .await
    .unwrap();
    let theirs = cache(&sandbox).await;
    let (our_reports, their_reports) = (
        ours.region::<Report>("report").build().unwrap(),
        theirs.region::<Report>("report").build().unwrap(),
    );

    // Not stored: removed while it was loaded.
    let load = SlowLoad::start(&our_reports, None, report(1)).await;
    their_reports.remove(1_u64).await.unwrap();
    load.finish().await;

    // Not usable: somebody else takes the region for one of texts.
    let texts = theirs.region::<String>("mixed").build().unwrap();
    texts.put(1_u64, "a text".to_owned()).await.unwrap();
    let mixed = ours.region::<Report>("mixed").build().unwrap();
    assert_eq!(mixed.get(1_u64).await.unwrap(), None);

    // Past its lifetime, and its origin is down.
    let short = ours
        .region::<Report>("short")
        .ttl(Duration::from_millis(200));
    let short = short.jitter(0.0).stale_for(Duration::from_mins(1));
    let short = short.build().unwrap();
    short.put(1_u64, report(1)).await.unwrap();
    eventually("the value is past its lifetime", || async {
        short.get(1_u64).await.unwrap().is_none()
    })
    .await;
    let fail = || async { Err::<Report, _>(std::io::Error::other("origin down")) };
    let stale = short.entry(1_u64).get_or_load(fail).await.unwrap();
    assert_eq!(*stale, report(1));

    // Changed by ourselves while it is in process memory: the news comes back to us.
    our_reports.put(2_u64, report(2)).await.unwrap();
    in_memory(&ours, &our_reports, 2).await;
    our_reports.remove(2_u64).await.unwrap();
    eventually("the news of our own change is measured", || async {
        metric(&ours, "maestro_cache_invalidation_lag_seconds_count") > 0.0
    })
    .await;

    let limiter = ours.limiter("api", Quota::per_hour(3));
    assert!(limiter.check("u").await.unwrap().allowed);

    // Redis answers no more: the lease runs out, and the breaker opens.
    let lock = ours.lock("rebuild").lease(Duration::from_secs(2));
    let held = lock.acquire().await.unwrap();
    sandbox.cache_link().blackhole().await.unwrap();
    held.guard(std::future::pending::<()>()).await.unwrap_err();
    let open = "maestro_resilience_breaker_open{target=\"redis\"}";
    eventually("the breaker opens", || async {
        assert!(our_reports.get(9_u64).await.is_err());
        metric(&ours, open) > 0.0
    })
    .await;
    eventually("the loss is counted", || async {
        metric(&ours, "maestro_cache_leases_lost_total") > 0.0
    })
    .await;
    sandbox.cache_link().restore().await.unwrap();

    let text = registry.text();
    assert_eq!(coverage::undeclared(&[&CATALOGUE], &text), [""; 0]);
    assert_eq!(coverage::unmoved(&[&CATALOGUE], &text), [""; 0], "{text}");
}
