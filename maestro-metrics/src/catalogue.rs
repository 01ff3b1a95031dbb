//! Metrics as data: what a crate measures, declared once, from which registration, documentation,
//! dashboards and rules come.

use std::fmt;
use std::marker::PhantomData;

use crate::handle::{Counter, Gauge, Histogram};

/// One metric, declared as a constant. `K` is the handle that records it, `N` its number of labels.
///
/// ```
/// use maestro_metrics::{Counter, Histogram, Metric};
///
/// const REQUESTS: Metric<Counter, 2> =
///     Metric::counter("maestro_cache_requests_total", "Lookups by level and result.")
///         .labels(["level", "result"]);
/// const DURATION: Metric<Histogram, 1> =
///     Metric::seconds("maestro_cache_operation_duration_seconds", "Time of one operation.")
///         .labels(["operation"]);
/// const UPLOAD: Metric<Histogram> = Metric::bytes("orders_upload_bytes", "Size of one upload.");
/// const BATCH: Metric<Histogram> =
///     Metric::histogram("orders_batch_orders", "Orders in one batch.", &[1.0, 10.0, 100.0]);
/// const PACKING: Metric<Histogram> = Metric::seconds("orders_packing_seconds", "Time to pack one.")
///     .buckets(&[60.0, 300.0, 900.0]); // people do it
/// const CALLS: Metric<Counter, 1> = Metric::counter("rpc_calls_total", "Calls by method.")
///     .labels(["method"])
///     .limit(200) // the methods after that are counted under `_overflow`
///     .development(); // its convention may still change
/// ```
///
/// The constructors refuse a name that breaks the naming rules; in a `const` that is a compile
/// error.
pub struct Metric<K, const N: usize = 0> {
    labels: [&'static str; N],
    parts: Parts,
    handle: PhantomData<fn() -> K>,
}

#[derive(Clone, Copy)]
struct Parts {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
    buckets: &'static [f64],
    limit: usize,
    top: Option<Top>,
    stability: Stability,
}

/// What kind of series a metric makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only grows; starts at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

impl Kind {
    /// The word in the exposition formats.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The unit of a metric's values; it is also the suffix of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// A count of things, or a state.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share from 0 to 1.
    Ratio,
}

impl Unit {
    /// The word in names and in `# UNIT` lines; empty for [`Unit::None`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
        }
    }

    /// Cells hold whole numbers; this many of them make one unit (nanoseconds for seconds).
    pub(crate) const fn scale(self) -> f64 {
        match self {
            Self::Seconds => 1e9,
            Self::Bytes => 1.0,
            Self::None | Self::Ratio => 1e6,
        }
    }
}

/// How far a name can be relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stability {
    /// Changes only with a major version.
    Stable,
    /// Follows a semantic convention that is still in development
    /// ([`SEMANTIC_CONVENTIONS`]).
    Development,
}

/// The version of the OpenTelemetry semantic conventions that names in development follow.
pub const SEMANTIC_CONVENTIONS: &str = "1.44";

/// A label whose values are kept for the busiest only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// The label.
    pub label: &'static str,
    /// How many of its values keep a series of their own.
    pub keep: usize,
}

/// Series one family may have before new label values are counted under `_overflow`.
pub const DEFAULT_SERIES_LIMIT: usize = 1_000;

/// Upper bounds of duration buckets, in seconds: those of the semantic conventions for HTTP and
/// messaging, and 2 s, where the platform alerts.
pub const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0,
];

/// Upper bounds of duration buckets for servers that usually answer in a millisecond, in seconds.
pub const FAST_DURATION_BUCKETS: &[f64] =
    &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Upper bounds of buckets for sizes, in bytes: powers of four from 64 B to 64 MiB.
pub const SIZE_BUCKETS: &[f64] = &[
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

impl Metric<Counter> {
    /// A count of events. The name ends in `_total`.
    ///
    /// # Panics
    /// If the name breaks the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        assert!(ends_with(name, "_total"), "a counter's name ends in _total");
        Self::new(name, help, Kind::Counter, &[])
    }
}

impl Metric<Gauge> {
    /// A value that goes up and down.
    ///
    /// # Panics
    /// If the name breaks the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        assert!(
            !ends_with(name, "_total"),
            "only a counter's name ends in _total"
        );
        Self::new(name, help, Kind::Gauge, &[])
    }
}

impl Metric<Histogram> {
    /// Durations, with [`DURATION_BUCKETS`]. The name ends in `_seconds`.
    ///
    /// # Panics
    /// If the name breaks the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn seconds(name: &'static str, help: &'static str) -> Self {
        assert!(
            ends_with(name, "_seconds"),
            "a duration's name ends in _seconds"
        );
        Self::new(name, help, Kind::Histogram, DURATION_BUCKETS)
    }

    /// Sizes, with [`SIZE_BUCKETS`]. The name ends in `_bytes`.
    ///
    /// # Panics
    /// If the name breaks the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn bytes(name: &'static str, help: &'static str) -> Self {
        assert!(ends_with(name, "_bytes"), "a size's name ends in _bytes");
        Self::new(name, help, Kind::Histogram, SIZE_BUCKETS)
    }

    /// Counts of things (messages in a batch), with the given buckets. Six decimals are kept.
    ///
    /// # Panics
    /// If the name or the buckets break the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn histogram(
        name: &'static str,
        help: &'static str,
        buckets: &'static [f64],
    ) -> Self {
        assert!(
            !ends_with(name, "_total"),
            "only a counter's name ends in _total"
        );
        Self::new(name, help, Kind::Histogram, buckets).buckets(buckets)
    }
}

impl<K> Metric<K> {
    const fn new(
        name: &'static str,
        help: &'static str,
        kind: Kind,
        buckets: &'static [f64],
    ) -> Self {
        assert!(is_name(name), "a metric's name is [a-z][a-z0-9_]*");
        assert!(!help.is_empty(), "a metric says what it measures");
        let unit = if ends_with(name, "_seconds") || ends_with(name, "_seconds_total") {
            Unit::Seconds
        } else if ends_with(name, "_bytes") || ends_with(name, "_bytes_total") {
            Unit::Bytes
        } else if ends_with(name, "_ratio") {
            Unit::Ratio
        } else {
            Unit::None
        };
        Self {
            labels: [],
            parts: Parts {
                name,
                kind,
                unit,
                help,
                buckets,
                limit: DEFAULT_SERIES_LIMIT,
                top: None,
                stability: Stability::Stable,
            },
            handle: PhantomData,
        }
    }

    /// The names of its labels. Values must come from a bounded set; what runs away ends in
    /// `_overflow`.
    ///
    /// # Panics
    /// If a name breaks the rules; in a `const` this is a compile error.
    #[must_use]
    pub const fn labels<const N: usize>(self, labels: [&'static str; N]) -> Metric<K, N> {
        let mut i = 0;
        while i < N {
            assert!(is_name(labels[i]), "a label's name is [a-z][a-z0-9_]*");
            assert!(
                !equal(labels[i], "le"),
                "`le` is the label of histogram buckets"
            );
            assert!(
                !equal(labels[i], "service")
                    && !equal(labels[i], "team")
                    && !equal(labels[i], "environment"),
                "service, team and environment are on every series already"
            );
            i += 1;
        }
        Metric {
            labels,
            parts: self.parts,
            handle: PhantomData,
        }
    }
}

impl<K, const N: usize> Metric<K, N> {
    /// Series this family may have before new label values are counted under `_overflow`;
    /// [`DEFAULT_SERIES_LIMIT`] otherwise.
    #[must_use]
    pub const fn limit(mut self, series: usize) -> Self {
        self.parts.limit = series;
        self
    }

    /// Keeps a series of its own for the busiest `keep` values of `label` (tenants); the others are
    /// counted together under `_overflow`.
    ///
    /// Busy is what is looked up often ([`Family::with`](crate::Family::with)), so resolve handles
    /// as the work comes instead of holding them. A value that becomes clearly busier than one of
    /// those kept takes its place, once in 10 s on average: its series begins at 0, and the other
    /// one ends, with what was counted until then, so that rates stay right and no event is counted
    /// twice. A gauge that is raised and lowered adds up under `_overflow`; one that is set does not,
    /// and is better observed ([`Registry::observe`](crate::Registry::observe)): there the largest
    /// values are kept and the others added up.
    ///
    /// ```
    /// use maestro_metrics::{Counter, Metric};
    ///
    /// const ORDERS: Metric<Counter, 2> = Metric::counter("orders_total", "Orders by tenant.")
    ///     .labels(["tenant", "result"])
    ///     .top("tenant", 20);
    /// ```
    ///
    /// # Panics
    /// If there is no such label, or none is kept; in a `const` this is a compile error.
    #[must_use]
    pub const fn top(mut self, label: &'static str, keep: usize) -> Self {
        let mut i = 0;
        let mut found = false;
        while i < N {
            found = found || equal(self.labels[i], label);
            i += 1;
        }
        assert!(found, "`top` names one of the metric's labels");
        assert!(keep > 0, "`top` keeps at least one value");
        self.parts.top = Some(Top { label, keep });
        self
    }

    /// Marks a name that follows a semantic convention in development.
    #[must_use]
    pub const fn development(mut self) -> Self {
        self.parts.stability = Stability::Development;
        self
    }

    /// The metric's name.
    pub const fn name(&self) -> &'static str {
        self.parts.name
    }

    /// The same as data without types, as a [`Catalogue`] lists it.
    pub const fn describe(&'static self) -> Description {
        let Parts {
            name,
            kind,
            unit,
            help,
            buckets,
            limit,
            top,
            stability,
        } = self.parts;
        Description {
            name,
            kind,
            unit,
            help,
            labels: &self.labels,
            buckets,
            limit,
            top,
            stability,
        }
    }
}

impl<const N: usize> Metric<Histogram, N> {
    /// Other upper bounds, growing, without infinity.
    ///
    /// # Panics
    /// If they do not grow; in a `const` this is a compile error.
    #[must_use]
    pub const fn buckets(mut self, bounds: &'static [f64]) -> Self {
        assert!(!bounds.is_empty(), "a histogram has a bound");
        let mut i = 0;
        while i < bounds.len() {
            assert!(
                bounds[i].is_finite() && bounds[i] >= 0.0,
                "bounds are finite and not negative"
            );
            assert!(i == 0 || bounds[i - 1] < bounds[i], "bounds grow");
            i += 1;
        }
        self.parts.buckets = bounds;
        self
    }
}

impl<K, const N: usize> fmt::Debug for Metric<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric")
            .field("name", &self.parts.name)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// A metric as data without types.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Description {
    /// The name, `_total` included.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
    /// What it measures.
    pub help: &'static str,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
    /// Series it may have.
    pub limit: usize,
    /// The label of which only the busiest values are kept.
    pub top: Option<Top>,
    /// How far the name can be relied upon.
    pub stability: Stability,
}

impl Description {
    pub(crate) fn label(&self, index: usize) -> &'static str {
        self.labels.get(index).copied().unwrap_or_default()
    }
}

/// The metrics of one crate.
///
/// ```
/// use maestro_metrics::{Catalogue, Counter, Metric};
///
/// const PUBLISHED: Metric<Counter> = Metric::counter("orders_published_total", "Orders published.");
/// pub const CATALOGUE: Catalogue = Catalogue::new("orders", &[PUBLISHED.describe()]);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Catalogue {
    /// The crate.
    pub owner: &'static str,
    /// Its metrics, in the order of the documentation.
    pub metrics: &'static [Description],
}

impl Catalogue {
    /// The metrics of a crate.
    #[must_use]
    pub const fn new(owner: &'static str, metrics: &'static [Description]) -> Self {
        Self { owner, metrics }
    }
}

const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || !bytes[0].is_ascii_lowercase() {
        return false;
    }
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_lowercase() || bytes[i].is_ascii_digit() || bytes[i] == b'_') {
            return false;
        }
        i += 1;
    }
    true
}

const fn ends_with(text: &str, end: &str) -> bool {
    let (text, end) = (text.as_bytes(), end.as_bytes());
    if end.len() > text.len() {
        return false;
    }
    let start = text.len() - end.len();
    let mut i = 0;
    while i < end.len() {
        if text[start + i] != end[i] {
            return false;
        }
        i += 1;
    }
    true
}

const fn equal(a: &str, b: &str) -> bool {
    a.len() == b.len() && ends_with(a, b)
}
