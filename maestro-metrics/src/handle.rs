//! What a crate records with: cheap clones that share their cells, usable before any registry exists.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::catalogue::Description;
use crate::cell::{HistogramCells, Integer, Number};
use crate::propagation::TraceContext;
use crate::stripes::Stripes;

/// Counts events; only grows. A clone counts on the same cell.
///
/// ```
/// use maestro_metrics::{Counter, Metric, Registry};
///
/// const PLACED: Metric<Counter> = Metric::counter("orders_placed_total", "Orders placed.");
///
/// let placed = Registry::detached().metric(&PLACED);
/// placed.increment();
/// placed.add(2);
/// assert_eq!(placed.value(), 3);
/// ```
#[derive(Clone)]
pub struct Counter(pub(crate) Arc<Integer>);

impl Counter {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.0.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.add(n);
    }

    /// The count so far.
    pub fn value(&self) -> u64 {
        self.0.value()
    }

    /// A handle on the same count for the few places that come by millions of times a second. Takes
    /// 2 KiB, once for all of them.
    pub fn striped(&self) -> StripedCounter {
        StripedCounter {
            stripes: Arc::clone(self.0.stripes()),
            counter: self.clone(),
        }
    }
}

/// A [`Counter`] on which each of the first 16 threads counts on a cache line of its own, without an
/// atomic addition; those beyond them as on the counter. Made by [`Counter::striped`].
///
/// ```
/// use maestro_metrics::{Counter, Metric, Registry};
///
/// const HITS: Metric<Counter> = Metric::counter("orders_hits_total", "Orders found in memory.");
///
/// let hits = Registry::detached().metric(&HITS);
/// let hot = hits.striped();
/// hot.increment();
/// hot.add(2);
/// assert_eq!(hits.value(), 3);
/// assert_eq!(hot.value(), 3);
/// ```
#[derive(Clone)]
pub struct StripedCounter {
    counter: Counter,
    stripes: Arc<Stripes>,
}

impl StripedCounter {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        if !self.stripes.add(n) {
            self.counter.add(n);
        }
    }

    /// The count so far, of all handles.
    pub fn value(&self) -> u64 {
        self.counter.value()
    }
}

/// A value that goes up and down. A clone sets the same cell.
///
/// ```
/// use maestro_metrics::{Gauge, Metric, Registry};
///
/// const OPEN: Metric<Gauge> = Metric::gauge("orders_open", "Orders that are being worked on.");
///
/// let open = Registry::detached().metric(&OPEN);
/// {
///     // One more as long as this lives, however the work ends.
///     let _working = open.track();
///     assert!(open.value() > 0.5);
/// }
/// assert!(open.value() < 0.5);
///
/// open.increment(); // where beginning and end are in different places
/// open.decrement();
/// ```
#[derive(Clone)]
pub struct Gauge(pub(crate) Arc<Number>);

impl Gauge {
    /// Sets the value.
    #[inline]
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }

    /// Adds, or with a negative number subtracts.
    #[inline]
    pub fn add(&self, delta: f64) {
        self.0.add(delta);
    }

    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        self.0.add(1.0);
    }

    /// Subtracts one.
    #[inline]
    pub fn decrement(&self) {
        self.0.add(-1.0);
    }

    /// Adds one until the guard is dropped: things in flight are counted right also when their
    /// future is cancelled.
    #[must_use = "the gauge goes down again when the guard is dropped"]
    pub fn track(&self) -> Tracked {
        self.increment();
        Tracked(self.clone())
    }

    /// The value now.
    pub fn value(&self) -> f64 {
        self.0.value()
    }
}

/// Holds a [`Gauge`] up by one.
#[derive(Debug)]
pub struct Tracked(Gauge);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.decrement();
    }
}

/// Counts observations in buckets. A clone observes into the same cells.
///
/// ```
/// use maestro_metrics::{Context, Histogram, Metric, Registry};
///
/// const TIME: Metric<Histogram> = Metric::seconds("orders_packing_seconds", "Time to pack one order.");
///
/// let time = Registry::detached().metric(&TIME);
/// let start = std::time::Instant::now();
/// time.observe_duration(start.elapsed());
/// // From a slow bucket to a trace that shows why:
/// time.observe_traced(start.elapsed(), Context::current().trace());
/// assert_eq!(time.count(), 2);
/// println!("{} s in all", time.sum());
///
/// const SIZE: Metric<Histogram> = Metric::bytes("orders_upload_bytes", "Size of one upload.");
/// Registry::detached().metric(&SIZE).observe(4_096.0);
/// ```
#[derive(Clone)]
pub struct Histogram(pub(crate) Arc<HistogramCells>);

impl Histogram {
    /// Observes a value in the metric's unit. Negative values count as 0, NaN is ignored.
    #[inline]
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }

    /// Observes a duration; the metric's unit is seconds.
    #[inline]
    pub fn observe_duration(&self, duration: Duration) {
        self.0.observe_duration(duration);
    }

    /// Observes a duration and keeps the trace as the bucket's exemplar when it is sampled, so that
    /// a slow bucket leads to a trace that shows why.
    #[inline]
    pub fn observe_traced(&self, duration: Duration, trace: Option<&TraceContext>) {
        let value = self.0.observe_duration(duration);
        if let Some(trace) = trace.filter(|trace| trace.sampled()) {
            self.0.exemplar(value, trace);
        }
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.0.snapshot().count()
    }

    /// Sum of the observations so far, in the metric's unit.
    pub fn sum(&self) -> f64 {
        self.0.snapshot().sum
    }
}

macro_rules! debug {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )+};
}
debug!(Counter, StripedCounter, Gauge, Histogram);

/// The three handles; nothing outside this crate can be one, because the formats know no other.
pub trait Handle: sealed::Sealed + Clone + Send + Sync + 'static {}
impl Handle for Counter {}
impl Handle for Gauge {}
impl Handle for Histogram {}

pub(crate) mod sealed {
    use super::{Arc, Counter, Description, Gauge, Histogram, HistogramCells, Integer, Number};
    use crate::cell::Sample;

    pub trait Sealed {
        fn birth(description: &Description) -> Self;
        fn sample(&self) -> Sample;
        /// Whether anybody but the one who asks holds it.
        fn is_held(&self) -> bool;
        /// Moves what was recorded to another one of the same metric.
        fn drain_into(&self, other: &Self);

        /// What a scrape shows for the last time; what is recorded from then on stays.
        fn last_sample(&self, description: &Description) -> Sample
        where
            Self: Sized,
        {
            let last = Self::birth(description);
            self.drain_into(&last);
            last.sample()
        }
    }

    impl Sealed for Counter {
        fn birth(_: &Description) -> Self {
            Self(Arc::new(Integer::default()))
        }

        fn sample(&self) -> Sample {
            Sample::Integer(self.value())
        }

        fn is_held(&self) -> bool {
            Arc::strong_count(&self.0) > 1
        }

        fn drain_into(&self, other: &Self) {
            other.0.add(self.0.take());
        }
    }

    impl Sealed for Gauge {
        fn birth(_: &Description) -> Self {
            Self(Arc::new(Number::default()))
        }

        fn sample(&self) -> Sample {
            Sample::Number(self.value())
        }

        fn is_held(&self) -> bool {
            Arc::strong_count(&self.0) > 1
        }

        fn drain_into(&self, other: &Self) {
            other.0.add(self.0.take());
        }

        fn last_sample(&self, _: &Description) -> Sample {
            // What was raised will be lowered again.
            self.sample()
        }
    }

    impl Sealed for Histogram {
        fn birth(description: &Description) -> Self {
            Self(Arc::new(HistogramCells::new(description)))
        }

        fn sample(&self) -> Sample {
            Sample::Histogram(Box::new(self.0.snapshot()))
        }

        fn is_held(&self) -> bool {
            Arc::strong_count(&self.0) > 1
        }

        fn drain_into(&self, other: &Self) {
            self.0.drain_into(&other.0);
        }
    }
}
