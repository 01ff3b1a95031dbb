//! What an operator sees: one trace over everything, and metrics that a real Prometheus takes.

use std::collections::HashMap;
use std::process::Stdio;

use anyhow::{Context, Result};
use maestro_testkit::{Stack, tied};
use maestro_tests::{Collector, Platform, Span, free_address, http, until};
use serde_json::json;
use tokio::process::Command;

use crate::{BOOT, LADDER, SETTLE, STOP, binaries};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::too_many_lines,
    reason = "one story from the client to the last effect"
)]
async fn one_trace_crosses_http_sql_outbox_broker_worker_sql_and_redis() -> Result<()> {
    let collector = Collector::start().await?;
    let stack = Stack::start().await?;
    let settings = [LADDER, ("MAESTRO_TRACING_ENDPOINT", collector.endpoint())];
    let mut platform = Platform::start(&stack, &binaries(), &settings).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;

    let answer = http()
        .post(platform.fabric.url("/runs"))
        .header("traceparent", format!("00-{TRACE}-{CLIENT}-01"))
        .header("x-correlation-id", "order-17")
        .json(&json!({"project": "demo", "suite": "smoke"}))
        .send()
        .await?;
    assert_eq!(
        answer
            .headers()
            .get("x-correlation-id")
            .context("no correlation id")?,
        "order-17"
    );
    let run: serde_json::Value = answer.json().await?;
    platform
        .completed(run["id"].as_str().context("no id")?, SETTLE)
        .await?;
    // Stopping flushes what the exporters still hold.
    tokio::try_join!(
        platform.fabric.terminate(STOP),
        platform.conductor.terminate(STOP)
    )?;

    let spans = collector.of_trace(TRACE);
    let by_id: HashMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let orphans: Vec<_> = spans
        .iter()
        .filter(|span| span.parent != CLIENT && !by_id.contains_key(span.parent.as_str()))
        .collect();
    assert!(
        orphans.is_empty(),
        "spans whose parent never arrived: {orphans:#?}"
    );

    // The way back from the last effect (the cache of the first service) to the client.
    let is = |span: &Span, service: &str, key: &str, value: &str| {
        span.service == service && span.attributes.get(key).is_some_and(|found| found == value)
    };
    let ancestry = |span: &Span| {
        let mut line = vec![span.id.clone()];
        let mut at = span;
        while let Some(parent) = by_id.get(at.parent.as_str()) {
            line.push(parent.id.clone());
            at = parent;
        }
        line.push(at.parent.clone());
        line
    };
    let redis = spans
        .iter()
        .filter(|span| is(span, "quality-fabric", "db.system.name", "redis"))
        .max_by_key(|span| ancestry(span).len())
        .with_context(|| format!("no span of the cache: {spans:#?}"))?;
    let line = ancestry(redis);
    assert_eq!(
        line.last().map(String::as_str),
        Some(CLIENT),
        "the line ends at the client: {line:?}"
    );
    let path: Vec<&Span> = line
        .iter()
        .rev()
        .filter_map(|id| by_id.get(id.as_str()).copied())
        .collect();
    let services: Vec<&str> = path.iter().map(|span| span.service.as_str()).collect();
    let mut hops = services.clone();
    hops.dedup();
    assert_eq!(
        hops,
        ["quality-fabric", "conductor", "quality-fabric"],
        "{path:#?}"
    );
    for (service, key, value) in [
        ("quality-fabric", "http.route", "/runs"),
        ("conductor", "messaging.system", "rabbitmq"),
        ("quality-fabric", "messaging.system", "rabbitmq"),
    ] {
        assert!(
            path.iter().any(|span| is(span, service, key, value)),
            "no {key}={value} of {service} on the way: {path:#?}"
        );
    }
    for service in ["quality-fabric", "conductor"] {
        assert!(
            spans
                .iter()
                .any(|span| is(span, service, "db.system.name", "postgresql")),
            "no SQL span of {service}: {spans:#?}"
        );
    }
    for operation in ["send", "process", "settle"] {
        assert!(
            spans
                .iter()
                .any(|span| is(span, "conductor", "messaging.operation.type", operation)),
            "no span of a {operation} of conductor: {spans:#?}"
        );
    }
    // The correlation id is on the log lines of both processes.
    for process in [&platform.fabric, &platform.conductor] {
        assert!(
            process.log()?.contains("order-17"),
            "{} does not log the correlation id",
            process.name()
        );
    }
    eprintln!(
        "one trace: {} spans, {} on the way: {:?}",
        spans.len(),
        path.len(),
        path.iter().map(|span| &span.name).collect::<Vec<_>>()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_scrapes_both_services_without_a_warning() -> Result<()> {
    let stack = Stack::start().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    let id = platform.submit("smoke").await?;
    platform.completed(&id, SETTLE).await?;

    for service in [&platform.fabric, &platform.conductor] {
        let text = service.text("/metrics").await?;
        assert_clean(&text)
            .await
            .with_context(|| format!("{}:\n{text}", service.name()))?;
    }

    let home =
        std::env::temp_dir().join(format!("maestro-prometheus-{}", platform.fabric_box.id()));
    std::fs::create_dir_all(&home)?;
    let targets = [platform.fabric.address(), platform.conductor.address()];
    let config = format!(
        "global: {{scrape_interval: 5s, scrape_timeout: 5s}}\nscrape_configs:\n- job_name: maestro\n  honor_labels: true\n  static_configs:\n  - targets: [\"{}\", \"{}\"]\n",
        targets[0], targets[1]
    );
    std::fs::write(home.join("prometheus.yml"), config)?;
    let listen = free_address()?;
    let log = std::fs::File::create(home.join("log"))?;
    let mut prometheus = Command::from(tied("prometheus"))
        .arg(format!(
            "--config.file={}",
            home.join("prometheus.yml").display()
        ))
        .arg(format!(
            "--storage.tsdb.path={}",
            home.join("data").display()
        ))
        .arg(format!("--web.listen-address={listen}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("starting prometheus (Debian package `prometheus`)")?;
    let client = http();
    let query = format!(
        "http://{listen}/api/v1/query?query=count%20by%20(service)%20(http_server_request_duration_seconds_count)"
    );
    let ask = async |url: &str| -> Option<serde_json::Value> {
        // While it starts, Prometheus answers in plain words.
        client.get(url).send().await.ok()?.json().await.ok()
    };
    until(SETTLE, "both services in Prometheus", async || {
        let found = ask(&query).await;
        let found = found.and_then(|body| body["data"]["result"].as_array().map(Vec::len));
        Ok((found == Some(2)).then_some(()))
    })
    .await?;
    // A scrape that a busy machine was too slow for is followed by another; what is malformed stays so.
    let targets = format!("http://{listen}/api/v1/targets");
    until(SETTLE, "both targets up without an error", async || {
        let body = ask(&targets).await.unwrap_or_default();
        let all = body["data"]["activeTargets"].as_array();
        let well =
            |target: &serde_json::Value| target["health"] == "up" && target["lastError"] == "";
        Ok(all
            .is_some_and(|all| all.len() == 2 && all.iter().all(well))
            .then_some(()))
    })
    .await?;
    prometheus.kill().await?;
    let log = std::fs::read_to_string(home.join("log"))?;
    let complaints: Vec<_> = log
        .lines()
        .filter(|line| line.contains("level=warn") || line.contains("level=error"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    std::fs::remove_dir_all(&home)?;
    Ok(())
}

/// `promtool check metrics` finds nothing to complain about.
async fn assert_clean(text: &str) -> Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting promtool (Debian package `prometheus`)")?;
    promtool
        .stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())
        .await?;
    let output = promtool.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success() && said.trim().is_empty(),
        "promtool: {said}"
    );
    Ok(())
}
