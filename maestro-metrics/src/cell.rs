//! Where numbers live. A counter is one cache line, and where it is asked for one for each thread
//! (`stripes.rs`); a histogram is one block of lines for each of a few shards, so that threads do not
//! fight over lines.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::catalogue::{Description, Unit};
use crate::propagation::{SpanId, TraceContext, TraceId};
use crate::stripes::Stripes;

/// Two 64-byte lines: x86 prefetches lines in pairs, and some ARM cores have lines of 128 bytes.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Integer {
    shared: AtomicU64,
    /// Made for the first handle that counts on them.
    stripes: OnceLock<Arc<Stripes>>,
}

impl Integer {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.shared.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn stripes(&self) -> &Arc<Stripes> {
        self.stripes.get_or_init(Arc::default)
    }

    pub(crate) fn value(&self) -> u64 {
        let striped = self.stripes.get().map_or(0, |stripes| stripes.value());
        self.shared.load(Ordering::Relaxed).wrapping_add(striped)
    }

    /// The value; 0 from now on.
    pub(crate) fn take(&self) -> u64 {
        let striped = self.stripes.get().map_or(0, |stripes| stripes.take());
        self.shared.swap(0, Ordering::Relaxed).wrapping_add(striped)
    }
}

/// A floating-point number kept as its bits.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    #[inline]
    pub(crate) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn add(&self, delta: f64) {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let next = (f64::from_bits(now) + delta).to_bits();
            match self
                .0
                .compare_exchange_weak(now, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
    }

    pub(crate) fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// The value; 0 from now on.
    pub(crate) fn take(&self) -> f64 {
        f64::from_bits(self.0.swap(0f64.to_bits(), Ordering::Relaxed))
    }
}

/// What one series says at a scrape.
#[derive(Clone, Debug)]
pub enum Sample {
    Integer(u64),
    Number(f64),
    Histogram(Box<Snapshot>),
}

impl Sample {
    /// Two series under one name and the same labels (two pools of one name) are one series.
    pub(crate) fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => *a += b,
            (Self::Histogram(a), Self::Histogram(b)) if a.buckets.len() == b.buckets.len() => {
                for (a, b) in a.buckets.iter_mut().zip(&b.buckets) {
                    *a += b;
                }
                a.sum += b.sum;
            }
            (Self::Number(a), Self::Number(b)) => *a += b,
            (Self::Number(a), Self::Integer(b)) => *a += *b as f64,
            (this @ Self::Integer(_), Self::Number(b)) => {
                if let Self::Integer(a) = *this {
                    *this = Self::Number(a as f64 + b);
                }
            }
            _ => {}
        }
    }
}

/// A histogram at one moment. `buckets` are not cumulative; the last one has no upper bound.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) buckets: Vec<u64>,
    pub(crate) sum: f64,
    pub(crate) exemplars: Vec<Option<Exemplar>>,
}

impl Snapshot {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// A trace that fell into a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exemplar {
    pub(crate) value: f64,
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) at: SystemTime,
}

/// Slot 0 is the sum, slots 1.. are the buckets; 15 of them fit the first block of lines.
const SLOTS: usize = 16;

#[repr(align(128))]
#[derive(Debug, Default)]
struct Block([AtomicU64; SLOTS]);

/// Sum and buckets are whole numbers of the unit's smallest part (nanoseconds), so that an
/// observation is two plain additions. The sum wraps after 584 years of observed time in one
/// series, which Prometheus reads as a restart.
#[derive(Debug)]
pub(crate) struct HistogramCells {
    bounds: Box<[u64]>,
    scale: f64,
    unit: Unit,
    /// A shard exists once a thread has used it: a series that one thread touches costs one.
    shards: Box<[OnceLock<Box<[Block]>>]>,
    exemplars: OnceLock<Box<[Mutex<Option<Exemplar>>]>>,
}

impl HistogramCells {
    pub(crate) fn new(description: &Description) -> Self {
        let scale = description.unit.scale();
        Self {
            bounds: description
                .buckets
                .iter()
                .map(|bound| whole(bound * scale))
                .collect(),
            scale,
            unit: description.unit,
            shards: (0..shard_count()).map(|_| OnceLock::new()).collect(),
            exemplars: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn observe(&self, value: f64) {
        if !value.is_nan() {
            self.record(whole(value * self.scale));
        }
    }

    #[inline]
    pub(crate) fn observe_duration(&self, duration: Duration) -> u64 {
        let value = if self.unit == Unit::Seconds {
            u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
        } else {
            whole(duration.as_secs_f64() * self.scale)
        };
        self.record(value);
        value
    }

    #[inline]
    fn record(&self, value: u64) {
        let slot = 1 + self.bounds.partition_point(|bound| *bound < value);
        // The count of shards is a power of two.
        let shard = &self.shards[shard_of_thread() & (self.shards.len() - 1)];
        let blocks = shard.get_or_init(|| self.blocks());
        blocks[0].0[0].fetch_add(value, Ordering::Relaxed);
        blocks[slot / SLOTS].0[slot % SLOTS].fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    fn blocks(&self) -> Box<[Block]> {
        let slots = self.bounds.len() + 2;
        (0..slots.div_ceil(SLOTS))
            .map(|_| Block::default())
            .collect()
    }

    /// Keeps the latest trace of the value's bucket; when another thread is just doing the same,
    /// that one is as good.
    pub(crate) fn exemplar(&self, value: u64, trace: &TraceContext) {
        let slots = self
            .exemplars
            .get_or_init(|| (0..=self.bounds.len()).map(|_| Mutex::new(None)).collect());
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(mut slot) = slots[bucket].try_lock() {
            *slot = Some(Exemplar {
                value: value as f64 / self.scale,
                trace: trace.trace_id(),
                span: trace.span_id(),
                at: SystemTime::now(),
            });
        }
    }

    /// Moves all observations to another histogram of the same metric.
    pub(crate) fn drain_into(&self, other: &Self) {
        for (from, to) in self.shards.iter().zip(&other.shards) {
            let Some(from) = from.get() else { continue };
            let to = to.get_or_init(|| other.blocks());
            let slots = from
                .iter()
                .zip(to)
                .flat_map(|(from, to)| from.0.iter().zip(&to.0));
            for (from, to) in slots {
                to.fetch_add(from.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut sum = 0u64;
        let mut buckets = vec![0u64; self.bounds.len() + 1];
        for blocks in self.shards.iter().filter_map(OnceLock::get) {
            sum = sum.wrapping_add(blocks[0].0[0].load(Ordering::Relaxed));
            for (bucket, count) in buckets.iter_mut().enumerate() {
                let slot = bucket + 1;
                *count += blocks[slot / SLOTS].0[slot % SLOTS].load(Ordering::Relaxed);
            }
        }
        let exemplars = self.exemplars.get().map_or_else(Vec::new, |slots| {
            slots.iter().map(|slot| *slot.lock()).collect()
        });
        Snapshot {
            buckets,
            sum: sum as f64 / self.scale,
            exemplars,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates at both ends, which is what is wanted"
)]
fn whole(value: f64) -> u64 {
    (value + 0.5) as u64
}

/// Twice the cores, so that two threads rarely share one, and 16 at most, which bounds the memory
/// of a series.
fn shard_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(4, usize::from);
        (2 * cores).next_power_of_two().clamp(2, 16)
    })
}

#[inline]
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) & 0xFFFF);
        }
        shard.get()
    })
}
