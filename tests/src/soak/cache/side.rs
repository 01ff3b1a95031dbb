//! What each of the two processes does: reads and changes at random, and a report of all of it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use maestro_cache::{Cache, CacheConfig, Outcome, Region};
use maestro_config::Environment;
use maestro_metrics::HealthState;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{KEYS, Origin, SETTLE, SHARED, TAGS, TASKS, locked, now};
use crate::soak::Plan;

/// Which process this is.
#[derive(Clone, Debug, clap::Args)]
pub struct Role {
    /// Its number
    #[arg(long)]
    side: u64,
    /// Directory of the origin
    #[arg(long)]
    origin: PathBuf,
}

/// Between two looks at whether Redis is away: shorter than it is ever away.
const LOOK: Duration = Duration::from_millis(5);
/// Looks between two deliveries of the report.
const LOOKS_PER_REPORT: u32 = 10;

#[derive(Clone)]
struct Actor {
    cache: Cache,
    /// Kept in process memory, and read from Redis each time.
    near: Region<u64>,
    far: Region<u64>,
    origin: Arc<Origin>,
    report: Arc<Mutex<String>>,
}

/// One process of the campaign: driven by its input, heard by its output.
///
/// # Errors
/// When a request fails, or the caches do not come to hold what the origin does.
pub async fn run(role: &Role, seed: u64) -> Result<()> {
    let config: CacheConfig = Environment::load()?.read()?;
    let cache = Cache::connect(config).await?;
    let actor = Actor {
        near: cache.region("near").build()?,
        far: cache.region("far").local_ttl(Duration::ZERO).build()?,
        cache,
        origin: Arc::new(Origin(role.origin.clone())),
        report: Arc::default(),
    };
    actor.healthy().await?;
    let plan = Plan::new(seed, Duration::MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let number = role.side * TASKS + task;
        let (actor, dice, stop) = (actor.clone(), plan.dice(number), Arc::clone(&stop));
        tasks.spawn(async move { actor.act(SHARED + number, dice, &stop).await });
    }
    let watching = Arc::new(AtomicBool::new(true));
    let watch = tokio::spawn(actor.clone().watch(Arc::clone(&watching)));
    say("state started\n")?;

    // Not tokio's own standard input, whose thread would outlive a failure.
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut orders = BufReader::new(pipe::Receiver::from_owned_fd(input)?).lines();
    tokio::select! {
        order = orders.next_line() => {
            let order = order?;
            ensure!(order.as_deref() == Some("settle"), "{order:?}");
        }
        Some(ended) = tasks.join_next() => {
            ended??;
            bail!("a task ended by itself");
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    actor.healthy().await?;
    let deadline = Instant::now() + SETTLE;
    while actor.metric("maestro_cache_deferred_invalidations") > 0.0 {
        ensure!(Instant::now() < deadline, "what Redis missed is not sent");
        sleep(LOOK).await;
    }
    watching.store(false, Ordering::Relaxed);
    watch.await??;
    say("state settled\n")?;

    let order = orders.next_line().await?;
    ensure!(order.as_deref() == Some("compare"), "{order:?}");
    actor.compare().await
}

/// Everything has been said: what is read is what the origin holds.
impl Actor {
    async fn compare(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        for key in 0..KEYS {
            for region in [&self.far, &self.near] {
                loop {
                    let read = self.loaded(region, key).await?;
                    let current = self.origin.current(key)?;
                    if read == current {
                        break;
                    }
                    ensure!(
                        Instant::now() < deadline,
                        "key {key} is read as {read} for ever, and is {current}"
                    );
                    sleep(LOOK).await;
                }
            }
        }
        Ok(())
    }

    async fn act(&self, own: u64, mut dice: fastrand::Rng, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            match dice.u32(0..1_000) {
                0..500 => {
                    for _ in 0..6 {
                        self.load(true, dice.u64(0..KEYS)).await?;
                    }
                }
                500..600 => self.load(false, dice.u64(0..KEYS)).await?,
                600..850 => {
                    for _ in 0..4 {
                        self.read(dice.u8(0..4) > 0, &[dice.u64(0..KEYS)]).await;
                    }
                }
                850..950 => {
                    let first = dice.u64(0..KEYS / 2);
                    let keys = [first, first + 3, first + 9, KEYS - 1 - first];
                    self.read(dice.bool(), &keys).await;
                }
                950..980 => self.change(&mut dice).await?,
                _ => self.put(own).await?,
            }
            // About as often as requests come: while Redis is away calls are decided at once, and
            // would otherwise be nearly all of the campaign.
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn loaded(&self, region: &Region<u64>, key: u64) -> Result<u64> {
        let origin = Arc::clone(&self.origin);
        let load = move || async move {
            let version = origin.current(key)?;
            // A query takes time, in which the value may be invalidated.
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(version)
        };
        let entry = region.entry(key).tag(key % TAGS);
        Ok(*entry.get_or_load(load).await?)
    }

    async fn load(&self, near: bool, key: u64) -> Result<()> {
        let began = now();
        let version = self.loaded(self.region(near), key).await?;
        self.note_read("r", began, near, key, version);
        Ok(())
    }

    async fn read(&self, near: bool, keys: &[u64]) {
        let began = now();
        let region = self.region(near);
        let found = match keys {
            [key] => region.get(*key).await.map(|found| vec![found]),
            keys => region.get_many(keys.to_vec()).await,
        };
        // Without Redis there may be nothing to be said.
        for (key, version) in keys.iter().zip(found.unwrap_or_default()) {
            if let Some(version) = version {
                let how = if keys.len() == 1 { "a" } else { "r" };
                self.note_read(how, began, near, *key, *version);
            }
        }
    }

    fn region(&self, near: bool) -> &Region<u64> {
        if near { &self.near } else { &self.far }
    }

    fn note_read(&self, how: &str, began: u64, near: bool, key: u64, version: u64) {
        let ended = now();
        let near = u8::from(near);
        self.note(&format!("{how} {began} {ended} {near} {key} {version}"));
    }

    /// Changes the origin, then invalidates what was changed in both regions.
    async fn change(&self, dice: &mut fastrand::Rng) -> Result<()> {
        let key = dice.u64(0..SHARED);
        let tag = key % TAGS;
        let how = dice.u8(0..40);
        let keys: Vec<u64> = match how {
            0 => (0..SHARED).collect(),
            1..4 => (0..SHARED).filter(|key| key % TAGS == tag).collect(),
            4..10 => (key % 7..SHARED).step_by(7).collect(),
            _ => vec![key],
        };
        let changed = keys.iter().map(|key| Ok((*key, self.origin.change(*key)?)));
        let changed = changed.collect::<Result<Vec<_>>>()?;
        let acknowledged = match how {
            0 => self.cache.clear().await?.is_acknowledged(),
            1..4 => self.cache.invalidate_tag(tag).await?.is_acknowledged(),
            4..10 => {
                let near = self.near.remove_many(keys.clone()).await?;
                both(near, self.far.remove_many(keys).await?)
            }
            _ => both(self.near.remove(key).await?, self.far.remove(key).await?),
        };
        self.note_change(acknowledged, &changed);
        Ok(())
    }

    /// Writes the next version through the cache; no other task writes this key.
    async fn put(&self, key: u64) -> Result<()> {
        let version = self.origin.change(key)?;
        let near = self.near.entry(key).tag(key % TAGS).put(version).await?;
        let far = self.far.entry(key).tag(key % TAGS).put(version).await?;
        self.note_change(both(near, far), &[(key, version)]);
        Ok(())
    }

    fn note_change(&self, acknowledged: bool, changed: &[(u64, u64)]) {
        let mut report = locked(&self.report);
        // Inside the lock: a report that tells of a later time has this change.
        let at = now();
        for (key, version) in changed {
            // Writing to a string cannot fail.
            let _ = writeln!(report, "c {at} {} {key} {version}", u8::from(acknowledged));
        }
    }

    fn note(&self, line: &str) {
        let mut report = locked(&self.report);
        report.push_str(line);
        report.push('\n');
    }

    /// Reports, and looks whether the cache says that Redis is away.
    async fn watch(self, watching: Arc<AtomicBool>) -> Result<()> {
        let (mut before, mut was_away, mut looks) = (now(), false, 0);
        loop {
            let last = !watching.load(Ordering::Relaxed);
            let looked = now();
            let is_away = self.metric("maestro_cache_connected{purpose=\"commands\"}") < 1.0
                || self.metric("maestro_resilience_breaker_open") > 0.0;
            match (was_away, is_away) {
                (false, true) => self.note(&format!("d {before}")),
                (true, false) => self.note(&format!("u {}", now())),
                _ => {}
            }
            (before, was_away) = (looked, is_away);
            looks += 1;
            if last || looks % LOOKS_PER_REPORT == 0 {
                let hits = self.metric(
                    "maestro_cache_requests_total{region=\"near\",level=\"local\",result=\"hit\"}",
                );
                let mut report = locked(&self.report);
                // The last report tells of everything: nothing goes on any more.
                let told = if last { u64::MAX } else { looked };
                let _ = writeln!(report, "h {hits}\nt {told}");
                let report = std::mem::take(&mut *report);
                say(&report)?;
            }
            if last {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// The sum of a metric's series.
    fn metric(&self, name: &str) -> f64 {
        let text = self.cache.registry().text();
        let series = text.lines().filter(|line| line.starts_with(name));
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    }

    async fn healthy(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let status = self.cache.health_check().run().await;
            if status.state() == HealthState::Healthy {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not well: {status:?}");
            sleep(LOOK).await;
        }
    }
}

fn both(one: Outcome, other: Outcome) -> bool {
    one.is_acknowledged() && other.is_acknowledged()
}

fn say(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush().context("nobody reads the report")
}
