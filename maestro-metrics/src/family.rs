//! A metric with labels: one handle for each set of label values, and a bound on how many.

use std::collections::HashSet;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;

use crate::catalogue::Description;
use crate::cell::Sample;
use crate::handle::{Counter, Handle};

/// The label value that stands for all that exceed a family's limit.
pub const OVERFLOW: &str = "_overflow";

/// A metric with `N` labels. A clone is the same family.
///
/// Resolve a handle once where the label values are known at start (`with` takes tens of
/// nanoseconds, a handle a few), and resolve as you go where they come with the work.
pub struct Family<K: Handle, const N: usize> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    description: Description,
    hasher: DefaultHashBuilder,
    table: RwLock<Table<K>>,
    /// Labels that ran over, `maestro_metrics_overflow_total`; the counter's own family has none.
    overflows: Option<Family<Counter, 2>>,
}

struct Table<K> {
    index: HashTable<usize>,
    /// Shared, so that a scrape reads it without holding the lock; grows by copy only while a scrape
    /// holds it.
    series: Arc<Vec<Arc<Series<K>>>>,
    /// Set once the limit is reached: the label with the most values, which is the one that ran
    /// away.
    runaway: Option<usize>,
}

struct Series<K> {
    hash: u64,
    values: Box<[Box<str>]>,
    /// `a="1",b="2"`, escaped, so that a scrape only copies.
    rendered: Box<str>,
    handle: K,
}

impl<K: Handle, const N: usize> Family<K, N> {
    pub(crate) fn new(description: Description, overflows: Option<Family<Counter, 2>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                description,
                hasher: DefaultHashBuilder::default(),
                table: RwLock::new(Table {
                    index: HashTable::new(),
                    series: Arc::new(Vec::new()),
                    runaway: None,
                }),
                overflows,
            }),
        }
    }

    /// The handle for these label values, in the order in which the metric declares its labels. The
    /// series exists from now on, with the value 0.
    ///
    /// Beyond the family's limit, the label with the most values is replaced by [`OVERFLOW`], the
    /// overflow is counted in `maestro_metrics_overflow_total`, and one log line names the label.
    pub fn with(&self, values: [&str; N]) -> K {
        let hash = self.hash(&values);
        if let Some(handle) = self.inner.table.read().find(hash, &values) {
            return handle.clone();
        }
        self.create(hash, values)
    }

    /// Series so far.
    pub fn series(&self) -> usize {
        self.inner.table.read().series.len()
    }

    #[cold]
    fn create(&self, hash: u64, values: [&str; N]) -> K {
        let description = &self.inner.description;
        let mut table = self.inner.table.write();
        if let Some(handle) = table.find(hash, &values) {
            return handle.clone();
        }
        if table.series.len() < description.limit || N == 0 {
            return table.insert(description, hash, &values);
        }
        let first = table.runaway.is_none();
        let runaway = match table.runaway {
            Some(label) => label,
            None => widest_label(&table.series, N),
        };
        table.runaway = Some(runaway);
        let mut instead = values;
        instead[runaway] = OVERFLOW;
        let hash = self.hash(&instead);
        let handle = if let Some(handle) = table.find(hash, &instead) {
            handle.clone()
        } else if table.series.len() < description.limit + OVERFLOW_SERIES {
            table.insert(description, hash, &instead)
        } else {
            // More than one label runs away.
            let instead = [OVERFLOW; N];
            let hash = self.hash(&instead);
            match table.find(hash, &instead) {
                Some(handle) => handle.clone(),
                None => table.insert(description, hash, &instead),
            }
        };
        drop(table);
        let label = description.labels.get(runaway).copied().unwrap_or_default();
        if let Some(overflows) = &self.inner.overflows {
            overflows.with([description.name, label]).increment();
        }
        if first {
            tracing::warn!(
                metric = description.name,
                label,
                limit = description.limit,
                "a metric reached its limit of series; further values of this label are counted \
                 under `_overflow`: take the label from a bounded set, or raise the limit where \
                 the metric is declared"
            );
        }
        handle
    }

    fn hash(&self, values: &[&str; N]) -> u64 {
        self.inner.hasher.hash_one(values)
    }
}

impl<K: Clone> Table<K> {
    fn find(&self, hash: u64, values: &[&str]) -> Option<&K> {
        let at = self.index.find(hash, |at| {
            let series = &self.series[*at];
            series.hash == hash
                && series
                    .values
                    .iter()
                    .map(|v| &**v)
                    .eq(values.iter().copied())
        })?;
        Some(&self.series[*at].handle)
    }
}

impl<K: Handle> Table<K> {
    fn insert(&mut self, description: &Description, hash: u64, values: &[&str]) -> K {
        let handle = K::birth(description);
        Arc::make_mut(&mut self.series).push(Arc::new(Series {
            hash,
            values: values.iter().map(|value| Box::from(*value)).collect(),
            rendered: render(description.labels.iter().copied(), values.iter().copied()).into(),
            handle: handle.clone(),
        }));
        let Self { index, series, .. } = self;
        index.insert_unique(hash, series.len() - 1, |at| series[*at].hash);
        handle
    }
}

/// What the registry needs of a family, whatever its handle.
pub(crate) trait Collect: Send + Sync {
    fn description(&self) -> &Description;
    /// Calls `each` with the labels and the value of every series.
    fn collect(&self, each: &mut dyn FnMut(Labels<'_>, Sample));
}

/// The label values of a series, as they are and as they are written.
#[derive(Clone, Copy)]
pub(crate) struct Labels<'a> {
    pub(crate) values: &'a [Box<str>],
    pub(crate) rendered: &'a str,
}

impl<K: Handle, const N: usize> Collect for Family<K, N> {
    fn description(&self) -> &Description {
        &self.inner.description
    }

    fn collect(&self, each: &mut dyn FnMut(Labels<'_>, Sample)) {
        let series = Arc::clone(&self.inner.table.read().series);
        for series in &*series {
            let labels = Labels {
                values: &series.values,
                rendered: &series.rendered,
            };
            each(labels, series.handle.sample());
        }
    }
}

impl<K: Handle, const N: usize> Clone for Family<K, N> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K: Handle, const N: usize> fmt::Debug for Family<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("name", &self.inner.description.name)
            .finish_non_exhaustive()
    }
}

/// Room for the overflow series of the labels that did not run away (`result`, `method`).
const OVERFLOW_SERIES: usize = 64;

fn widest_label<K>(series: &[Arc<Series<K>>], labels: usize) -> usize {
    (0..labels)
        .max_by_key(|label| {
            series
                .iter()
                .map(|series| &series.values[*label])
                .collect::<HashSet<_>>()
                .len()
        })
        .unwrap_or(0)
}

/// `a="1",b="2"` with backslash, quote and line feed escaped.
pub(crate) fn render<'a>(
    labels: impl IntoIterator<Item = &'a str>,
    values: impl IntoIterator<Item = &'a str>,
) -> String {
    let mut text = String::new();
    for (label, value) in labels.into_iter().zip(values) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(label);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

/// A metric whose values are read at a scrape.
pub(crate) struct Observed {
    description: Description,
    sources: RwLock<Vec<Source>>,
}

struct Source {
    values: Values,
    rendered: Arc<str>,
    read: Read,
}

type Values = Arc<[Box<str>]>;
pub(crate) type Read = Arc<dyn Fn() -> Option<f64> + Send + Sync>;

impl Observed {
    pub(crate) fn new(description: Description) -> Self {
        Self {
            description,
            sources: RwLock::new(Vec::new()),
        }
    }

    pub(crate) fn add(&self, values: &[&str], read: Read) {
        self.sources.write().push(Source {
            values: values.iter().map(|value| Box::from(*value)).collect(),
            rendered: render(
                self.description.labels.iter().copied(),
                values.iter().copied(),
            )
            .into(),
            read,
        });
    }
}

impl Collect for Observed {
    fn description(&self) -> &Description {
        &self.description
    }

    fn collect(&self, each: &mut dyn FnMut(Labels<'_>, Sample)) {
        // Sources run without the lock, so that one may create another.
        let sources: Vec<_> = {
            let sources = self.sources.read();
            let parts = sources.iter().map(|source| {
                let Source {
                    values,
                    rendered,
                    read,
                } = source;
                (Arc::clone(values), Arc::clone(rendered), Arc::clone(read))
            });
            parts.collect()
        };
        let mut gone: Vec<Read> = Vec::new();
        let mut merged: Vec<(Values, Arc<str>, f64)> = Vec::with_capacity(sources.len());
        for (values, rendered, read) in sources {
            match read() {
                Some(value) => match merged.iter_mut().find(|(_, labels, _)| *labels == rendered) {
                    Some((_, _, sum)) => *sum += value,
                    None => merged.push((values, rendered, value)),
                },
                None => gone.push(read),
            }
        }
        if !gone.is_empty() {
            self.sources
                .write()
                .retain(|source| !gone.iter().any(|read| Arc::ptr_eq(read, &source.read)));
        }
        for (values, rendered, value) in merged {
            let labels = Labels {
                values: &values,
                rendered: &rendered,
            };
            each(labels, Sample::Number(value));
        }
    }
}

/// Typed entry for observed metrics: histograms cannot be read as one number.
pub trait Observable: Handle {}
impl Observable for crate::handle::Gauge {}
impl Observable for Counter {}

#[cfg(test)]
mod tests;
