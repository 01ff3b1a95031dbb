use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use maestro_metrics::{Criticality, HealthCheck, HealthRegistry, HealthStatus, Operations};
use tower::ServiceExt;

use crate::service::{Service, until};

async fn ask(app: &Router, path: &str) -> (StatusCode, serde_json::Value) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn the_endpoints_tell_alive_from_ready_and_started_and_well() {
    let service = Service::start(&[]);
    let health = HealthRegistry::new(&service.identity, &service.registry);
    let there = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&there);
    health.register(
        HealthCheck::new("postgres", Criticality::Critical, move || {
            let there = seen.load(Ordering::Relaxed);
            async move {
                if there {
                    HealthStatus::healthy()
                } else {
                    HealthStatus::unhealthy("connection refused")
                }
            }
        })
        .period(Duration::from_millis(20)),
    );
    health.register(HealthCheck::new(
        "redis",
        Criticality::Degrading,
        || async { HealthStatus::unhealthy("away") },
    ));
    let app: Router = Operations::new(&service.registry, &health)
        .health_path("/api/health")
        .router();
    assert_eq!(ask(&app, "/health/live").await.0, StatusCode::OK);
    assert_eq!(
        ask(&app, "/health/startup").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );

    health.start();
    health.started();
    until("the first answers", || {
        health
            .report()
            .checks
            .iter()
            .all(|check| check.status.is_some())
    })
    .await;
    let (status, body) = ask(&app, "/health/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["reasons"][0], "postgres: connection refused");
    let (status, body) = ask(&app, "/health").await;
    assert_eq!(
        (status, &body["status"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"unhealthy".into())
    );

    there.store(true, Ordering::Relaxed);
    health.until_ready().await;
    assert_eq!(ask(&app, "/health/ready").await.0, StatusCode::OK);
    assert_eq!(ask(&app, "/health/startup").await.0, StatusCode::OK);
    let (status, body) = ask(&app, "/api/health").await;
    assert_eq!(
        (status, &body["status"]),
        (StatusCode::OK, &"degraded".into())
    );
    assert_eq!(body["service"], "quality-fabric");
    assert_eq!(body["checks"][1]["reason"], "away");

    health.drain();
    assert_eq!(
        ask(&app, "/health/ready").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(ask(&app, "/health/live").await.0, StatusCode::OK);
    health.stop().await;
}

#[tokio::test]
async fn a_dependency_that_hangs_does_not_slow_the_endpoints() {
    let service = Service::start(&[]);
    let health = HealthRegistry::new(&service.identity, &service.registry);
    let hanging = HealthCheck::new("hangs", Criticality::Critical, std::future::pending)
        .timeout(Duration::from_mins(10));
    health.register(hanging);
    health.start();
    let app: Router = Operations::new(&service.registry, &health).router();
    let start = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(
            ask(&app, "/health/ready").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
    let took = start.elapsed();
    assert!(took < Duration::from_mins(1), "1,000 answers took {took:?}");
    // Ends also while a check hangs.
    tokio::time::timeout(Duration::from_secs(30), health.stop())
        .await
        .unwrap();
}
