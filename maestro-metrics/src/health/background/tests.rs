use std::sync::atomic::AtomicU8;

use maestro_config::Environment;

use super::*;
use crate::Criticality;

fn health() -> (HealthRegistry, Registry) {
    let identity: Identity = Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "orders"),
        ("MAESTRO_ENVIRONMENT", "test"),
    ])
    .read()
    .unwrap();
    let registry = Registry::detached();
    (HealthRegistry::new(&identity, &registry), registry)
}

/// A thing whose state the test sets: 0 healthy, 1 degraded, 2 unhealthy.
fn switch(name: &'static str, criticality: Criticality) -> (HealthCheck, Arc<AtomicU8>) {
    let state = Arc::new(AtomicU8::new(0));
    let seen = Arc::clone(&state);
    let check = HealthCheck::new(name, criticality, move || {
        let state = seen.load(Ordering::Relaxed);
        async move {
            match state {
                0 => HealthStatus::healthy(),
                1 => HealthStatus::degraded("slow \"disk\""),
                _ => HealthStatus::unhealthy("gone"),
            }
        }
    });
    (check, state)
}

async fn until(health: &HealthRegistry, what: impl Fn(&HealthReport) -> bool) {
    tokio::time::timeout(Duration::from_mins(1), async {
        while !what(&health.report()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{:?}", health.report()));
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_what_is_critical_and_only_that() {
    let (health, registry) = health();
    let (database, database_state) = switch("postgres", Criticality::Critical);
    let (cache, cache_state) = switch("redis", Criticality::Degrading);
    health.register(database);
    health.start();
    health.register(cache);
    until(&health, |report| {
        report.checks.iter().all(|check| check.status.is_some())
    })
    .await;
    assert!(
        !health.report().ready,
        "not ready before the service says it has started"
    );
    health.started();
    health.until_ready().await;

    cache_state.store(2, Ordering::Relaxed);
    until(&health, |report| report.state == HealthState::Degraded).await;
    assert!(health.report().ready);

    database_state.store(2, Ordering::Relaxed);
    until(&health, |report| !report.ready).await;
    assert_eq!(health.report().state, HealthState::Unhealthy);
    assert!(health.report().started, "what has started stays started");
    let text = registry.text();
    assert!(
        text.contains("maestro_health_state{check=\"postgres\",state=\"unhealthy\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("maestro_health_state{check=\"postgres\",state=\"healthy\"} 0"),
        "{text}"
    );

    database_state.store(0, Ordering::Relaxed);
    until(&health, |report| report.ready).await;
    health.drain();
    assert!(!health.report().ready);
    health.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_or_panics_holds_up_no_other() {
    let (health, _) = health();
    health.register(HealthCheck::new(
        "hangs",
        Criticality::Critical,
        std::future::pending,
    ));
    health.register(HealthCheck::new(
        "panics",
        Criticality::Degrading,
        || async { panic!("no such table") },
    ));
    let (good, _) = switch("good", Criticality::Critical);
    health.register(good);
    health.start();
    until(&health, |report| {
        report.checks.iter().all(|check| check.status.is_some())
    })
    .await;
    let report = health.report();
    let reason = |i: usize| {
        report.checks[i]
            .status
            .as_ref()
            .unwrap()
            .reason()
            .map(str::to_owned)
    };
    assert!(reason(0).unwrap().contains("no answer within"));
    assert!(reason(1).unwrap().contains("no such table"));
    assert_eq!(reason(2), None);
    health.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_check_of_the_same_name_takes_the_place_of_the_earlier_one() {
    let (health, _) = health();
    let (degrading, state) = switch("redis", Criticality::Degrading);
    state.store(2, Ordering::Relaxed);
    health.register(degrading);
    health.start();
    health.started();
    until(&health, |report| report.ready).await;
    let (critical, state) = switch("redis", Criticality::Critical);
    state.store(2, Ordering::Relaxed);
    health.register(critical);
    assert!(!health.report().ready, "it is critical now");
    state.store(0, Ordering::Relaxed);
    until(&health, |report| report.ready).await;
    // The earlier one is still unhealthy, and would have said so by now.
    tokio::time::sleep(Duration::from_mins(1)).await;
    let report = health.report();
    assert_eq!(report.checks.len(), 1);
    assert_eq!(report.state, HealthState::Healthy);
    health.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_valid_json_whatever_the_reasons_are() {
    let (health, _) = health();
    let (disk, state) = switch("disk \"c\\\"", Criticality::Critical);
    state.store(1, Ordering::Relaxed);
    health.register(disk);
    health.start();
    health.started();
    until(&health, |report| report.ready).await;
    let whole = health.answer(Probe::Whole);
    assert!(whole.good);
    let whole: serde_json::Value = serde_json::from_slice(&whole.body).unwrap();
    assert_eq!(whole["status"], "degraded");
    assert_eq!(whole["service"], "orders");
    assert_eq!(whole["checks"][0]["name"], "disk \"c\\\"");
    assert_eq!(whole["checks"][0]["reason"], "slow \"disk\"");
    let ready: serde_json::Value =
        serde_json::from_slice(&health.answer(Probe::Ready).body).unwrap();
    assert_eq!(ready["status"], "ready");
    health.stop().await;
}

#[tokio::test(start_paused = true)]
async fn checks_end_with_the_last_clone_of_the_registry() {
    let (health, _) = health();
    let (check, state) = switch("postgres", Criticality::Critical);
    health.register(check);
    health.start();
    until(&health, |report| report.checks[0].status.is_some()).await;
    drop(health);
    tokio::time::timeout(Duration::from_mins(1), async {
        while Arc::strong_count(&state) > 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the task is gone");
}
