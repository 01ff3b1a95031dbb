//! SIGTERM while requests and messages are in flight.

use std::time::Duration;

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::{Load, Platform, Process};

use crate::{BOOT, LADDER, SETTLE, STOP, binaries};

/// How long the load runs before the signal.
const WARM: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_resets_no_request_and_loses_no_message() -> Result<()> {
    let stack = Stack::start().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;

    let load = Load::submitting(32, &platform.fabric.url("/runs"), "smoke");
    tokio::time::sleep(WARM).await;
    // Both in the middle of it: the one takes requests, the other works through a full queue.
    let (fabric, conductor) = tokio::try_join!(
        platform.fabric.terminate(STOP),
        platform.conductor.terminate(STOP)
    )?;
    let outcome = load.stop().await;
    eprintln!(
        "drained: {} accepted; quality-fabric {fabric:?}, conductor {conductor:?}",
        outcome.accepted.len()
    );
    assert_eq!(
        outcome.broken,
        [] as [String; 0],
        "requests without an answer"
    );
    assert_eq!(outcome.refused, [], "refused");
    assert_eq!(
        (fabric.0, conductor.0),
        (Some(0), Some(0)),
        "{}\n{}",
        platform.fabric.log()?,
        platform.conductor.log()?
    );

    // Whatever was accepted is completed by the next instances.
    platform.restart(&binaries(), &[LADDER])?;
    platform.healthy(BOOT).await?;
    for id in &outcome.accepted {
        platform.completed(id, SETTLE).await?;
    }
    let operator = platform.operator().await?;
    assert_eq!(operator.dead_letters("runs").count().await?, 0);
    operator.close().await;
    Ok(())
}

#[tokio::test]
async fn a_wrong_environment_ends_the_process_with_every_problem_at_once() -> Result<()> {
    let logs = std::env::temp_dir();
    let wrong = [
        ("MAESTRO_ENVIRONMENT", "prod"),
        ("MAESTRO_POSTGRES_POOL_MAX", "many"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut process = Process::start("wrong-environment", &binaries().fabric, &wrong, &logs)?;
    let error = process
        .ready(BOOT)
        .await
        .expect_err("it must not start")
        .to_string();
    for name in [
        "MAESTRO_SERVICE_NAME",
        "MAESTRO_ENVIRONMENT",
        "MAESTRO_POSTGRES_URL",
        "MAESTRO_POSTGRES_POOL_MAX",
        "MAESTRO_CACHE_URL",
        "MAESTRO_MESSAGING_URL",
    ] {
        assert!(error.contains(name), "{name} is missing in: {error}");
    }
    std::fs::remove_file(logs.join("wrong-environment.log"))?;
    Ok(())
}
