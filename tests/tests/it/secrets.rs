//! A canary in every secret variable, looked for in everything the services show.

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::{Collector, Platform, canary};
use reqwest::StatusCode;
use serde_json::json;

use crate::{BOOT, LADDER, SETTLE, STOP, binaries};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_appears_in_logs_metrics_traces_health_or_error_responses() -> Result<()> {
    let stack = Stack::start().await?;
    let collector = Collector::start().await?;
    let settings = [
        LADDER,
        ("MAESTRO_LOG_LEVEL", "trace"),
        ("MAESTRO_TRACING_ENDPOINT", collector.endpoint()),
    ];
    let places = Platform::provision(&stack).await?.with_canaries()?;
    let mut platform = places.start(&binaries(), &settings)?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let id = platform.submit("smoke").await?;
    platform.completed(&id, SETTLE).await?;
    platform.submit("unknown").await?;

    let mut shown = String::new();
    for service in [&platform.fabric, &platform.conductor] {
        for path in [
            "/metrics",
            "/health",
            "/health/ready",
            "/health/live",
            "/health/startup",
        ] {
            shown += &service.text(path).await?;
        }
    }
    // Errors of every dependency, seen by a caller and in the logs.
    for link in [
        platform.fabric_box.postgres_link(),
        platform.fabric_box.cache_link(),
        platform.fabric_box.messaging_link(),
    ] {
        link.cut().await?;
    }
    let (status, body) = platform
        .fabric
        .post("/runs", &json!({"project": "demo", "suite": "smoke"}))
        .await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    shown += &body.to_string();
    shown += &platform.fabric.text("/health").await?;
    tokio::try_join!(
        platform.fabric.terminate(STOP),
        platform.conductor.terminate(STOP)
    )?;
    shown += &platform.fabric.log()?;
    shown += &platform.conductor.log()?;
    shown += &platform.fabric.refusals();
    assert!(collector.spans() > 0, "no span arrived");
    shown += &collector.wire();

    assert!(
        shown.len() > 100_000,
        "trace logs are long; these are {} bytes",
        shown.len()
    );
    let leaked = canary::leaks(&platform.secrets()?, &shown);
    assert!(leaked.is_empty(), "shown: the secrets of {leaked:?}");
    Ok(())
}
