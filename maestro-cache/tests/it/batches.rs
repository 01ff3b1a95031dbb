//! Many entries at once, and warming.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use maestro_cache::{Cache, ErrorKind, Outcome, Region};

use crate::place::{
    self, Report, admin, cache, eventually, has_heard, metric, reads_sent, report, sandbox,
};

fn region(cache: &Cache) -> Region<Report> {
    cache.region("report").build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_values_are_read_in_one_round_trip_and_in_order() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    let values = (0..300_u64).map(|id| (id, report(id)));
    let outcome = theirs.put_many(values).await.unwrap();
    assert_eq!(outcome, Outcome::Acknowledged);
    let before = reads_sent(&a);
    let found = ours.get_many((0..400_u64).rev()).await.unwrap();
    for (id, found) in (0..400_u64).rev().zip(&found) {
        let expected = (id < 300).then(|| report(id));
        assert_eq!(found.as_deref(), expected.as_ref(), "{id}");
    }
    assert_eq!(reads_sent(&a), before + 1);
    // From memory soon: the news of the writes may come after the first read, and takes the entries
    // out again.
    eventually("process memory serves the batch", || async {
        let before = reads_sent(&a);
        let found = ours.get_many(0..300_u64).await.unwrap();
        assert!(found.iter().all(Option::is_some));
        reads_sent(&a) == before
    })
    .await;
    assert!(ours.get_many(Vec::<u64>::new()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_values_than_one_command_takes_are_all_read_written_and_removed() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    ours.put_many((0..1_700_u64).map(|id| (id, report(id))))
        .await
        .unwrap();
    let found = theirs.get_many(0..1_700_u64).await.unwrap();
    assert!(
        found
            .iter()
            .zip(0..)
            .all(|(found, id)| found.as_deref() == Some(&report(id)))
    );
    let outcome = ours.remove_many(0..1_699_u64).await.unwrap();
    assert_eq!(outcome, Outcome::Acknowledged);
    eventually("the other process hears of all removals", || async {
        let found = theirs.get_many(0..1_700_u64).await.unwrap();
        found.iter().flatten().count() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_batch_a_dead_tag_takes_its_own_entries_and_no_others() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let (ours, theirs) = (region(&a), region(&b));
    for id in 0..10_u64 {
        let entry = theirs.entry(id).tag(id % 2);
        entry.put(report(id)).await.unwrap();
    }
    b.invalidate_tag(1_u64).await.unwrap();
    let found = ours.get_many(0..10_u64).await.unwrap();
    for (id, found) in (0..10_u64).zip(found) {
        assert_eq!(found.is_some(), id % 2 == 0, "{id}");
    }
    // What was kept from the batch follows its tags.
    b.invalidate_tag(0_u64).await.unwrap();
    eventually("the rest is dead too", || async {
        let found = ours.get_many(0..10_u64).await.unwrap();
        found.iter().flatten().count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_reads_around_what_is_not_ours_and_refuses_what_cannot_be_sent() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    reports
        .put_many([(1_u64, report(1)), (3, report(3))])
        .await
        .unwrap();
    let mut admin = admin(&sandbox).await;
    let key = format!("{}e:report:2", cache.config().prefix());
    let () = redis::cmd("LPUSH")
        .arg(&key)
        .arg("x")
        .query_async(&mut admin)
        .await
        .unwrap();
    let found = reports.get_many(1..=3_u64).await.unwrap();
    assert!(found[0].is_some() && found[1].is_none() && found[2].is_some());

    let texts = cache.region::<String>("text").max_value_bytes(10);
    let texts = texts.build().unwrap();
    let error = texts
        .put_many([("1", "short".to_owned()), ("2", "much too long".to_owned())])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(texts.get("1").await.unwrap(), None, "nothing is half done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_during_an_outage_is_answered_from_memory_or_refused() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    reports
        .put_many((0..10_u64).map(|id| (id, report(id))))
        .await
        .unwrap();
    // The news of a write takes an entry out of memory again.
    has_heard(&cache, &place::cache(&sandbox).await).await;
    eventually("process memory serves all of them", || async {
        let before = reads_sent(&cache);
        let found = reports.get_many(0..10_u64).await.unwrap();
        assert!(found.iter().all(Option::is_some));
        reads_sent(&cache) == before
    })
    .await;
    sandbox.cache_link().cut().await.unwrap();
    eventually("the loss is noticed", || async {
        reports.get(99_u64).await.is_err()
    })
    .await;
    let found = reports.get_many(0..10_u64).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 10);
    assert!(reports.get_many(0..11_u64).await.is_err());
    assert_eq!(
        reports.remove_many([1_u64, 2]).await.unwrap(),
        Outcome::Deferred
    );
    sandbox.cache_link().restore().await.unwrap();
    eventually("the removals are sent", || async {
        metric(&cache, "maestro_cache_deferred_invalidations") < 1.0
    })
    .await;
    let found = reports.get_many(0..10_u64).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_loads_what_is_missing_within_its_bound_and_tells_how_far_it_is() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = region(&cache);
    reports
        .put_many((0..40_u64).map(|id| (id, report(id))))
        .await
        .unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let load = move |id: String| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&seen));
        async move {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            match id.parse() {
                Ok(99) => Err(std::io::Error::other("origin refuses")),
                Ok(id) => Ok(report(id)),
                Err(_) => Err(std::io::Error::other("no number")),
            }
        }
    };
    let mut told = Vec::new();
    let warmed = reports
        .warm((0..100_u64).map(|id| id.to_string()))
        .at_a_time(4)
        .progress(|so_far| told.push(so_far.done()))
        .run(load)
        .await;
    assert_eq!(
        (warmed.present, warmed.loaded, warmed.failed, warmed.total),
        (40, 59, 1, 100)
    );
    assert_eq!(told, (1..=100).collect::<Vec<_>>());
    assert!(most.load(Ordering::SeqCst) <= 4);
    eventually("what was loaded is stored", || async {
        let found = reports.get_many(0..100_u64).await.unwrap();
        found.iter().flatten().count() == 99
    })
    .await;
}
