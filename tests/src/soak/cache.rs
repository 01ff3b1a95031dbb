//! Two processes read and change the same entries of one Redis, each over a network of its own, while
//! a network is cut or goes silent, Redis is paused, and a process is paused.
//!
//! The origin is a directory, the ledger is kept here: each process reports when a read began and
//! what it returned, and when a change was finished. No read may be older than the stated bound, out
//! of process memory or out of Redis. The longest time in process memory is well above that bound, so
//! that only coherence keeps it; it is what counts while a process has no way to Redis.

mod ledger;
mod side;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use maestro_testkit::{Link, Sandbox, Server, Service, Stack, tied};
use rustix::process::{Pid, Signal};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::soak::Plan;
use ledger::Ledger;

pub use side::{Role, run as run_side};

/// Keys that every task changes at the origin and then invalidates.
const SHARED: u64 = 40;
/// Tasks of each process; each has one key more that it alone writes through the cache.
const TASKS: u64 = 6;
const SIDES: usize = 2;
const KEYS: u64 = SHARED + SIDES as u64 * TASKS;
const TAGS: u64 = 5;
/// As by default.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);
/// One heartbeat and its deadline.
const BOUND: Duration = Duration::from_millis(1_500);
/// What counts while a process has no way to Redis.
const LOCAL_TTL: Duration = Duration::from_secs(6);
/// Calls on connections of a fault have ended so long after it: one to connect, one to ask.
const GRACE: Duration = Duration::from_millis(1_500);
/// After the last fault, on a busy machine: a probe of Redis comes at least every second.
const SETTLE: Duration = Duration::from_secs(90);

const FAULTS: [&str; 8] = [
    "process paused, silence",
    "cut",
    "process paused",
    "blackhole",
    "answers lost",
    "reset",
    "Redis paused",
    "slow",
];

/// Runs the campaign; `program` is what [`Role`] is given to.
///
/// # Errors
/// When a read was older than the bound, a process failed, or the servers cannot be had.
pub async fn run(plan: &Plan, program: &Path) -> Result<()> {
    let stack = Stack::builder().only([Service::Redis]).dedicated().await?;
    let sandbox = stack.sandbox("reports").await?;
    let redis = stack.redis()?;
    plan.step(format!("Redis {}", redis.version()));
    let origin = tempfile::tempdir()?;
    let links = [redis.link().await?, redis.link().await?];
    let ledger = Arc::new(Mutex::new(Ledger::new()));
    let mut sides = Vec::new();
    for (number, link) in links.iter().enumerate() {
        let environment = environment(&sandbox, link)?;
        let start = Side::start(program, plan, number, origin.path(), environment, &ledger);
        sides.push(start?);
    }
    for side in &mut sides {
        side.reaches("started", SETTLE).await?;
    }

    let mut dice = plan.dice(u64::MAX);
    let mut caused: BTreeMap<&str, u32> = BTreeMap::new();
    // Each kind in turn, so that a short campaign has all of them; whom, how long and when is drawn.
    for fault in FAULTS.iter().cycle() {
        sleep(Duration::from_millis(dice.u64(200..1_200))).await;
        if plan.is_over() {
            break;
        }
        let number = dice.usize(0..SIDES);
        let long = Duration::from_millis(dice.u64(100..2_500));
        plan.step(format!("{fault}, process {number} ({long:?})"));
        *caused.entry(fault).or_default() += 1;
        let fault = Fault {
            name: fault,
            number,
            long,
        };
        fault
            .cause(&links[number], &redis, &sides[number], &ledger)
            .await?;
        locked(&ledger).verdict()?;
        for side in &sides {
            ensure!(!side.reading.is_finished(), "process {} ended", side.number);
        }
    }

    // Not as long as the plan says but as long as it takes: a slow machine reads less in that time, and
    // most of it under faults, which excuse a read.
    crate::until(SETTLE, "enough reads held to the bound", async || {
        let ledger = locked(&ledger);
        ledger.verdict()?;
        Ok(ledger.has_held_enough().then_some(()))
    })
    .await?;

    plan.step("settling");
    for side in &mut sides {
        side.tell("settle").await?;
    }
    for side in &mut sides {
        side.reaches("settled", SETTLE).await?;
    }
    for side in &mut sides {
        side.tell("compare").await?;
    }
    for side in sides {
        side.end().await?;
    }
    let ledger = locked(&ledger);
    plan.step(format!("faults: {caused:?}"));
    plan.step(ledger.summary());
    ledger.verdict()?;
    ledger.looked_at_enough()
}

/// Something to go wrong.
struct Fault {
    name: &'static str,
    /// The process concerned.
    number: usize,
    long: Duration,
}

impl Fault {
    /// Causes it, and mends it.
    async fn cause(
        &self,
        link: &Link,
        redis: &Server,
        side: &Side,
        ledger: &Mutex<Ledger>,
    ) -> Result<()> {
        let long = self.long;
        let concerned = match self.name {
            "Redis paused" => 0..SIDES,
            _ => self.number..self.number + 1,
        };
        let begins = |silent| locked(ledger).fault_begins(&concerned, silent, now());
        match self.name {
            // Long enough for the news to be late.
            "process paused" => {
                side.signal(Signal::STOP)?;
                sleep(BOUND + long / 2).await;
                side.signal(Signal::CONT)?;
            }
            // And no news when it wakes up, so that the lease alone can tell.
            "process paused, silence" => {
                begins(true);
                side.signal(Signal::STOP)?;
                link.blackhole().await?;
                sleep(BOUND + long / 2).await;
                side.signal(Signal::CONT)?;
                sleep(long / 4).await;
            }
            "cut" => {
                begins(false);
                link.cut().await?;
                sleep(long).await;
            }
            "blackhole" => {
                begins(true);
                link.blackhole().await?;
                sleep(long).await;
            }
            "answers lost" => {
                begins(true);
                link.blackhole_replies().await?;
                sleep(long).await;
                // What was held back is lost with the connections.
                begins(false);
                link.reset().await?;
            }
            "reset" => {
                begins(false);
                link.reset().await?;
            }
            "slow" => {
                begins(true);
                link.delay(long / 20).await?;
                sleep(long).await;
            }
            _ => {
                begins(true);
                redis.pause().await?;
                sleep(long).await;
                redis.resume().await?;
            }
        }
        link.restore().await?;
        locked(ledger).fault_ends(&concerned, now());
        Ok(())
    }
}

/// Settings of a process that reaches Redis over this link.
fn environment(sandbox: &Sandbox, link: &Link) -> Result<Vec<(String, String)>> {
    let mut pairs = sandbox.environment();
    for (name, value) in &mut pairs {
        if name == "MAESTRO_CACHE_URL" {
            let mut url = url::Url::parse(value)?;
            let address: std::net::SocketAddr = link.authority().parse()?;
            url.set_port(Some(address.port())).ok().context("a port")?;
            *value = url.into();
        }
    }
    let local_ttl = format!("{}s", LOCAL_TTL.as_secs());
    pairs.push(("MAESTRO_CACHE_LOCAL_TTL".to_owned(), local_ttl));
    Ok(pairs)
}

/// One of the two processes.
struct Side {
    number: usize,
    child: Child,
    input: ChildStdin,
    /// What it said last about itself.
    said: watch::Receiver<String>,
    reading: JoinHandle<Result<()>>,
}

impl Side {
    fn start(
        program: &Path,
        plan: &Plan,
        number: usize,
        origin: &Path,
        environment: Vec<(String, String)>,
        ledger: &Arc<Mutex<Ledger>>,
    ) -> Result<Self> {
        let mut child = Command::from(tied(program))
            .args(["cache-side", "--side", &number.to_string()])
            .args(["--seed", &plan.seed.to_string(), "--origin"])
            .arg(origin)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let input = child.stdin.take().context("its input is piped")?;
        let output = child.stdout.take().context("its output is piped")?;
        let (says, said) = watch::channel(String::new());
        let ledger = Arc::clone(ledger);
        let reading = tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await? {
                match line.strip_prefix("state ") {
                    Some(state) => drop(says.send_replace(state.to_owned())),
                    None => locked(&ledger).enter(number, &line)?,
                }
            }
            Ok(())
        });
        Ok(Self {
            number,
            child,
            input,
            said,
            reading,
        })
    }

    async fn reaches(&mut self, state: &str, within: Duration) -> Result<()> {
        let reached = self.said.wait_for(|said| said == state);
        timeout(within, reached)
            .await
            .with_context(|| format!("process {}: not {state} within {within:?}", self.number))?
            .map(drop)
            .with_context(|| format!("process {} ended before it was {state}", self.number))
    }

    async fn tell(&mut self, what: &str) -> Result<()> {
        self.input.write_all(format!("{what}\n").as_bytes()).await?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("the process has ended")?;
        let pid = Pid::from_raw(pid.cast_signed()).context("a process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    async fn end(mut self) -> Result<()> {
        let status = timeout(SETTLE, self.child.wait())
            .await
            .with_context(|| format!("process {} goes on after {SETTLE:?}", self.number))??;
        self.reading.await??;
        ensure!(status.success(), "process {}: {status}", self.number);
        Ok(())
    }
}

/// The machine's monotonic clock, which all processes share, in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nobody panics while holding one of these.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where all versions of a key come from: a file grows by a byte for each, which the kernel keeps in
/// one order for both processes.
#[derive(Debug)]
struct Origin(PathBuf);

impl Origin {
    fn file(&self, key: u64) -> PathBuf {
        self.0.join(key.to_string())
    }

    fn current(&self, key: u64) -> std::io::Result<u64> {
        match std::fs::metadata(self.file(key)) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn change(&self, key: u64) -> std::io::Result<u64> {
        use std::io::{Seek, Write};
        let mut options = std::fs::File::options();
        let mut file = options.append(true).create(true).open(self.file(key))?;
        file.write_all(b".")?;
        // After an appending write the position is the end of what this process wrote.
        file.stream_position()
    }
}
