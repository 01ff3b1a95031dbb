//! SIGTERM at random moments, under HTTP and message load, to one example service or to both.
//!
//! Every request has to be answered, every process has to end within its deadline and with the exit
//! code of what happened, and in the end every run that was accepted, and no other, was executed once
//! and is completed. The ledger is what clients were answered; it is compared with the databases over
//! connections of its own.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use maestro_testkit::{Sandbox, Stack};
use rustix::process::Signal;
use tokio_postgres::NoTls;
use url::Url;

use crate::load::{Load, Outcome};
use crate::platform::{Binaries, Platform};
use crate::process::{Process, until};
use crate::soak::Plan;

/// The campaign over servers and programs beside the running one.
pub async fn run(plan: &Plan, rounds: u32) -> Result<()> {
    let here = std::env::current_exe()?;
    let beside = here.parent().context("a program is in a directory")?;
    let binaries = binaries(beside);
    rounds_of(plan, rounds, &Stack::start().await?, binaries).await
}

fn binaries(directory: &Path) -> Binaries {
    Binaries {
        fabric: directory.join("fabric-process"),
        conductor: directory.join("conductor-process"),
    }
}

/// The campaign over these servers and programs.
pub async fn rounds_of(plan: &Plan, rounds: u32, stack: &Stack, binaries: Binaries) -> Result<()> {
    let mut platform = Platform::start(stack, &binaries, SETTINGS).await?;
    platform.healthy(BOOT).await?;
    platform.define(SMOOTH, 0).await?;
    platform.define(ROUGH, 1).await?;
    let first = platform.submit(SMOOTH).await?;
    platform.completed(&first, SETTLE).await?;
    let mut campaign = Campaign {
        plan,
        dice: plan.dice(0),
        platform,
        binaries,
        first: first.clone(),
        accepted: HashSet::from([first]),
        unanswered: 0,
        slowest: Duration::ZERO,
    };
    for round in 1..=rounds {
        campaign
            .round(round)
            .await
            .with_context(|| format!("round {round}"))?;
        if round % BALANCED_EVERY == 0 || round == rounds {
            campaign
                .balance()
                .await
                .with_context(|| format!("after round {round}"))?;
        }
    }
    plan.step(format!(
        "{rounds} rounds, {} runs accepted; the slowest stop took {:.1} s",
        campaign.accepted.len(),
        campaign.slowest.as_secs_f64()
    ));
    Ok(())
}

struct Campaign<'a> {
    plan: &'a Plan,
    dice: fastrand::Rng,
    platform: Platform,
    binaries: Binaries,
    /// A run that is completed, to be read over and over.
    first: String,
    /// Runs whose submission was answered with 202.
    accepted: HashSet<String>,
    /// Submissions that a process which was told to end at once left without an answer.
    unanswered: usize,
    slowest: Duration,
}

/// What one round does, drawn before it begins.
#[derive(Clone, Copy, Debug)]
struct Blow {
    fabric: bool,
    conductor: bool,
    /// From the begin of the load to the signal.
    after: Duration,
    /// From the signal to a second one, which ends a process at once.
    again: Option<Duration>,
    /// The next processes get a signal before they are ready.
    early: Option<Duration>,
}

impl Blow {
    fn draw(dice: &mut fastrand::Rng) -> Self {
        let who = dice.u8(0..3);
        Self {
            fabric: who != 1,
            conductor: who != 0,
            after: Duration::from_millis(dice.u64(0..500)),
            again: (dice.u8(0..12) == 0).then(|| Duration::from_millis(dice.u64(0..300))),
            early: (dice.u8(0..8) == 0).then(|| Duration::from_millis(dice.u64(0..400))),
        }
    }
}

impl Campaign<'_> {
    async fn round(&mut self, number: u32) -> Result<()> {
        let blow = Blow::draw(&mut self.dice);
        let submit = self.platform.fabric.url("/runs");
        let read = self.platform.fabric.url(&format!("/runs/{}", self.first));
        let smooth = Load::submitting(SUBMITTING, &submit, SMOOTH);
        let rough = Load::submitting(SUBMITTING / 8, &submit, ROUGH);
        let reading = Load::reading(READING, &read);
        tokio::time::sleep(blow.after).await;

        let Platform {
            fabric, conductor, ..
        } = &mut self.platform;
        let (fabric, conductor) = tokio::try_join!(
            stop(blow.fabric.then_some(fabric), blow.again),
            stop(blow.conductor.then_some(conductor), blow.again)
        )?;
        let mut accepted = 0;
        for load in [smooth, rough] {
            let outcome = load.stop().await;
            accepted += outcome.accepted.len();
            self.count(outcome, blow)?;
        }
        self.count(reading.stop().await, blow)?;
        let took = fabric.or(conductor).unwrap_or_default();
        let took = took.max(conductor.unwrap_or_default());
        self.slowest = self.slowest.max(took);
        self.plan.step(format!(
            "round {number}: {} after {:?}{}{}; stopped in {:.2} s, {accepted} accepted",
            match (blow.fabric, blow.conductor) {
                (true, true) => "both",
                (true, false) => "quality-fabric",
                _ => "conductor",
            },
            blow.after,
            blow.again
                .map_or(String::new(), |after| format!(", again after {after:?}")),
            blow.early
                .map_or(String::new(), |after| format!(", early after {after:?}")),
            took.as_secs_f64(),
        ));
        if let Some(early) = blow.early {
            self.restart(blow)?;
            self.early(blow, early).await?;
        }
        self.restart(blow)?;
        self.platform.healthy(BOOT).await?;
        Ok(())
    }

    fn restart(&mut self, blow: Blow) -> Result<()> {
        if blow.fabric {
            self.platform.restart_fabric(&self.binaries, SETTINGS)?;
        }
        if blow.conductor {
            self.platform.restart_conductor(&self.binaries, SETTINGS)?;
        }
        Ok(())
    }

    /// A process that is told to stop while it starts ends as clean as any other.
    async fn early(&mut self, blow: Blow, after: Duration) -> Result<()> {
        let Platform {
            fabric, conductor, ..
        } = &mut self.platform;
        let each = async |process: Option<&mut Process>| {
            let Some(process) = process else {
                return Ok(());
            };
            process.alive(BOOT).await?;
            tokio::time::sleep(after).await;
            stop(Some(process), None).await.map(drop)
        };
        tokio::try_join!(
            each(blow.fabric.then_some(fabric)),
            each(blow.conductor.then_some(conductor))
        )?;
        Ok(())
    }

    /// Enters what clients were told.
    fn count(&mut self, outcome: Outcome, blow: Blow) -> Result<()> {
        self.accepted.extend(outcome.accepted);
        ensure!(
            outcome.refused.is_empty(),
            "refused: {:?}\n{}",
            outcome.refused,
            tail(&self.platform.fabric)
        );
        if blow.fabric && blow.again.is_some() {
            self.unanswered += outcome.broken.len();
            return Ok(());
        }
        ensure!(
            outcome.broken.is_empty(),
            "{} requests without an answer: {:?}\n{}",
            outcome.broken.len(),
            outcome.broken,
            tail(&self.platform.fabric)
        );
        Ok(())
    }

    /// Waits until every run is completed, then compares the ledger with both databases.
    async fn balance(&mut self) -> Result<()> {
        let (fabric, conductor) = tokio::try_join!(
            connect(&self.platform.fabric_box),
            connect(&self.platform.conductor_box)
        )?;
        let unfinished = "select count(*) from quality_runs where state <> 'completed'";
        until(SETTLE, "completion of every run", async || {
            let left: i64 = fabric.query_one(unfinished, &[]).await?.get(0);
            Ok((left == 0).then_some(()))
        })
        .await
        .with_context(|| {
            format!(
                "{}\n{}",
                tail(&self.platform.fabric),
                tail(&self.platform.conductor)
            )
        })?;

        let runs = ids(&fabric, "select id::text from quality_runs").await?;
        let executions = ids(&conductor, "select run_id::text from executions").await?;
        let lost: Vec<_> = self.accepted.difference(&runs).collect();
        ensure!(lost.is_empty(), "accepted, and not there: {lost:?}");
        ensure!(
            runs == executions,
            "{} runs and {} executions differ",
            runs.len(),
            executions.len()
        );
        let more = runs.len() - self.accepted.len();
        ensure!(
            more <= self.unanswered,
            "{more} runs are there whose clients were not told, and {} requests were broken off",
            self.unanswered
        );
        let operator = self.platform.operator().await?;
        let dead = operator.dead_letters("runs").count().await?;
        operator.close().await;
        ensure!(dead == 0, "{dead} dead letters");
        self.plan.step(format!(
            "balanced: {} runs accepted, each executed once and completed; {more} more of {} broken off by second signals",
            self.accepted.len(),
            self.unanswered
        ));
        Ok(())
    }
}

/// Sends SIGTERM, perhaps a second one, and checks how the process ended and when.
async fn stop(process: Option<&mut Process>, again: Option<Duration>) -> Result<Option<Duration>> {
    let Some(process) = process else {
        return Ok(None);
    };
    process.signal(Signal::TERM)?;
    let first = match again {
        None => None,
        Some(after) => tokio::time::timeout(after, process.ended(DEADLINE))
            .await
            .ok(),
    };
    let (code, took) = if let Some(ended) = first {
        ended?
    } else {
        if again.is_some() {
            process.signal(Signal::TERM)?;
        }
        process.ended(DEADLINE).await?
    };
    // 128 + 15 is what a second signal asks for; a process may also be done by then.
    let honest = code == Some(0) || (again.is_some() && code == Some(143));
    ensure!(
        honest,
        "{} ended with {code:?}:\n{}",
        process.name(),
        tail(process)
    );
    Ok(Some(took))
}

/// A connection as the service's own, past the SDK.
async fn connect(place: &Sandbox) -> Result<tokio_postgres::Client> {
    let pairs = place.direct_environment();
    let url = pairs
        .iter()
        .find(|(name, _)| name == "MAESTRO_POSTGRES_URL");
    let url = Url::parse(&url.context("a sandbox has PostgreSQL")?.1)?;
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn ids(client: &tokio_postgres::Client, sql: &str) -> Result<HashSet<String>> {
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The last of what a process has printed, without the runs, of which there are many.
fn tail(process: &Process) -> String {
    let log = process.log().unwrap_or_default();
    let lines = log
        .lines()
        .filter(|line| !line.contains("\"message\":\"run "));
    let lines: Vec<&str> = lines.collect();
    let from = lines.len().saturating_sub(TAIL);
    format!("{}:\n{}", process.name(), lines[from..].join("\n"))
}

/// A suite that succeeds, and one whose first attempt fails, so that the ladder holds messages.
const SMOOTH: &str = "smooth";
const ROUGH: &str = "rough";
/// Clients that submit runs, and clients that read one.
const SUBMITTING: usize = 24;
const READING: usize = 8;
/// A ladder short enough to wait for.
const SETTINGS: &[(&str, &str)] = &[("MAESTRO_MESSAGING_RETRY_DELAYS", "200ms,500ms,1s")];
/// The deadline by default, the last chance of every step behind it, and a busy machine that is late to
/// end a process. What a process says of itself is stricter: 0 only if all was done by its deadline.
const DEADLINE: Duration = Duration::from_secs(45);
/// Longest wait for a service to become healthy, and for all runs to complete, on a busy machine.
const BOOT: Duration = Duration::from_secs(90);
const SETTLE: Duration = Duration::from_mins(2);
/// The ledger is balanced after this many rounds: messages cross several stops before they are counted.
const BALANCED_EVERY: u32 = 10;
/// Lines of a log that belong to a failure.
const TAIL: usize = 40;
