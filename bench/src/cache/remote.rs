//! Reading from Redis: decoded, under a deadline, over one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::interfaces::{ClientLike as _, KeysInterface as _};
use maestro_cache::{Cache, CacheConfig, Region};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use rustis::commands::StringCommands as _;

use super::{KEY, Report, connect, of_peers, report};
use crate::harness::{Comparison, Result, Row, Target, Unit, per_second, versioned};
use crate::sandbox::Place;

pub(super) async fn run(place: &Place, rounds: usize) -> Result<Vec<Row>> {
    let environment = place.environment(&[("MAESTRO_CACHE_LOCAL_CAPACITY", "0")]);
    let cache = Cache::connect(environment.read::<CacheConfig>()?).await?;
    let reports = cache.region::<Report>("report").build()?;
    reports.put(KEY, report()).await?;
    let (url, key) = of_peers(place).await?;
    let redis = connect(&url, DEADLINE).await?;
    let fred = fred::prelude::Builder::from_config(fred::prelude::Config::from_url(&url)?)
        .with_performance_config(|config| config.default_command_timeout = DEADLINE)
        .build()?;
    fred.init().await?;
    let limited = format!("{url}?command_timeout={}", DEADLINE.as_millis());
    let rustis = rustis::client::Client::connect(limited.as_str()).await?;

    let mut rows = Vec::new();
    for (tasks, each) in [(1, 4_000), (64, 1_000), (256, 400), (1_024, 100)] {
        let name = format!(
            "get from Redis, {tasks} task{}",
            if tasks == 1 { "" } else { "s" }
        );
        let note = "same JSON, its own deadline; no span, no metric";
        let target = Target::Ratio(0.95);
        rows.extend(
            Comparison::new(name, Unit::PerSecond, rounds, || {
                per_second(tasks, each, || through_ours(reports.clone(), each))
            })
            .peer(versioned("redis", "multiplexed"), note, target, || {
                per_second(tasks, each, || {
                    through_redis(redis.clone(), key.clone(), each)
                })
            })
            .peer(versioned("fred", ""), note, target, || {
                per_second(tasks, each, || {
                    through_fred(fred.clone(), key.clone(), each)
                })
            })
            .peer(versioned("rustis", ""), note, target, || {
                per_second(tasks, each, || {
                    through_rustis(rustis.clone(), key.clone(), each)
                })
            })
            .run()
            .await?,
        );
    }
    rows.extend(many(&reports, rounds).await?);
    fred.quit().await?;
    cache.close(Duration::from_secs(5)).await;
    Ok(rows)
}

/// A hundred values in one call, and one by one.
async fn many(reports: &Region<Report>, rounds: usize) -> Result<Vec<Row>> {
    const AT_ONCE: u64 = 100;
    let ids = KEY..KEY + AT_ONCE;
    reports
        .put_many(ids.clone().map(|id| (id, report())))
        .await?;
    let found = |count: u64| {
        if count == AT_ONCE {
            Ok(())
        } else {
            Err(format!("{count} were found"))
        }
    };
    let at_once = || async {
        let started = Instant::now();
        let values = reports.get_many(ids.clone()).await?;
        found(values.iter().flatten().count() as u64)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let one_by_one = || async {
        let started = Instant::now();
        let mut count = 0;
        for id in ids.clone() {
            count += u64::from(reports.get(id).await?.is_some());
        }
        found(count)?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    Comparison::new("get_many of 100", Unit::Milliseconds, rounds, at_once)
        .peer(
            "100 gets, one by one",
            "ours as well",
            Target::Ratio(10.0),
            one_by_one,
        )
        .run()
        .await
}

async fn through_ours(reports: Region<Report>, each: u32) -> Result<()> {
    for _ in 0..each {
        let found = reports.get(KEY).await?.ok_or("a miss")?;
        std::hint::black_box(found);
    }
    Ok(())
}

async fn through_redis(
    mut connection: MultiplexedConnection,
    key: String,
    each: u32,
) -> Result<()> {
    for _ in 0..each {
        let read: Option<Vec<u8>> = connection.get(&key).await?;
        decode(&read.ok_or("a miss")?)?;
    }
    Ok(())
}

async fn through_fred(client: fred::clients::Client, key: String, each: u32) -> Result<()> {
    for _ in 0..each {
        let read: fred::types::Value = client.get(&key).await?;
        decode(read.as_bytes().ok_or("a miss")?)?;
    }
    Ok(())
}

async fn through_rustis(client: rustis::client::Client, key: String, each: u32) -> Result<()> {
    for _ in 0..each {
        let read: Option<rustis::resp::BulkString> = client.get(&key).await?;
        decode(read.ok_or("a miss")?.as_bytes())?;
    }
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<()> {
    let found: Arc<Report> = Arc::new(serde_json::from_slice(bytes)?);
    std::hint::black_box(found);
    Ok(())
}

const DEADLINE: Duration = Duration::from_millis(500);
