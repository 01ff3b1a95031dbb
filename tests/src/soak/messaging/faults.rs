//! What happens to the broker and to the replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use maestro_testkit::{Origin, Sandbox, Server, Stack};
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::World;
use super::replica::{CONFLICTED, DELETED, Replica};

const FAULTS: [&str; 11] = [
    "killed",
    "paused",
    "cut",
    "reset",
    "blackhole",
    "answers lost",
    "slow",
    "queue deleted",
    "other arguments",
    "memory alarm",
    "replica killed",
];

/// Causes faults as long as the plan says; how many of each. Everything works again afterwards.
pub(super) async fn cause(
    world: &Arc<World>,
    stack: &Stack,
    sandbox: &Sandbox,
    replicas: &mut [Replica],
) -> Result<BTreeMap<&'static str, u32>> {
    let mut dice = world.plan.dice(u64::MAX);
    let broker = stack.rabbitmq()?;
    let link = sandbox.messaging_link();
    let mut caused = BTreeMap::new();
    // Not from the start of the campaign: a machine that is slow to start servers has as many faults.
    let end = Instant::now() + world.plan.length;
    while Instant::now() < end {
        sleep(Duration::from_millis(dice.u64(300..2_500))).await;
        let fault = FAULTS[dice.usize(0..FAULTS.len())];
        let long = Duration::from_millis(dice.u64(200..8_000));
        world.plan.step(format!("{fault} ({long:?})"));
        *caused.entry(fault).or_default() += 1;
        match fault {
            "killed" => {
                broker.kill().await?;
                sleep(long / 4).await;
                broker.start().await?;
                put_right(world, &broker).await?;
            }
            "paused" => {
                broker.pause().await?;
                sleep(long * 2).await;
                broker.resume().await?;
            }
            "cut" => {
                link.cut().await?;
                sleep(long / 2).await;
                link.restore().await?;
            }
            "reset" => link.reset().await?,
            "blackhole" => {
                link.blackhole().await?;
                sleep(long).await;
                link.restore().await?;
            }
            "answers lost" => {
                link.blackhole_replies().await?;
                sleep(long).await;
                // What was held back is lost with the connections.
                link.reset().await?;
                link.restore().await?;
            }
            "slow" => {
                link.delay(long / 40).await?;
                sleep(long / 2).await;
                link.restore().await?;
            }
            "queue deleted" => {
                queue(world, &broker, Method::DELETE, DELETED, None).await?;
            }
            "other arguments" => {
                queue(world, &broker, Method::DELETE, CONFLICTED, None).await?;
                let other = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-max-length": 7}});
                // The consumer may have been faster; then its own queue stays.
                queue(world, &broker, Method::PUT, CONFLICTED, Some(other)).await?;
                sleep(long / 2).await;
                queue(world, &broker, Method::DELETE, CONFLICTED, None).await?;
            }
            "memory alarm" => {
                set_memory_limit(&broker, "0.0000001").await?;
                sleep(long / 2).await;
                set_memory_limit(&broker, "0.9").await?;
            }
            _ => {
                let index = dice.usize(0..replicas.len());
                let next = Replica::start(world)?;
                let victim = std::mem::replace(&mut replicas[index], next);
                victim.kill().await?;
            }
        }
    }
    put_right(world, &broker).await?;
    Ok(caused)
}

/// What an operator looks after when a broker was killed while he deleted a queue. The queue can be there
/// again, as it was deleted, because a broker writes with a delay what exists; its consumer says that it
/// has other arguments. Or it is there without a process: then no event that goes to it is ever
/// confirmed, and its consumer says that the broker fails over it.
async fn put_right(world: &World, broker: &Server) -> Result<()> {
    for name in [DELETED, CONFLICTED] {
        let found = look(world, broker, name).await?;
        let state = found.pointer("/state").and_then(serde_json::Value::as_str);
        if found.pointer("/arguments/x-max-length").is_some() || state == Some("down") {
            world
                .plan
                .step(format!("{name} is back, {}", state.unwrap_or("?")));
            queue(world, broker, Method::DELETE, name, None).await?;
        }
    }
    Ok(())
}

/// What the management API tells of a queue; nothing if there is none.
async fn look(world: &World, broker: &Server, name: &str) -> Result<serde_json::Value> {
    let request = request(world, broker, Method::GET, name)?;
    let minute = Duration::from_mins(1);
    crate::until(minute, "the management API's answer", async || {
        let again = request.try_clone().context("a request without a body")?;
        // A broker that has just come up does not answer at once.
        if let Ok(answer) = again.send().await {
            match answer.status().as_u16() {
                404 => return Ok(Some(json!({}))),
                200 => return Ok(Some(answer.json().await?)),
                _ => {}
            }
        }
        sleep(Duration::from_millis(500)).await;
        Ok(None)
    })
    .await
}

/// Tells what every queue is doing: for a campaign that does not settle.
pub(super) async fn tell_queues(world: &World, broker: &Server) -> Result<()> {
    let answer = ask(world, broker, Method::GET, "")?.send().await?;
    let queues: Vec<serde_json::Value> = answer.json().await?;
    for queue in queues {
        let of = |name: &str| queue.get(name).cloned().unwrap_or_default();
        world.plan.step(format!(
            "{}: {}, {} ready, {} unacknowledged, {} consumers",
            of("name"),
            of("state"),
            of("messages_ready"),
            of("messages_unacknowledged"),
            of("consumers"),
        ));
    }
    Ok(())
}

fn request(
    world: &World,
    broker: &Server,
    method: Method,
    name: &str,
) -> Result<reqwest::RequestBuilder> {
    ask(world, broker, method, &format!("/orders.{name}"))
}

/// A question to the management API about the queues of the service.
fn ask(
    world: &World,
    broker: &Server,
    method: Method,
    path: &str,
) -> Result<reqwest::RequestBuilder> {
    let url: url::Url = world.variable("MAESTRO_MESSAGING_URL")?.parse()?;
    let vhost = url.path().trim_start_matches('/').to_owned();
    let base = broker.management_url().context("no management API")?;
    let admin: url::Url = broker.admin_url().expose().parse()?;
    let url = format!("{base}/api/queues/{vhost}{path}");
    Ok(crate::http()
        .request(method, url)
        .basic_auth(admin.username(), admin.password())
        .timeout(Duration::from_secs(30)))
}

/// Deletes a queue of the service, or makes another one of its name.
async fn queue(
    world: &World,
    broker: &Server,
    method: Method,
    name: &str,
    body: Option<serde_json::Value>,
) -> Result<()> {
    let mut request = request(world, broker, method.clone(), name)?;
    if let Some(body) = body {
        request = request.json(&body);
    }
    // A quorum queue that has no leader at the moment cannot be deleted: an operator asks again.
    let done = crate::until(
        Duration::from_mins(1),
        "the operator's change",
        async || {
            let again = request
                .try_clone()
                .context("a body that cannot be sent twice")?;
            let answer = again.send().await?;
            let status = answer.status();
            // Not there, or there already with other arguments: somebody was faster.
            let good = match method {
                Method::DELETE => status.as_u16() == 404,
                _ => status.as_u16() == 400,
            };
            if good || status.is_success() {
                return Ok(Some(()));
            }
            world.plan.step(format!(
                "{method} of {name}: {status} {}",
                answer.text().await.unwrap_or_default()
            ));
            sleep(Duration::from_millis(500)).await;
            Ok(None)
        },
    );
    done.await
}

/// Sets the memory limit of the broker, as an operator would.
async fn set_memory_limit(broker: &Server, relative: &str) -> Result<()> {
    let authority = broker.authority();
    let port = authority.rsplit(':').next().unwrap_or_default();
    let mut command = match broker.origin() {
        Origin::Local => local(port)?,
        _ => in_container(port).await?,
    };
    command.args(["set_vm_memory_high_watermark", relative]);
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "rabbitmqctl: {output:?}");
    Ok(())
}

/// The command for a broker of this machine; its node and cookie are in its process' environment.
fn local(port: &str) -> Result<Command> {
    let wanted = format!("RABBITMQ_NODE_PORT={port}");
    let environment = std::fs::read_dir("/proc")?
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("environ")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .find(|environment| environment.split('\0').any(|pair| pair == wanted))
        .context("the broker's process is not there")?;
    let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
    command.env_clear().envs(
        environment
            .split('\0')
            .filter_map(|pair| pair.split_once('=')),
    );
    Ok(command)
}

async fn in_container(port: &str) -> Result<Command> {
    let filter = format!("publish={port}");
    let listed = Command::new("docker")
        .args(["ps", "-q", "--filter", &filter])
        .output()
        .await?;
    let id = String::from_utf8(listed.stdout)?;
    let mut command = Command::new("docker");
    command.args(["exec", id.trim(), "rabbitmqctl"]);
    Ok(command)
}
