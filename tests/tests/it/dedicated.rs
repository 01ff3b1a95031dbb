//! What happens to two services when a server of theirs is killed. Each test has servers of its own.

use std::time::{Duration, Instant};

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::{Load, Platform, until};
use reqwest::StatusCode;

use crate::{BOOT, LADDER, SETTLE, binaries};

/// How long a killed server stays away.
const OUTAGE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_started_before_any_server_become_ready_by_themselves() -> Result<()> {
    let stack = Stack::dedicated().await?;
    // Provisioned, then everything goes down before the services are started, the reader first.
    let mut platform = {
        let provisioned = Platform::provision(&stack).await?;
        let (one, two, three) = (stack.postgres()?, stack.redis()?, stack.rabbitmq()?);
        tokio::try_join!(one.stop(), two.stop(), three.stop())?;
        provisioned.start(&binaries(), &[LADDER])?
    };
    let alive = async || {
        Ok(matches!(
            platform.fabric.get("/health/live").await,
            Ok((StatusCode::OK, _))
        )
        .then_some(()))
    };
    until(BOOT, "a live service without any server", alive).await?;
    let (status, _) = platform.fabric.get("/health/ready").await?;
    assert_eq!(
        status,
        StatusCode::SERVICE_UNAVAILABLE,
        "not ready without a database"
    );

    let (one, two, three) = (stack.postgres()?, stack.redis()?, stack.rabbitmq()?);
    tokio::try_join!(one.start(), two.start(), three.start())?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let id = platform.submit("smoke").await?;
    let run = platform.completed(&id, SETTLE).await?;
    assert_eq!(run["state"], "completed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_redis_is_killed_and_comes_back() -> Result<()> {
    let stack = Stack::dedicated().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let id = platform.submit("smoke").await?;
    platform.completed(&id, SETTLE).await?;

    let load = Load::reading(16, &platform.fabric.url(&format!("/runs/{id}")));
    tokio::time::sleep(OUTAGE).await;
    stack.redis()?.kill().await?;
    tokio::time::sleep(OUTAGE).await;
    stack.redis()?.start().await?;
    tokio::time::sleep(OUTAGE).await;
    // So many that a moment in which the machine did something else is not one in a hundred of them.
    load.answered(4_000, SETTLE).await?;
    let mut outcome = load.stop().await;
    let p99 = outcome.p99();
    eprintln!("redis killed: {} reads, p99 {p99:?}", outcome.took.len());
    assert_eq!(outcome.refused, [], "refused");
    assert_eq!(outcome.broken, [] as [String; 0], "broken");
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_runs_survive_the_broker_killed_twice_each_with_one_effect() -> Result<()> {
    const RUNS: usize = 1_000;
    let stack = Stack::dedicated().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;

    let started = Instant::now();
    let broker = stack.rabbitmq()?;
    let breaking = async {
        for _ in 0..2 {
            tokio::time::sleep(OUTAGE / 2).await;
            broker.kill().await?;
            broker.start().await?;
        }
        anyhow::Ok(())
    };
    let submitting = async {
        let mut ids = Vec::with_capacity(RUNS);
        while ids.len() < RUNS {
            let batch = (0..20).map(|_| platform.submit("smoke"));
            ids.extend(futures_util::future::try_join_all(batch).await?);
        }
        anyhow::Ok(ids)
    };
    let (ids, ()) = tokio::try_join!(submitting, breaking)?;
    for id in &ids {
        platform.completed(id, SETTLE).await?;
    }
    let (status, executed) = platform.conductor.get("/executions").await?;
    let operator = platform.operator().await?;
    let dead = operator.dead_letters("runs").count().await?;
    operator.close().await;
    eprintln!(
        "broker killed twice: {RUNS} submitted, {executed} executed, {dead} dead, {:?}",
        started.elapsed()
    );
    assert_eq!(
        (status, executed["count"].as_u64()),
        (StatusCode::OK, Some(RUNS as u64))
    );
    assert_eq!(dead, 0, "dead letters");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_database_gives_clear_errors_and_is_used_again_once_it_is_back() -> Result<()> {
    let stack = Stack::dedicated().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let load = Load::submitting(8, &platform.fabric.url("/runs"), "smoke");
    tokio::time::sleep(OUTAGE).await;
    stack.postgres()?.kill().await?;
    tokio::time::sleep(OUTAGE).await;
    stack.postgres()?.start().await?;
    let back = Instant::now();
    until(SETTLE, "an accepted run", async || {
        Ok(platform.submit("smoke").await.ok())
    })
    .await?;
    let recovered = back.elapsed();
    let outcome = load.stop().await;
    eprintln!(
        "database killed: {} accepted, {} refused, works again after {recovered:?}",
        outcome.accepted.len(),
        outcome.refused.len()
    );
    assert_eq!(
        outcome.broken,
        [] as [String; 0],
        "every request is answered"
    );
    // An outage shorter than the acquire timeout is waited for; what is refused is refused clearly.
    for (status, body) in &outcome.refused {
        assert_eq!(*status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(body["detail"].is_string(), "{body}");
    }
    for id in &outcome.accepted {
        platform.completed(id, SETTLE).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_longer_than_the_ladder_dead_letters_nothing() -> Result<()> {
    let stack = Stack::dedicated().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let begun = Instant::now();
    let load = Load::submitting(2, &platform.fabric.url("/runs"), "smoke");
    // Accepted runs are executed meanwhile: messages are in flight in both services.
    let executed = async || {
        let (_, executed) = platform.conductor.get("/executions").await?;
        Ok((executed["count"].as_u64() >= Some(20)).then_some(()))
    };
    until(SETTLE, "twenty executed runs", executed).await?;
    let executing = begun.elapsed();
    stack.postgres()?.kill().await?;
    let killed = Instant::now();
    let refused = async || {
        let run = serde_json::json!({"project": "load", "suite": "smoke"});
        let (status, body) = platform.fabric.post("/runs", &run).await?;
        Ok((status != StatusCode::ACCEPTED).then_some((status, body)))
    };
    let (status, body) = until(SETTLE, "a refusal", refused).await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(body["detail"].is_string(), "{body}");
    let outcome = load.stop().await;
    // The ladder of 1.7 s is over several times, also for what was handed out last.
    tokio::time::sleep(Duration::from_secs(8)).await;
    stack.postgres()?.start().await?;
    let away = killed.elapsed();
    let mut missing = Vec::new();
    for id in &outcome.accepted {
        if missing.len() < 3 && platform.completed(id, SETTLE).await.is_err() {
            missing.push(id.as_str());
        }
    }
    let mut dead = Vec::new();
    for (service, subscription) in [
        (&platform.conductor_box, "runs"),
        (&platform.fabric_box, "results"),
    ] {
        let operator = Platform::operator_of(service).await?;
        let letters = operator.dead_letters(subscription).list(10).await?;
        dead.extend(letters.iter().map(|letter| format!("{letter:?}")));
        operator.close().await;
    }
    eprintln!(
        "twenty runs in {executing:?}; database away for {away:?}: {} accepted, {} refused, {} dead",
        outcome.accepted.len(),
        outcome.refused.len(),
        dead.len()
    );
    assert_eq!(dead, [] as [String; 0]);
    assert_eq!(missing, [] as [&str; 0], "accepted and never completed");
    assert_eq!(
        outcome.broken,
        [] as [String; 0],
        "every request is answered"
    );
    Ok(())
}
