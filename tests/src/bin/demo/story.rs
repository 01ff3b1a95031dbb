//! The story itself, step by step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use maestro_messaging::Filter;
use maestro_testkit::Stack;
use maestro_tests::{Binaries, Collector, POLL, Platform, canary, http, percentile, until};
use reqwest::StatusCode;
use serde_json::json;
use url::Url;

use crate::report::{Report, seconds};

/// Longest wait for a service to become ready on servers that run, on a busy machine.
const BOOT: Duration = Duration::from_mins(3);
/// Longest wait for something that normally takes milliseconds, or the retry ladder's seconds.
const SETTLE: Duration = Duration::from_mins(2);
/// Longest wait for work to finish after a server came back.
const RECOVER: Duration = Duration::from_mins(3);
/// Longest wait for a service to stop. Its own deadline is 30 s, and its exit code says whether it was
/// kept.
const STOP: Duration = Duration::from_mins(1);
/// How long a killed server stays away, and how long the services are watched afterwards.
const OUTAGE: Duration = Duration::from_secs(2);
/// Tasks reading at once while Redis is killed.
const READERS: usize = 8;
/// Reads at least: so many that one moment in which the machine did something else is not one in a
/// hundred of them.
const READS: usize = 3_000;
/// Longest wait of one reader, longer than every deadline of the service.
const PATIENCE: Duration = Duration::from_mins(1);
/// Runs submitted while the broker is killed.
const RUNS: usize = 300;
/// Delays of the retry ladder, short enough to watch.
const LADDER: (&str, &str) = ("MAESTRO_MESSAGING_RETRY_DELAYS", "500ms,1s,2s");

/// Tells the story; true when everything held.
pub(crate) async fn tell(keep: bool) -> Result<bool> {
    let mut report = Report::new();
    report.step("PostgreSQL, Redis and RabbitMQ of its own");
    let started = Instant::now();
    let stack = Stack::dedicated().await.context("starting the servers")?;
    for server in [stack.postgres()?, stack.redis()?, stack.rabbitmq()?] {
        report.note(format!(
            "{} {} at {}",
            server.service(),
            server.version(),
            server.authority()
        ));
    }
    report.note(format!("all up after {}", seconds(started.elapsed())));

    report.step(
        "Databases, users, key prefixes and permissions for two services, which start as processes",
    );
    let collector = Collector::start().await?;
    let settings = [LADDER, ("MAESTRO_TRACING_ENDPOINT", collector.endpoint())];
    let places = Platform::provision(&stack).await?.with_canaries()?;
    let mut platform = places.start(&binaries()?, &settings)?;
    let (fabric, conductor) = platform.healthy(BOOT).await?;
    report.check(
        true,
        format!(
            "quality-fabric is healthy after {}, conductor after {}",
            seconds(fabric),
            seconds(conductor)
        ),
    );

    let story = Story {
        stack: &stack,
        platform: &platform,
    };
    let told = story.play(&mut report).await;
    if let Err(error) = &told {
        report.check(false, format!("the story went on: {error:#}"));
    }
    if keep {
        linger(&platform, &report).await?;
    }
    close(&stack, &mut platform, &collector, &mut report).await?;
    Ok(report.verdict())
}

struct Story<'a> {
    stack: &'a Stack,
    platform: &'a Platform,
}

impl Story<'_> {
    async fn play(&self, report: &mut Report) -> Result<()> {
        self.success(report).await?;
        self.retry(report).await?;
        self.poison(report).await?;
        self.redis_dies(report).await?;
        self.broker_dies(report).await?;
        self.postgres_dies(report).await
    }

    async fn success(&self, report: &mut Report) -> Result<()> {
        report.step("A run succeeds: HTTP, PostgreSQL, outbox, RabbitMQ, conductor, and back");
        self.platform.define("smoke", 0).await?;
        let started = Instant::now();
        let id = self.platform.submit("smoke").await?;
        let run = self.platform.completed(&id, SETTLE).await?;
        report.check(
            run["score"]
                .as_i64()
                .is_some_and(|score| (60..=100).contains(&score)),
            format!(
                "completed with score {} after {}",
                run["score"],
                seconds(started.elapsed())
            ),
        );
        let (status, _) = self
            .platform
            .fabric
            .get("/runs/00000000-0000-7000-8000-000000000000")
            .await?;
        report.check(
            status == StatusCode::NOT_FOUND,
            "a run that does not exist answers 404",
        );
        Ok(())
    }

    async fn retry(&self, report: &mut Report) -> Result<()> {
        report.step("A run fails twice, is retried over the ladder, then succeeds");
        self.platform.define("flaky", 2).await?;
        let started = Instant::now();
        let id = self.platform.submit("flaky").await?;
        self.platform.completed(&id, SETTLE).await?;
        let (_, execution) = self
            .platform
            .conductor
            .get(&format!("/executions/{id}"))
            .await?;
        report.check(
            execution["attempts"] == 3,
            format!(
                "completed at attempt {} after {}",
                execution["attempts"],
                seconds(started.elapsed())
            ),
        );
        Ok(())
    }

    async fn poison(&self, report: &mut Report) -> Result<()> {
        report.step("A run of an unknown suite is parked in the dead-letter queue; replayed once it is known");
        let id = self.platform.submit("unknown").await?;
        let operator = self.platform.operator().await?;
        let letters = operator.dead_letters("runs");
        let parked = until(SETTLE, "the dead letter", async || {
            Ok(letters.list(10).await?.into_iter().next())
        })
        .await?;
        let reason = parked.error_message.unwrap_or_default();
        report.check(
            reason.contains("there is no suite"),
            format!("parked with its reason: {reason}"),
        );
        self.platform.define("unknown", 0).await?;
        // The broker takes a moment to put back what was only looked at.
        let taken = until(SETTLE, "the dead letter again", async || {
            let replay = letters.replay(Filter::all()).await?;
            Ok((replay.taken > 0).then_some(replay.taken))
        })
        .await?;
        report.check(taken == 1, format!("{taken} message replayed"));
        let run = self.platform.completed(&id, SETTLE).await?;
        report.check(run["state"] == "completed", "the replayed run completed");
        until(SETTLE, "an empty dead-letter queue", async || {
            Ok((letters.count().await? == 0).then_some(()))
        })
        .await?;
        report.check(true, "0 messages left in the dead-letter queue");
        operator.close().await;
        Ok(())
    }

    async fn redis_dies(&self, report: &mut Report) -> Result<()> {
        report.step("Redis is killed (SIGKILL) and comes back while a run is read");
        let id = self.platform.submit("smoke").await?;
        self.platform.completed(&id, SETTLE).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicUsize::new(0));
        let url = self.platform.fabric.url(&format!("/runs/{id}"));
        let readers: Vec<_> = (0..READERS)
            .map(|_| tokio::spawn(read(url.clone(), stop.clone(), reads.clone())))
            .collect();
        let redis = self.stack.redis()?;
        tokio::time::sleep(OUTAGE / 2).await;
        redis.kill().await?;
        tokio::time::sleep(OUTAGE).await;
        redis.start().await?;
        tokio::time::sleep(OUTAGE).await;
        until(SETTLE, "enough reads", async || {
            Ok((reads.load(Ordering::Relaxed) >= READS).then_some(()))
        })
        .await?;
        stop.store(true, Ordering::Relaxed);
        let (mut took, mut failed) = (Vec::new(), 0_u32);
        for reader in readers {
            let (times, failures) = reader.await?;
            took.extend(times);
            failed += failures;
        }
        report.check(
            failed == 0 && !took.is_empty(),
            format!("{} reads, {failed} failed", took.len()),
        );
        let p99 = percentile(&mut took, 99);
        report.check(
            p99 < Duration::from_secs(1),
            format!("p99 of the reads {}", seconds(p99)),
        );
        self.healthy_again(report).await
    }

    /// Waits until both services say that everything is healthy again.
    async fn healthy_again(&self, report: &mut Report) -> Result<()> {
        let started = Instant::now();
        for service in [&self.platform.fabric, &self.platform.conductor] {
            let healthy = async || {
                let (_, health) = service.get("/health").await?;
                Ok((health["status"] == "healthy").then_some(()))
            };
            until(RECOVER, &format!("health of {}", service.name()), healthy).await?;
        }
        report.check(
            true,
            format!(
                "both services healthy again after {}",
                seconds(started.elapsed())
            ),
        );
        Ok(())
    }

    async fn broker_dies(&self, report: &mut Report) -> Result<()> {
        report.step(&format!(
            "RabbitMQ is killed (SIGKILL) and comes back while {RUNS} runs are submitted"
        ));
        let started = Instant::now();
        let submitting = async {
            let mut ids = Vec::new();
            for _ in 0..RUNS {
                ids.push(self.platform.submit("smoke").await?);
            }
            anyhow::Ok(ids)
        };
        let breaking = async {
            let broker = self.stack.rabbitmq()?;
            broker.kill().await?;
            broker.start().await?;
            anyhow::Ok(())
        };
        let (ids, ()) = tokio::try_join!(submitting, breaking)?;
        report.note(format!(
            "all submitted and the broker back after {}",
            seconds(started.elapsed())
        ));
        let mut executed = 0;
        for id in &ids {
            self.platform.completed(id, RECOVER).await?;
            let (status, _) = self
                .platform
                .conductor
                .get(&format!("/executions/{id}"))
                .await?;
            executed += usize::from(status == StatusCode::OK);
        }
        // `executions` has the run as its primary key and is written in the inbox's transaction: a
        // second execution would have failed and be in the dead-letter queue.
        let operator = self.platform.operator().await?;
        let dead = operator.dead_letters("runs").count().await?;
        operator.close().await;
        report.check(
            executed == RUNS && dead == 0,
            format!(
                "{executed} of {RUNS} runs completed, {dead} dead letters, after {}",
                seconds(started.elapsed())
            ),
        );
        self.healthy_again(report).await
    }

    async fn postgres_dies(&self, report: &mut Report) -> Result<()> {
        report.step("PostgreSQL is killed (SIGKILL) and comes back");
        let postgres = self.stack.postgres()?;
        postgres.kill().await?;
        let asked = Instant::now();
        let (status, body) = self
            .platform
            .fabric
            .post("/runs", &json!({"project": "demo", "suite": "smoke"}))
            .await?;
        report.check(
            status == StatusCode::SERVICE_UNAVAILABLE && body["detail"].is_string(),
            format!(
                "a submission meanwhile: {status} after {}, {}",
                seconds(asked.elapsed()),
                body["detail"]
            ),
        );
        postgres.start().await?;
        let back = Instant::now();
        let submit = async || Ok(self.platform.submit("smoke").await.ok());
        let id = until(SETTLE, "a submission after the restart", submit).await?;
        let recovered = back.elapsed();
        report.check(
            recovered < Duration::from_secs(5),
            format!("a submission works {} after its return", seconds(recovered)),
        );
        self.platform.completed(&id, RECOVER).await?;
        report.check(true, "and its run completed");
        self.healthy_again(report).await
    }
}

/// Stops both services and looks for their secrets in everything they showed.
async fn close(
    stack: &Stack,
    platform: &mut Platform,
    collector: &Collector,
    report: &mut Report,
) -> Result<()> {
    let mut shown =
        platform.fabric.text("/metrics").await? + &platform.conductor.text("/metrics").await?;
    report.step("Both services are asked to stop (SIGTERM)");
    for service in [&mut platform.fabric, &mut platform.conductor] {
        let (code, took) = service.terminate(STOP).await?;
        report.check(
            code == Some(0),
            format!(
                "{} ended with exit code {code:?} after {}",
                service.name(),
                seconds(took)
            ),
        );
    }
    report.check(
        collector.spans() > 0,
        format!("{} spans arrived at the collector", collector.spans()),
    );
    report.step("No secret was shown");
    for service in [&platform.fabric, &platform.conductor] {
        shown += &service.log()?;
        shown += &service.refusals();
    }
    shown += &collector.wire();
    shown += report.printed();
    let mut secrets = platform.secrets()?;
    for server in [stack.postgres()?, stack.redis()?, stack.rabbitmq()?] {
        let url = Url::parse(server.admin_url().expose())?;
        // PostgreSQL of this machine lets its administrator in without one.
        if let Some(password) = url.password() {
            let whose = format!("the administrator of {}", server.service());
            secrets.push((whose, password.to_owned()));
        }
    }
    let leaked = canary::leaks(&secrets, &shown);
    report.check(
        leaked.is_empty() && !shown.is_empty(),
        format!(
            "{} of {} secrets in {} KiB of logs, metrics, traces, error responses and this output",
            leaked.len(),
            secrets.len(),
            shown.len() / 1024
        ),
    );
    if !report.holds() {
        let kept = std::env::temp_dir().join(format!("maestro-demo-{}.log", std::process::id()));
        std::fs::write(&kept, platform.fabric.log()? + &platform.conductor.log()?)?;
        report.note(format!("the services' logs: {}", kept.display()));
    }
    Ok(())
}

/// Leaves everything running until Ctrl-C, and says where.
async fn linger(platform: &Platform, report: &Report) -> Result<()> {
    report.verdict();
    println!("\nLeft running until Ctrl-C:");
    for (service, try_this) in [
        (&platform.fabric, "/metrics"),
        (&platform.conductor, "/health"),
    ] {
        println!(
            "  {:<15} {}   (try {})",
            service.name(),
            service.url("/"),
            service.url(try_this)
        );
    }
    println!(
        "  curl -X POST {} -H 'content-type: application/json' -d '{{\"project\":\"demo\",\"suite\":\"smoke\"}}'",
        platform.fabric.url("/runs")
    );
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// Reads one URL until told to stop; the times, and how many reads failed.
async fn read(url: String, stop: Arc<AtomicBool>, reads: Arc<AtomicUsize>) -> (Vec<Duration>, u32) {
    let client = http();
    let (mut took, mut failed) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let answer = client.get(&url).timeout(PATIENCE).send().await;
        failed += u32::from(!answer.is_ok_and(|answer| answer.status() == StatusCode::OK));
        took.push(started.elapsed());
        reads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(POLL / 5).await;
    }
    (took, failed)
}

/// The services' programs, which `cargo xtask demo` builds beside this one.
fn binaries() -> Result<Binaries> {
    let here = std::env::current_exe()?;
    let beside = |name: &str| {
        let path = here.with_file_name(name);
        anyhow::ensure!(
            path.exists(),
            "{} is not built: run `cargo xtask demo`",
            path.display()
        );
        Ok(path)
    };
    Ok(Binaries {
        fabric: beside("quality-fabric")?,
        conductor: beside("conductor")?,
    })
}
