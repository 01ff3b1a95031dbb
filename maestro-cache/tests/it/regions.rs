//! Regions: reading, writing, loading, invalidating.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use maestro_cache::{ErrorKind, Outcome};

use crate::place::{Report, cache, report, sandbox};

#[tokio::test(flavor = "multi_thread")]
async fn a_value_put_by_one_process_is_read_by_another() {
    let sandbox = sandbox().await;
    let (a, b) = (cache(&sandbox).await, cache(&sandbox).await);
    let a = a.region::<Report>("report").build().unwrap();
    let b = b.region::<Report>("report").build().unwrap();
    assert_eq!(b.get(7_u64).await.unwrap(), None);
    let outcome = a.put(7_u64, report(7)).await.unwrap();
    assert_eq!(outcome, Outcome::Acknowledged);
    assert_eq!(b.get(7_u64).await.unwrap().as_deref(), Some(&report(7)));
    a.remove(7_u64).await.unwrap();
    assert_eq!(a.get(7_u64).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_runs_once_for_ten_thousand_callers_of_a_cold_key() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let reports = cache.region::<Report>("report").build().unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let (reports, loads) = (reports.clone(), Arc::clone(&loads));
        callers.spawn(async move {
            let load = move || async move {
                loads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok::<_, std::io::Error>(report(1))
            };
            reports.entry(1_u64).get_or_load(load).await
        });
    }
    while let Some(read) = callers.join_next().await {
        assert_eq!(*read.unwrap().unwrap(), report(1));
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_type_under_a_regions_name_is_refused() {
    let sandbox = sandbox().await;
    let cache = cache(&sandbox).await;
    let _reports = cache.region::<Report>("report").build().unwrap();
    let error = cache.region::<u64>("report").build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("Report"), "{error}");
}
