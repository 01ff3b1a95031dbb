//! Hits in the process' memory: time, and what they allocate.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amalgam::provider::{JsonSerializer, RedisBackplane, RedisDistributedCache};
use futures_util::FutureExt as _;
use maestro_cache::{Cache, CacheConfig, Region};
use redis::aio::MultiplexedConnection;

use super::{KEY, Report, of_peers, report};
use crate::harness::{Comparison, Result, Row, Target, Unit, nanoseconds, versioned};
use crate::sandbox::Place;

/// Everybody with the same report in memory.
struct Hits {
    /// Without tags.
    plain: Region<Report>,
    /// With one.
    tagged: Region<Report>,
    quick_cache: quick_cache::sync::Cache<u64, Arc<Report>>,
    moka: moka::sync::Cache<u64, Arc<Report>>,
    redis: MultiplexedConnection,
    rustis: Arc<rustis::cache::Cache>,
    amalgam: amalgam::Cache<Arc<Report>>,
    key: String,
}

pub(super) async fn run(place: &Place, rounds: usize) -> Result<Vec<Row>> {
    let cache = Cache::connect(place.environment(&[]).read::<CacheConfig>()?).await?;
    let hits = Hits::new(place, &cache).await?;
    let mut rows = hits.times(rounds).await?;
    rows.extend(hits.times_with_a_tag(rounds).await?);
    rows.extend(hits.allocations(rounds).await?);
    cache.close(Duration::from_secs(5)).await;
    Ok(rows)
}

impl Hits {
    async fn new(place: &Place, cache: &Cache) -> Result<Self> {
        let (url, key) = of_peers(place).await?;
        let plain = cache.region::<Report>("report").build()?;
        plain.put(KEY, report()).await?;
        let tagged = cache.region::<Report>("tagged").build()?;
        tagged.entry(KEY).tag("project-7").put(report()).await?;

        let quick_cache = quick_cache::sync::Cache::new(1_000);
        quick_cache.insert(KEY, Arc::new(report()));
        let moka = moka::sync::Cache::builder()
            .max_capacity(1_000)
            .time_to_live(LIFETIME)
            .build();
        moka.insert(KEY, Arc::new(report()));

        let caching = redis::caching::CacheConfig::new().set_default_client_ttl(LIFETIME);
        let caching = redis::AsyncConnectionConfig::new().set_cache_config(caching);
        let resp3 = format!("{url}?protocol=resp3");
        let redis = redis::Client::open(resp3)?
            .get_multiplexed_async_connection_with_config(&caching)
            .await?;

        let client = rustis::client::Client::connect(url.as_str()).await?;
        let tracking = rustis::commands::ClientTrackingOptions::default().broadcasting();
        let rustis = rustis::cache::Cache::new(client, LIFETIME.as_secs(), tracking).await?;

        let amalgam = amalgam::Cache::builder()
            .distributed(Arc::new(RedisDistributedCache::connect(url.clone()).await?))
            .serializer(Arc::new(JsonSerializer))
            .backplane(Arc::new(RedisBackplane::connect(url).await?))
            .instance_id("bench")
            .try_build()?;
        amalgam.set(&key, Arc::new(report())).await?;

        let mut hits = Self {
            plain,
            tagged,
            quick_cache,
            moka,
            redis,
            rustis,
            amalgam,
            key,
        };
        hits.warm().await?;
        Ok(hits)
    }

    /// What was written reaches memory by being read, and the news of the write may come after the first
    /// read and take it out again.
    async fn warm(&mut self) -> Result<()> {
        let quiet = Instant::now() + Duration::from_millis(300);
        while Instant::now() < quiet {
            ours(&self.plain).await?;
            ours(&self.tagged).await?;
            self.by_redis().await?;
            self.by_rustis().await?;
            self.by_amalgam().await?;
        }
        Ok(())
    }

    async fn times(&self, rounds: usize) -> Result<Vec<Row>> {
        Comparison::new("hit in memory", Unit::Nanoseconds, rounds, || {
            time(HITS, || ours(&self.plain))
        })
        .peer(
            versioned("quick_cache", ""),
            "no lifetime, no namespace, no coherence",
            Target::Ratio(1.0 / 2.5),
            || async { Ok(nanoseconds(HITS, || self.quick_cache.get(&KEY))) },
        )
        .peer(
            versioned("moka", "sync, TTL"),
            "no coherence",
            Target::None,
            || async { Ok(nanoseconds(HITS, || self.moka.get(&KEY))) },
        )
        .peer(
            versioned("redis", "cache-aio"),
            "decodes at every hit; stale after a race",
            Target::Ratio(1.0),
            || time(DECODED_HITS, || self.by_redis()),
        )
        .peer(
            versioned("rustis", "client-cache"),
            "decodes at every hit",
            Target::Ratio(1.0),
            || time(DECODED_HITS, || self.by_rustis()),
        )
        .peer(
            versioned("amalgam-cache", "L1, L2, backplane"),
            "other processes hear by pub/sub",
            Target::Ratio(1.0),
            || time(HITS, || self.by_amalgam()),
        )
        .run()
        .await
    }

    async fn times_with_a_tag(&self, rounds: usize) -> Result<Vec<Row>> {
        Comparison::new("hit with one tag", Unit::Nanoseconds, rounds, || {
            time(HITS, || ours(&self.tagged))
        })
        .peer(
            versioned("quick_cache", ""),
            "no lifetime, no namespace, no coherence, no tags",
            Target::Ratio(1.0 / 3.2),
            || async { Ok(nanoseconds(HITS, || self.quick_cache.get(&KEY))) },
        )
        .run()
        .await
    }

    async fn allocations(&self, rounds: usize) -> Result<Vec<Row>> {
        let unit = Unit::Allocations;
        let tagged = Comparison::new("allocations a tagged hit", unit, rounds, || async {
            allocations(|| ours(&self.tagged))
        })
        .peer(
            versioned("quick_cache", ""),
            "no tags",
            Target::AtMost(0.0),
            || async { allocations(|| async { Ok(self.quick_cache.get(&KEY)) }) },
        );
        let mut rows = Comparison::new("allocations a hit", unit, rounds, || async {
            allocations(|| ours(&self.plain))
        })
        .peer(
            versioned("quick_cache", ""),
            "",
            Target::AtMost(0.0),
            || async { allocations(|| async { Ok(self.quick_cache.get(&KEY)) }) },
        )
        .peer(versioned("moka", "sync, TTL"), "", Target::None, || async {
            allocations(|| async { Ok(self.moka.get(&KEY)) })
        })
        .peer(
            versioned("redis", "cache-aio"),
            "with decoding",
            Target::None,
            || async { allocations(|| self.by_redis()) },
        )
        .peer(
            versioned("rustis", "client-cache"),
            "with decoding",
            Target::None,
            || async { allocations(|| self.by_rustis()) },
        )
        .peer(
            versioned("amalgam-cache", "L1, L2, backplane"),
            "",
            Target::None,
            || async { allocations(|| self.by_amalgam()) },
        )
        .run()
        .await?;
        rows.extend(tagged.run().await?);
        Ok(rows)
    }

    async fn by_redis(&self) -> Result<Arc<Report>> {
        use redis::AsyncCommands as _;

        let bytes: Vec<u8> = self.redis.clone().get(&self.key).await?;
        Ok(Arc::new(serde_json::from_slice(&bytes)?))
    }

    async fn by_rustis(&self) -> Result<Arc<Report>> {
        let bytes: rustis::resp::BulkString = self.rustis.get(&self.key).await?;
        Ok(Arc::new(serde_json::from_slice(bytes.as_bytes())?))
    }

    async fn by_amalgam(&self) -> Result<Arc<Report>> {
        Ok(self.amalgam.try_get(&self.key).await?.ok_or("a miss")?)
    }
}

async fn ours(region: &Region<Report>) -> Result<Arc<Report>> {
    Ok(region.get(KEY).await?.ok_or("a miss")?)
}

/// Nanoseconds of one call, over `calls` of them.
async fn time<T, R>(calls: u32, call: impl Fn() -> R) -> Result<f64>
where
    R: Future<Output = Result<T>>,
{
    let started = Instant::now();
    for _ in 0..calls {
        std::hint::black_box(call().await?);
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(calls))
}

/// Allocations of one call, over a few of them. A hit asks nobody, so it is there at the first poll.
fn allocations<T, R>(call: impl Fn() -> R) -> Result<f64>
where
    R: Future<Output = Result<T>>,
{
    let mut failed = None;
    let counted = allocation_counter::measure(|| {
        for _ in 0..COUNTED {
            match call().now_or_never() {
                Some(Ok(value)) => drop(std::hint::black_box(value)),
                Some(Err(error)) => failed = Some(error),
                None => failed = Some("a hit had to wait".into()),
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(counted.count_total as f64 / COUNTED as f64),
    }
}

const LIFETIME: Duration = Duration::from_mins(5);
const HITS: u32 = 500_000;
/// Of peers that decode the value each time.
const DECODED_HITS: u32 = 50_000;
const COUNTED: u32 = 1_000;
