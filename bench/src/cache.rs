//! `maestro-cache` beside redis-rs, and its memory level beside the caches a process can have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_cache::{Cache, CacheConfig, Region};
use redis::AsyncCommands as _;
use serde::{Deserialize, Serialize};

use crate::harness::{Comparison, Result, Row, Target, Unit, nanoseconds, per_second, versioned};
use crate::sandbox::Place;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Report {
    id: u64,
    title: String,
    scores: Vec<u32>,
}

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let place = Place::new().await?;
    let mut rows = memory(&place, rounds).await?;
    rows.extend(remote(&place, rounds).await?);
    Ok(rows)
}

/// A hit in the process' memory.
async fn memory(place: &Place, rounds: usize) -> Result<Vec<Row>> {
    let cache = Cache::connect(place.environment(&[]).read::<CacheConfig>()?).await?;
    let reports = cache.region::<Report>("report").build()?;
    reports.put(KEY, report()).await?;
    // Written values reach memory by the first read.
    reports
        .get(KEY)
        .await?
        .ok_or("the value just put is gone")?;

    let plain = quick_cache::sync::Cache::<u64, Arc<Report>>::new(1_000);
    plain.insert(KEY, Arc::new(report()));
    let moka = moka::sync::Cache::<u64, Arc<Report>>::builder()
        .max_capacity(1_000)
        .time_to_live(Duration::from_mins(5))
        .build();
    moka.insert(KEY, Arc::new(report()));

    let rows = Comparison::new("hit in memory", Unit::Nanoseconds, rounds, || async {
        let started = Instant::now();
        for _ in 0..HITS {
            std::hint::black_box(reports.get(KEY).await?);
        }
        Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(HITS))
    })
    .peer(
        versioned("quick_cache", ""),
        "no lifetime, no namespace, no coherence",
        Target::Ratio(1.0 / 2.5),
        || async { Ok(nanoseconds(HITS, || plain.get(&KEY))) },
    )
    .peer(
        versioned("moka", "sync, TTL"),
        "no coherence",
        Target::None,
        || async { Ok(nanoseconds(HITS, || moka.get(&KEY))) },
    )
    .run()
    .await?;
    cache.close(Duration::from_secs(5)).await;
    Ok(rows)
}

/// A hit in Redis, decoded, under a deadline; one connection.
async fn remote(place: &Place, rounds: usize) -> Result<Vec<Row>> {
    let environment = place.environment(&[("MAESTRO_CACHE_LOCAL_CAPACITY", "0")]);
    let cache = Cache::connect(environment.read::<CacheConfig>()?).await?;
    let reports = cache.region::<Report>("report").build()?;
    reports.put(KEY, report()).await?;

    let client = redis::Client::open(place.variable("MAESTRO_CACHE_URL")?)?;
    let mut theirs = client.get_multiplexed_async_connection().await?;
    let key = format!("{}bench", place.variable("MAESTRO_CACHE_PREFIX")?);
    let () = theirs.set(&key, serde_json::to_vec(&report())?).await?;

    let mut rows = Vec::new();
    for (tasks, each) in [(1, 4_000), (64, 1_000), (256, 400)] {
        let name = format!(
            "get from Redis, {tasks} task{}",
            if tasks == 1 { "" } else { "s" }
        );
        let on_ours = || per_second(tasks, each, || through_ours(reports.clone(), each));
        let on_theirs = || {
            per_second(tasks, each, || {
                through_redis(theirs.clone(), key.clone(), each)
            })
        };
        rows.extend(
            Comparison::new(name, Unit::PerSecond, rounds, on_ours)
                .peer(
                    versioned("redis", "multiplexed"),
                    "same JSON and deadline; no span, no metric",
                    Target::Ratio(0.95),
                    on_theirs,
                )
                .run()
                .await?,
        );
    }
    cache.close(Duration::from_secs(5)).await;
    Ok(rows)
}

async fn through_ours(reports: Region<Report>, each: u32) -> Result<()> {
    for _ in 0..each {
        let found = reports.get(KEY).await?.ok_or("a miss")?;
        std::hint::black_box(found);
    }
    Ok(())
}

async fn through_redis(
    mut connection: redis::aio::MultiplexedConnection,
    key: String,
    each: u32,
) -> Result<()> {
    for _ in 0..each {
        let read = connection.get::<_, Option<Vec<u8>>>(&key);
        let bytes = tokio::time::timeout(DEADLINE, read)
            .await??
            .ok_or("a miss")?;
        let found: Arc<Report> = Arc::new(serde_json::from_slice(&bytes)?);
        std::hint::black_box(found);
    }
    Ok(())
}

fn report() -> Report {
    Report {
        id: KEY,
        title: "Quality of the nightly build".to_owned(),
        scores: (0..32).collect(),
    }
}

const KEY: u64 = 7;
const HITS: u32 = 500_000;
const DEADLINE: Duration = Duration::from_millis(500);
