//! All metrics of a process, in one place to scrape.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use maestro_config::Identity;
use parking_lot::RwLock;

use crate::catalogue::{Description, Metric};
use crate::cell::Sample;
use crate::encode::{self, Foreign, ForeignFamily, Format};
use crate::family::{Collect, Family, Labels, Observable, Observed, render};
use crate::handle::{Counter, Handle};
use crate::metrics::{CONFLICTS, OVERFLOWS};

/// The metrics of a service. A clone is the same registry.
///
/// Every client takes one; a client that is given none makes its own
/// ([`Registry::detached`]), records into it from birth, and can be joined to a service's registry
/// later ([`Registry::join`]) without losing what it counted.
///
/// ```
/// use maestro_metrics::{Counter, Format, Metric, Registry};
///
/// const PLACED: Metric<Counter> = Metric::counter("orders_placed_total", "Orders placed.");
///
/// let client = Registry::detached(); // of a client that was given none
/// client.metric(&PLACED).increment();
///
/// let service = Registry::detached();
/// service.join(&client);
///
/// // What `/metrics` answers; the routes of feature `http` do this.
/// let mut body = Vec::new();
/// service.encode(Format::OpenMetrics, &mut body);
/// assert!(Format::OpenMetrics.content_type().starts_with("application/openmetrics-text"));
/// assert!(String::from_utf8(body)?.contains("orders_placed_total 1"));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

/// What goes under each name.
type Families = BTreeMap<&'static str, Vec<Arc<dyn Collect>>>;

struct Inner {
    /// Labels of every series, and as they are written.
    constant: Vec<(&'static str, String)>,
    rendered: Box<str>,
    families: RwLock<BTreeMap<&'static str, Entry>>,
    joined: RwLock<Vec<Registry>>,
    foreign: RwLock<Vec<Arc<dyn Foreign>>>,
    overflows: Family<Counter, 2>,
}

struct Entry {
    /// The family with its type, for the next one who asks for it.
    typed: Box<dyn Any + Send + Sync>,
    collect: Arc<dyn Collect>,
}

impl Registry {
    /// The registry of a service: its labels `service`, `team` and `environment` are on every
    /// series (scrape it with `honor_labels: true`).
    pub fn new(identity: &Identity) -> Self {
        Self::with_constant(vec![
            ("service", identity.service().as_str().to_owned()),
            ("team", identity.team().to_owned()),
            ("environment", identity.deployment().as_str().to_owned()),
        ])
    }

    /// A registry without constant labels: for tests, and for a client that is given none.
    pub fn detached() -> Self {
        Self::with_constant(Vec::new())
    }

    fn with_constant(labels: Vec<(&'static str, String)>) -> Self {
        let overflows = Family::new(OVERFLOWS.describe(), None);
        let registry = Self {
            inner: Arc::new(Inner {
                rendered: render(
                    labels.iter().map(|(name, _)| *name),
                    labels.iter().map(|(_, value)| value.as_str()),
                )
                .into(),
                constant: labels,
                families: RwLock::new(BTreeMap::new()),
                joined: RwLock::new(Vec::new()),
                foreign: RwLock::new(Vec::new()),
                overflows: overflows.clone(),
            }),
        };
        registry.inner.families.write().insert(
            OVERFLOWS.name(),
            Entry {
                typed: Box::new(overflows.clone()),
                collect: Arc::new(overflows),
            },
        );
        registry
    }

    /// The handle of a metric without labels. Asking twice gives the same cell.
    pub fn metric<K: Handle>(&self, metric: &'static Metric<K>) -> K {
        self.family(metric).with([])
    }

    /// The family of a metric with labels. Asking twice gives the same family, so two clients of
    /// one kind share their series.
    ///
    /// A metric of the same name that was declared differently (kind, labels, buckets) is a
    /// mistake in code: it is logged, counted in `maestro_metrics_conflicts_total`, and the family
    /// returned works but is not exposed.
    pub fn family<K: Handle, const N: usize>(&self, metric: &'static Metric<K, N>) -> Family<K, N> {
        let description = metric.describe();
        self.entry(&description, || {
            Family::<K, N>::new(description, Some(self.inner.overflows.clone()))
        })
    }

    /// Exposes a value that is read at every scrape, for what somebody else keeps already (a pool's
    /// size). `read` must not block, and returns `None` once its source is gone; hold the source by
    /// a weak reference. Sources with the same label values are added up.
    ///
    /// ```
    /// use std::sync::{Arc, Weak};
    /// use maestro_metrics::{Gauge, Metric, Registry};
    ///
    /// const SIZE: Metric<Gauge, 1> = Metric::gauge("pool_size", "Connections.").labels(["pool"]);
    /// let registry = Registry::detached();
    /// let pool = Arc::new(7usize);
    /// let weak = Arc::downgrade(&pool);
    /// registry.observe(&SIZE, ["main"], move || weak.upgrade().map(|pool| *pool as f64));
    /// ```
    pub fn observe<K: Observable, const N: usize>(
        &self,
        metric: &'static Metric<K, N>,
        values: [&str; N],
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let description = metric.describe();
        let observed = self.entry(&description, || {
            SharedObserved(Arc::new(Observed::new(description)))
        });
        observed.0.add(&values, Arc::new(read));
    }

    /// Exposes another registry's metrics with this one's from now on, under this one's constant
    /// labels. Joining twice, or joining a registry to itself, changes nothing.
    pub fn join(&self, other: &Self) {
        let mut joined = self.inner.joined.write();
        if Arc::ptr_eq(&self.inner, &other.inner)
            || joined
                .iter()
                .any(|there| Arc::ptr_eq(&there.inner, &other.inner))
        {
            return;
        }
        joined.push(other.clone());
    }

    /// Writes all metrics in an exposition format to the end of `buffer`. Takes a moment for
    /// thousands of series: call it off the async threads.
    pub fn encode(&self, format: Format, buffer: &mut Vec<u8>) {
        let (families, foreign) = self.everything();
        encode::encode(
            format,
            &self.inner.rendered,
            families.values(),
            &foreign,
            buffer,
        );
    }

    /// All metrics as text, for tests and for reading.
    pub fn text(&self) -> String {
        let mut buffer = Vec::new();
        self.encode(Format::Text, &mut buffer);
        String::from_utf8(buffer).unwrap_or_default()
    }

    /// What is exposed under each name, and what others count. Where both have a name, ours is kept,
    /// and of two others the first.
    pub(crate) fn everything(&self) -> (Families, Vec<ForeignFamily>) {
        let mut families = BTreeMap::new();
        let mut seen = Vec::new();
        self.gather(&mut families, &mut seen);
        let sources: Vec<_> = seen
            .iter()
            .flat_map(|inner| inner.foreign.read().clone())
            .collect();
        let mut foreign: Vec<ForeignFamily> = Vec::new();
        for family in sources.iter().flat_map(|source| source.gather()) {
            let taken = families.contains_key(family.name.as_str())
                || foreign.iter().any(|other| other.name == family.name);
            if !taken {
                foreign.push(family);
            }
        }
        (families, foreign)
    }

    /// Labels of every series.
    #[cfg(any(feature = "prometheus", feature = "push"))]
    pub(crate) fn constant(&self) -> &[(&'static str, String)] {
        &self.inner.constant
    }

    #[cfg(feature = "prometheus")]
    pub(crate) fn add_foreign(&self, foreign: Arc<dyn Foreign>) {
        self.inner.foreign.write().push(foreign);
    }

    fn gather(&self, into: &mut Families, seen: &mut Vec<Arc<Inner>>) {
        // Registries may join each other in a ring; each counts once.
        if seen.iter().any(|there| Arc::ptr_eq(there, &self.inner)) {
            return;
        }
        seen.push(Arc::clone(&self.inner));
        for (name, entry) in &*self.inner.families.read() {
            into.entry(name)
                .or_default()
                .push(Arc::clone(&entry.collect));
        }
        let joined = self.inner.joined.read().clone();
        for registry in joined {
            registry.gather(into, seen);
        }
    }

    fn entry<T: Collect + Clone + 'static>(
        &self,
        description: &Description,
        make: impl FnOnce() -> T,
    ) -> T {
        let mut families = self.inner.families.write();
        if let Some(entry) = families.get(description.name) {
            if entry.collect.description() == description
                && let Some(typed) = entry.typed.downcast_ref::<T>()
            {
                return typed.clone();
            }
            drop(families);
            self.family(&CONFLICTS).with([description.name]).increment();
            tracing::error!(
                metric = description.name,
                "a metric was declared twice in different ways; the second is not exposed: give \
                 one of them another name"
            );
            return make();
        }
        let made = make();
        families.insert(
            description.name,
            Entry {
                typed: Box::new(made.clone()),
                collect: Arc::new(made.clone()),
            },
        );
        made
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("constant", &self.inner.constant)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct SharedObserved(Arc<Observed>);

impl Collect for SharedObserved {
    fn description(&self) -> &Description {
        self.0.description()
    }

    fn collect(&self, each: &mut dyn FnMut(Labels<'_>, Sample)) {
        self.0.collect(each);
    }
}

#[cfg(test)]
mod tests;
