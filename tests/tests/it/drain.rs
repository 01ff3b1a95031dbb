//! SIGTERM while requests and messages are in flight.

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::{Load, Platform, Process, until};
use reqwest::StatusCode;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::{BOOT, LADDER, SETTLE, STOP, binaries};

/// Requests at a time.
const CLIENTS: usize = 200;
/// So many requests wait for ten connections, on a machine that may be busy.
const QUEUE: (&str, &str) = ("MAESTRO_POSTGRES_ACQUIRE_TIMEOUT", "30s");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_two_hundred_requests_resets_none_and_loses_no_message() -> Result<()> {
    let stack = Stack::start().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER, QUEUE]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;

    let load = Load::submitting(CLIENTS, &platform.fabric.url("/runs"), "smoke");
    load.answered(2 * CLIENTS, SETTLE).await?;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_signal_begins_a_drain_and_the_next_one_ends_it_at_once() -> Result<()> {
    let stack = Stack::start().await?;
    // Longer than this test waits for anything.
    let long = [
        ("MAESTRO_SHUTDOWN_DELAY", "5m"),
        ("MAESTRO_SHUTDOWN_TIMEOUT", "10m"),
    ];
    let mut platform = Platform::start(&stack, &binaries(), &long).await?;
    platform.healthy(BOOT).await?;
    for (process, first, second, code) in [
        (&mut platform.fabric, Signal::INT, Signal::TERM, 128 + 15),
        (&mut platform.conductor, Signal::TERM, Signal::INT, 128 + 2),
    ] {
        process.signal(first)?;
        until(STOP, "a drain", async || {
            let (status, _) = process.get("/health/ready").await?;
            Ok((status == StatusCode::SERVICE_UNAVAILABLE).then_some(()))
        })
        .await?;
        process.signal(second)?;
        let (ended, _) = process.ended(STOP).await?;
        assert_eq!(ended, Some(code), "{}", process.log()?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_had_to_be_cut_off_is_in_the_log_and_in_the_exit_code() -> Result<()> {
    let stack = Stack::start().await?;
    let short = [("MAESTRO_SHUTDOWN_TIMEOUT", "2s")];
    let mut platform = Platform::start(&stack, &binaries(), &short).await?;
    platform.healthy(BOOT).await?;
    let fabric = &mut platform.fabric;
    let mut client = TcpStream::connect(fabric.address()).await?;
    // Its body never comes.
    let head = "POST /runs HTTP/1.1\r\nhost: fabric\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n";
    client.write_all(head.as_bytes()).await?;
    until(STOP, "the request", async || {
        let metrics = fabric.text("/metrics").await?;
        let mut active = metrics.lines().filter(|line| {
            line.starts_with("http_server_active_requests{")
                && line.contains("\"POST\"")
                && line.ends_with(" 1")
        });
        Ok(active.next().map(drop))
    })
    .await?;
    let (code, _) = fabric.terminate(STOP).await?;
    let log = fabric.log()?;
    assert_eq!(code, Some(1), "{log}");
    let left = "1 connections cut off with an unfinished request";
    assert!(log.contains(left), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_environment_ends_the_process_with_every_problem_at_once() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let wrong = [
        ("MAESTRO_ENVIRONMENT", "prod"),
        ("MAESTRO_POSTGRES_POOL_MAX", "many"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut process = Process::start("wrong-environment", &binaries().fabric, &wrong, logs.path())?;
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
    Ok(())
}
