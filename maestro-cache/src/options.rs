//! Building a region: its type, lifetimes and behaviour in trouble are fixed once.

use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Cache;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind};
use crate::key;
use crate::region::Region;

/// What a region does while Redis is away and process memory holds nothing current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenDown {
    /// Call the loader, at most so many at a time; the origin is protected, callers wait their turn.
    Load {
        /// Loads at a time in this process while Redis is away; at least 1.
        at_most: usize,
    },
    /// Serve a stale value at once where there is one, else load as above.
    ServeStale {
        /// Loads at a time in this process while Redis is away; at least 1.
        at_most: usize,
    },
    /// Fail with [`ErrorKind::Unavailable`] unless process memory holds a current value.
    Fail,
}

/// What is fixed for a region.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) stale_for: Duration,
    pub(crate) absent_ttl: Duration,
    pub(crate) local_ttl: Duration,
    pub(crate) jitter: f64,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) load_timeout: Duration,
    pub(crate) retry_failed_after: Duration,
    pub(crate) max_loads: usize,
    pub(crate) max_value_bytes: usize,
    pub(crate) codec: Codec,
    pub(crate) compress_above: Option<usize>,
    pub(crate) memory_factor: u64,
    pub(crate) when_down: WhenDown,
    pub(crate) early_refresh: Duration,
    pub(crate) one_load: Option<Duration>,
}

impl Options {
    /// How long a removal is remembered on the server: longer than any load that began before it
    /// may still store.
    pub(crate) fn tombstone(&self) -> Duration {
        self.load_timeout + TOMBSTONE_MARGIN
    }
}

/// Beyond the longest load: the calls around it, and clocks of hosts that are a little apart.
const TOMBSTONE_MARGIN: Duration = Duration::from_secs(30);
/// Redis counts physical lifetimes in signed milliseconds; a year is longer than any cache.
const MAX_TTL: Duration = Duration::from_hours(366 * 24);

/// Builds a [`Region`]; made by [`Cache::region`].
///
/// | option | type | default | meaning |
/// | --- | --- | --- | --- |
/// | `ttl` | duration | `MAESTRO_CACHE_DEFAULT_TTL` | lifetime of a value |
/// | `stale_for` | duration | 0 | how long beyond it a value may stand in for a failed load |
/// | `absent_ttl` | duration | 30 s, at most `ttl` | how long it is remembered that there is no value |
/// | `local_ttl` | duration | `MAESTRO_CACHE_LOCAL_TTL` | longest time in process memory |
/// | `jitter` | 0.0 to 0.5 | 0.1 | share by which lifetimes are shortened at random |
/// | `soft_timeout` | duration | none | wait for a load before a stale value is served instead |
/// | `load_timeout` | duration | 10 s | a load is given up |
/// | `retry_failed_after` | duration | 1 s | pause before a failed load is tried again while a stale value serves |
/// | `max_loads` | count | 64 | loads at a time in this process |
/// | `max_value_bytes` | bytes | 1 MiB | larger values are refused |
/// | `codec` | [`Codec`] | `Json` | how values are written; both are read |
/// | `compress_above` | bytes | none | larger values are stored compressed |
/// | `memory_factor` | number | 4 | bytes of memory counted for a byte of stored value |
/// | `when_down` | [`WhenDown`] | `Load { at_most: 16 }` | what to do while Redis is away |
/// | `early_refresh` | duration | 0: never | how long before its end a value in use is loaded anew in the background |
/// | `one_load` | duration | none | how long a process waits for another one that loads the same value |
///
/// ```no_run
/// use std::time::Duration;
/// use maestro_cache::{Codec, WhenDown};
///
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Price { cents: u64 }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Report { rows: Vec<u64> }
/// # fn build(cache: &maestro_cache::Cache) -> Result<(), maestro_cache::Error> {
/// // Small, read all the time, from an origin that is often slow: mostly nobody waits for it.
/// let prices = cache
///     .region::<Price>("price")
///     .ttl(Duration::from_mins(1))
///     .jitter(0.2)
///     .early_refresh(Duration::from_secs(20))
///     .stale_for(Duration::from_hours(6))
///     .soft_timeout(Duration::from_millis(200))
///     .retry_failed_after(Duration::from_secs(5))
///     .absent_ttl(Duration::from_secs(10))
///     .when_down(WhenDown::ServeStale { at_most: 8 })
///     .build()?;
///
/// // Large and dear: loaded by one process at a time, compressed, and not held in memory for long.
/// let reports = cache
///     .region::<Report>("report")
///     .codec(Codec::MessagePack)
///     .compress_above(4 * 1024)
///     .max_value_bytes(8 * 1024 * 1024)
///     .local_ttl(Duration::from_secs(5))
///     .memory_factor(8)
///     .max_loads(4)
///     .load_timeout(Duration::from_mins(1))
///     .one_load(Duration::from_secs(30))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct RegionBuilder<T> {
    cache: Cache,
    name: String,
    options: Options,
    marker: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> RegionBuilder<T> {
    pub(crate) fn new(cache: Cache, name: &str) -> Self {
        let config = cache.config();
        let options = Options {
            ttl: config.default_ttl,
            stale_for: Duration::ZERO,
            absent_ttl: Duration::from_secs(30),
            local_ttl: config.local_ttl,
            jitter: 0.1,
            soft_timeout: None,
            load_timeout: Duration::from_secs(10),
            retry_failed_after: Duration::from_secs(1),
            max_loads: 64,
            max_value_bytes: 1 << 20,
            codec: Codec::default(),
            compress_above: None,
            // Measured: decoded values take 10 to 84 times their JSON when deeply nested, and about
            // as much as their JSON when they are mostly text.
            memory_factor: 4,
            when_down: WhenDown::Load { at_most: 16 },
            early_refresh: Duration::ZERO,
            one_load: None,
        };
        Self {
            cache,
            name: name.to_owned(),
            options,
            marker: PhantomData,
        }
    }

    /// Lifetime of a value; 1 ms to a year.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.options.ttl = ttl;
        self
    }

    /// How long beyond its lifetime a value may stand in when a load fails or takes too long.
    pub fn stale_for(mut self, stale_for: Duration) -> Self {
        self.options.stale_for = stale_for;
        self
    }

    /// How long it is remembered that a loader found nothing.
    pub fn absent_ttl(mut self, ttl: Duration) -> Self {
        self.options.absent_ttl = ttl;
        self
    }

    /// Longest time a value is served from process memory; zero keeps none there.
    pub fn local_ttl(mut self, ttl: Duration) -> Self {
        self.options.local_ttl = ttl;
        self
    }

    /// Share of a lifetime, 0.0 to 0.5, by which it is shortened at random, so that values stored
    /// together do not expire together.
    pub fn jitter(mut self, share: f64) -> Self {
        self.options.jitter = share;
        self
    }

    /// How long callers wait for a load before they are given a stale value; the load goes on.
    pub fn soft_timeout(mut self, timeout: Duration) -> Self {
        self.options.soft_timeout = Some(timeout);
        self
    }

    /// When a load is given up; 1 ms to 10 min.
    pub fn load_timeout(mut self, timeout: Duration) -> Self {
        self.options.load_timeout = timeout;
        self
    }

    /// How long a stale value serves after a failed load before the load is tried again.
    pub fn retry_failed_after(mut self, pause: Duration) -> Self {
        self.options.retry_failed_after = pause;
        self
    }

    /// Loads at a time in this process; at least 1.
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.options.max_loads = loads;
        self
    }

    /// Largest value in bytes, before compression; at least 1.
    pub fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.options.max_value_bytes = bytes;
        self
    }

    /// How values are written. What is stored already is read in either, so it can be changed at any
    /// time, once every process reads it.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.options.codec = codec;
        self
    }

    /// Stores values of more than so many bytes compressed (zlib), if that makes them smaller.
    pub fn compress_above(mut self, bytes: usize) -> Self {
        self.options.compress_above = Some(bytes);
        self
    }

    /// Bytes of process memory counted for a byte of stored value; at least 1.
    pub fn memory_factor(mut self, factor: u64) -> Self {
        self.options.memory_factor = factor;
        self
    }

    /// What to do while Redis is away.
    pub fn when_down(mut self, when_down: WhenDown) -> Self {
        self.options.when_down = when_down;
        self
    }

    /// How long before its end a value that is in use is loaded anew in the background, while it is
    /// served on; zero never does. Each process draws its moment at random from the second half of
    /// that time, so that mostly one of them loads. Less than `ttl`.
    pub fn early_refresh(mut self, before: Duration) -> Self {
        self.options.early_refresh = before;
        self
    }

    /// Lets one process load a value while the others wait for what it stores, at most for this long;
    /// then they load it themselves. Without it each process loads once. Costs a round trip a load.
    pub fn one_load(mut self, wait: Duration) -> Self {
        self.options.one_load = Some(wait);
        self
    }

    /// Builds the region.
    ///
    /// Fails with [`ErrorKind::Config`] when the name or an option is out of bounds, or when the
    /// region was built before with another type or other options.
    pub fn build(mut self) -> Result<Region<T>, Error> {
        key::check_region(&self.name)?;
        if let Some(problem) = problem(&self.options) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("region `{}` cannot be built: {problem}", self.name),
            ));
        }
        self.options.absent_ttl = self.options.absent_ttl.min(self.options.ttl);
        self.cache.open_region(&self.name, self.options)
    }
}

fn problem(options: &Options) -> Option<&'static str> {
    let ttl = Duration::from_millis(1)..=MAX_TTL;
    let load = Duration::from_millis(1)..=Duration::from_mins(10);
    let at_most = match options.when_down {
        WhenDown::Load { at_most } | WhenDown::ServeStale { at_most } => at_most,
        WhenDown::Fail => 1,
    };
    match options {
        o if !ttl.contains(&o.ttl) => Some("`ttl` must be 1 ms to a year"),
        o if !ttl.contains(&o.absent_ttl) => Some("`absent_ttl` must be 1 ms to a year"),
        o if o.stale_for > MAX_TTL => Some("`stale_for` must be at most a year"),
        o if !(0.0..=0.5).contains(&o.jitter) => Some("`jitter` must be 0.0 to 0.5"),
        o if !load.contains(&o.load_timeout) => Some("`load_timeout` must be 1 ms to 10 min"),
        o if o.max_loads == 0 || at_most == 0 => Some("loads at a time must be at least 1"),
        o if o.max_value_bytes == 0 => Some("`max_value_bytes` must be at least 1"),
        o if !o.early_refresh.is_zero() && o.early_refresh >= o.ttl => {
            Some("`early_refresh` must be less than `ttl`")
        }
        o if o.memory_factor == 0 => Some("`memory_factor` must be at least 1"),
        _ => None,
    }
}
