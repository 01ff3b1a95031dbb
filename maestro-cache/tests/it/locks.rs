//! Locks: one holder, notice before the lease can run out, fences that grow.

use std::time::{Duration, Instant};

use maestro_cache::{Cache, ErrorKind};
use tokio::task::JoinSet;

use crate::place::{
    PATIENCE, cache, dedicated, direct_config, eventually, healthy, metric, sandbox,
};

/// Short enough to be sat out.
const LEASE: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread")]
async fn one_process_holds_a_lock_and_the_next_gets_a_larger_token() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let held = a.lock("rebuild").acquire().await.unwrap();
    assert!(b.lock("rebuild").try_acquire().await.unwrap().is_none());
    let waiting = b.lock("rebuild").wait(Duration::from_millis(50));
    let error = waiting.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(b.lock("other").try_acquire().await.unwrap().is_some());
    let first = held.fencing_token();
    assert!(held.release().await.unwrap());
    let next = b.lock("rebuild").acquire().await.unwrap();
    assert!(next.fencing_token() > first);
    // Dropped, it is given up as well.
    drop(next);
    let last = a.lock("rebuild").acquire().await.unwrap();
    assert!(last.fencing_token() > first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_renews_itself_for_longer_than_its_lease() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    // Renewed every third of it: a pause of four seconds does no harm.
    let lease = Duration::from_secs(6);
    let held = a.lock("rebuild").lease(lease).acquire().await.unwrap();
    let started = Instant::now();
    eventually("a lease and a third have passed", || async {
        assert!(b.lock("rebuild").try_acquire().await.unwrap().is_none());
        assert!(!held.is_lost());
        started.elapsed() > lease + lease / 3
    })
    .await;
    assert!(held.release().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_contenders_work_one_at_a_time_under_tokens_that_grow() {
    let sandbox = sandbox().await;
    let mut contenders = JoinSet::new();
    for _ in 0..5 {
        let cache = cache(&sandbox).await;
        contenders.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..10 {
                let lock = cache.lock("rebuild").wait(Duration::from_mins(1));
                let lease = lock.acquire().await.unwrap();
                tokens.push(lease.fencing_token());
                // Another holder at the same time would be waiting for this, too.
                let inner = cache.lock("inner").try_acquire().await.unwrap();
                inner.expect("two are at work").release().await.unwrap();
                lease.release().await.unwrap();
            }
            tokens
        });
    }
    let mut all = Vec::new();
    while let Some(tokens) = contenders.join_next().await {
        let tokens = tokens.unwrap();
        assert!(tokens.is_sorted());
        all.extend(tokens);
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_cut_off_is_told_before_another_can_have_the_lock() {
    let sandbox = sandbox().await;
    let ours = cache(&sandbox).await;
    let lease = Duration::from_secs(2);
    let held = ours.lock("rebuild").lease(lease).acquire().await.unwrap();
    let other = Cache::connect(direct_config(&sandbox)).await.unwrap();
    sandbox.cache_link().blackhole().await.unwrap();
    let others = async {
        let waits = other.lock("rebuild").wait(PATIENCE);
        let theirs = waits.acquire().await.unwrap();
        // Whenever this is asked: they have it, so we must know that we do not.
        assert!(held.is_lost(), "the server has given it to others already");
        theirs
    };
    let guarded = held.guard(std::future::pending::<()>());
    let (guarded, theirs) = tokio::join!(guarded, others);
    assert_eq!(guarded.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(theirs.fencing_token() > held.fencing_token());
    sandbox.cache_link().restore().await.unwrap();
    eventually("the loss is counted", || async {
        metric(&ours, "maestro_cache_leases_lost_total") > 0.0
    })
    .await;
    // What was lost stays lost, also when the server is there again.
    healthy(&ours).await;
    assert!(held.is_lost());
}

/// Blocks its thread, as a stopped process would: no timer fires meanwhile.
#[expect(
    clippy::disallowed_methods,
    reason = "stands for a process that was stopped"
)]
fn stop_for(time: Duration) {
    std::thread::sleep(time);
}

#[tokio::test]
async fn a_holder_paused_beyond_its_lease_does_not_get_past_its_next_await() {
    let sandbox = sandbox().await;
    // On a runtime with one thread: a pause of it is a pause of everything of this process.
    let ours = cache(&sandbox).await;
    let held = ours.lock("rebuild").lease(LEASE).acquire().await.unwrap();
    let first = held.fencing_token();
    let mut went_on = false;
    let guarded = held.guard(async {
        stop_for(LEASE * 2);
        // Ready at once: an await that a timer for the lease would lose against.
        tokio::task::yield_now().await;
        went_on = true;
    });
    let error = guarded.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(!went_on);
    let unguarded = tokio::select! {
        biased;
        () = held.lost() => false,
        () = std::future::ready(()) => true,
    };
    assert!(!unguarded, "`lost` came after another await");
    let next = ours.lock("rebuild").acquire().await.unwrap();
    assert!(
        next.fencing_token() > first,
        "the fence rejects the paused holder"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_grow_over_a_redis_that_lost_everything() {
    let place = dedicated().await;
    let cache = cache(&place.sandbox).await;
    let held = cache.lock("rebuild").lease(LEASE).acquire().await.unwrap();
    let first = held.fencing_token();
    let mut admin = place.admin().await;
    let () = redis::cmd("FLUSHALL")
        .query_async(&mut admin)
        .await
        .unwrap();
    let next = cache.lock("rebuild").acquire().await.unwrap();
    assert!(next.fencing_token() > first);
    tokio::time::timeout(PATIENCE, held.lost())
        .await
        .expect("the old holder is told");
    // Its late renewals and its release did not touch the new holder's lock.
    assert!(!held.release().await.unwrap());
    assert!(!next.is_lost());
    assert!(cache.lock("rebuild").try_acquire().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_locked_is_said_so() {
    let sandbox = sandbox().await;
    let cache: Cache = cache(&sandbox).await;
    let short = cache.lock("x").lease(Duration::from_millis(1));
    assert_eq!(short.acquire().await.unwrap_err().kind(), ErrorKind::Config);
    let long = cache.lock("x".repeat(2_000));
    assert_eq!(
        long.acquire().await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    sandbox.cache_link().cut().await.unwrap();
    eventually(
        "nobody is told that a lock is theirs without Redis",
        || async {
            let tried = cache.lock("x").try_acquire().await;
            tried.is_err_and(|error| error.is_transient())
        },
    )
    .await;
}
