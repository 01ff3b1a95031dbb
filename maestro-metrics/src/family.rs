//! A metric with labels: one handle for each set of label values, and a bound on how many.

use std::collections::HashSet;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;

use crate::catalogue::Description;
use crate::cell::Sample;
use crate::handle::sealed::Sealed;
use crate::handle::{Counter, Handle};

mod observed;
mod top;

pub(crate) use observed::Observed;
use top::{Contest, Members, Score};

/// The label value that stands for all that exceed a family's limit.
pub const OVERFLOW: &str = "_overflow";

/// A metric with `N` labels. A clone is the same family.
///
/// Resolve a handle once where the label values are known at start (`with` takes tens of
/// nanoseconds, a handle a few), and resolve as you go where they come with the work.
///
/// ```
/// use maestro_metrics::{Counter, Metric, Registry};
///
/// const PAID: Metric<Counter, 1> = Metric::counter("orders_paid_total", "Orders paid.").labels(["by"]);
///
/// let registry = Registry::detached();
/// let paid = registry.family(&PAID);
/// let by_card = paid.with(["card"]); // resolved once
/// by_card.increment();
/// assert_eq!(paid.series(), 1);
/// assert!(registry.text().contains(r#"orders_paid_total{by="card"} 1"#));
/// ```
pub struct Family<K: Handle, const N: usize> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    description: Description,
    hasher: DefaultHashBuilder,
    table: RwLock<Table<K>>,
    /// For the label of which only the busiest values are kept.
    contest: Option<Contest>,
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
    /// The labels of which values were counted under `_overflow`, and how often.
    overflowed: Vec<(usize, Counter)>,
    members: Members,
    /// Cells whose series are gone, while somebody may hold their handles still: what is recorded
    /// there belongs to the other one.
    retired: Vec<(K, K)>,
}

struct Series<K> {
    hash: u64,
    values: Box<[Box<str>]>,
    /// `a="1",b="2"`, escaped, so that a scrape only copies.
    rendered: Box<str>,
    handle: K,
    /// How busy the value of the label is of which only the busiest are kept.
    score: Option<Arc<Score>>,
}

impl<K: Handle, const N: usize> Family<K, N> {
    pub(crate) fn new(description: Description, overflows: Option<Family<Counter, 2>>) -> Self {
        let contest = description.top.and_then(|top| {
            let label = description.labels.iter().position(|l| *l == top.label)?;
            Some(Contest::new(label, top.keep))
        });
        Self {
            inner: Arc::new(Inner {
                description,
                hasher: DefaultHashBuilder::default(),
                table: RwLock::new(Table {
                    index: HashTable::new(),
                    series: Arc::new(Vec::new()),
                    runaway: None,
                    overflowed: Vec::new(),
                    members: Members::default(),
                    retired: Vec::new(),
                }),
                contest,
                overflows,
            }),
        }
    }

    /// The handle for these label values, in the order in which the metric declares its labels. The
    /// series exists from now on, with the value 0.
    ///
    /// Beyond the family's limit, the label with the most values is replaced by [`OVERFLOW`], the
    /// overflow is counted in `maestro_metrics_overflow_total`, and one log line names the label.
    /// The same happens to values that are not among the busiest of a label declared with
    /// [`Metric::top`](crate::Metric::top).
    pub fn with(&self, values: [&str; N]) -> K {
        let hash = self.hash(&values);
        {
            let table = self.inner.table.read();
            if let Some(series) = table.find(hash, &values) {
                return series.looked_up();
            }
            if let Some(handle) = self.overflow_of(&table, values) {
                return handle;
            }
        }
        self.create(hash, values)
    }

    /// Series so far.
    pub fn series(&self) -> usize {
        self.inner.table.read().series.len()
    }

    /// The overflow series that these values are counted under, when nothing has to be created or
    /// decided for it: scanners must not make callers wait for the write lock.
    fn overflow_of(&self, table: &Table<K>, mut values: [&str; N]) -> Option<K> {
        let outside = self.inner.contest.as_ref().filter(|contest| {
            let value = values[contest.label];
            let hash = self.inner.hasher.hash_one(value);
            !contest.may_enter(&table.members, value, hash)
        });
        let label = outside.map(|contest| contest.label).or(table.runaway)?;
        values[label] = OVERFLOW;
        let series = table.find(self.hash(&values), &values)?;
        let (_, overflowed) = table.overflowed.iter().find(|(l, _)| *l == label)?;
        overflowed.increment();
        Some(series.handle.clone())
    }

    #[cold]
    fn create(&self, hash: u64, mut values: [&str; N]) -> K {
        let description = &self.inner.description;
        let mut table = self.inner.table.write();
        if let Some(series) = table.find(hash, &values) {
            return series.looked_up();
        }
        let (mut score, mut over) = (None, None);
        if let Some(contest) = &self.inner.contest {
            let value = values[contest.label];
            if value != OVERFLOW {
                let hash = self.inner.hasher.hash_one(value);
                score = contest.enter(&mut table.members, value, hash);
                over = score.is_none().then_some(contest.label);
            }
        }
        if over.is_none() && N > 0 && table.series.len() >= description.limit {
            let runaway = match table.runaway {
                Some(label) => label,
                None => widest_label(&table.series, N),
            };
            table.runaway = Some(runaway);
            over = Some(runaway);
        }
        let Some(label) = over else {
            return table.insert(description, hash, &values, score);
        };
        values[label] = OVERFLOW;
        let handle = self.overflow_in(&mut table, &values);
        let known = table.overflowed.iter().find(|(l, _)| *l == label);
        let known = known.map(|(_, counter)| counter.clone());
        let first = known.is_none();
        let overflowed = known.unwrap_or_else(|| self.overflow_counter(label));
        if first {
            table.overflowed.push((label, overflowed.clone()));
        }
        drop(table);
        overflowed.increment();
        if first {
            self.tell(label);
        }
        handle
    }

    /// The overflow series for these values, of which one is [`OVERFLOW`]; when more than one label
    /// runs away, the one for all.
    fn overflow_in(&self, table: &mut Table<K>, values: &[&str]) -> K {
        let description = &self.inner.description;
        let hash = self.hash(values);
        if let Some(series) = table.find(hash, values) {
            return series.handle.clone();
        }
        if table.series.len() < description.limit + OVERFLOW_SERIES {
            return table.insert(description, hash, values, None);
        }
        let all = [OVERFLOW; N];
        let hash = self.hash(&all);
        match table.find(hash, &all) {
            Some(series) => series.handle.clone(),
            None => table.insert(description, hash, &all, None),
        }
    }

    fn overflow_counter(&self, label: usize) -> Counter {
        let description = &self.inner.description;
        match &self.inner.overflows {
            Some(overflows) => overflows.with([description.name, description.label(label)]),
            None => Counter::birth(description),
        }
    }

    fn tell(&self, label: usize) {
        let description = &self.inner.description;
        let (metric, label) = (description.name, description.label(label));
        if let Some(top) = description.top.filter(|top| top.label == label) {
            tracing::info!(
                metric,
                label,
                keep = top.keep,
                "a label has more values than are kept: the busiest have a series of their own, \
                 the others are counted under `_overflow`"
            );
            return;
        }
        tracing::warn!(
            metric,
            label,
            limit = description.limit,
            "a metric reached its limit of series; further values of this label are counted under \
             `_overflow`: take the label from a bounded set, or raise the limit where the metric \
             is declared"
        );
    }

    fn hash(&self, values: &[&str]) -> u64 {
        self.inner.hasher.hash_one(values)
    }

    /// At a scrape: what was recorded for values that have no series any more is counted under
    /// `_overflow`; the series to show, and the values that are shown for the last time.
    fn settle(&self) -> (AllSeries<K>, Vec<Box<str>>) {
        let mut table = self.inner.table.write();
        table.retired.retain(|(cell, overflow)| {
            // In this order: who holds a handle when it is looked at may record until it is drained.
            let held = cell.is_held();
            cell.drain_into(overflow);
            held
        });
        (Arc::clone(&table.series), table.members.leaving())
    }

    /// After a scrape: the series it has shown for the last time go.
    fn dismiss(&self, contest: &Contest, shown: &[Box<str>]) {
        let mut table = self.inner.table.write();
        let gone = contest.dismiss(&mut table.members, shown);
        if gone.is_empty() {
            return;
        }
        for series in table.take(contest.label, &gone) {
            let mut values: Vec<&str> = series.values.iter().map(|value| &**value).collect();
            values[contest.label] = OVERFLOW;
            let overflow = self.overflow_in(&mut table, &values);
            table.retired.push((series.handle.clone(), overflow));
        }
    }
}

type AllSeries<K> = Arc<Vec<Arc<Series<K>>>>;

impl<K> Series<K> {
    fn labels(&self) -> Labels<'_> {
        Labels {
            values: &self.values,
            rendered: &self.rendered,
        }
    }
}

impl<K: Clone> Series<K> {
    fn looked_up(&self) -> K {
        if let Some(score) = &self.score {
            score.raise();
        }
        self.handle.clone()
    }
}

impl<K> Table<K> {
    fn find(&self, hash: u64, values: &[&str]) -> Option<&Series<K>> {
        let at = self.index.find(hash, |at| {
            let series = &self.series[*at];
            series.hash == hash
                && series
                    .values
                    .iter()
                    .map(|v| &**v)
                    .eq(values.iter().copied())
        })?;
        Some(&self.series[*at])
    }

    /// Takes the series out that have one of these values.
    fn take(&mut self, label: usize, values: &[Box<str>]) -> Vec<Arc<Series<K>>> {
        let all = self.series.iter().cloned();
        let (taken, left): (Vec<_>, Vec<_>) =
            all.partition(|series| values.contains(&series.values[label]));
        self.index.clear();
        for (at, series) in left.iter().enumerate() {
            self.index
                .insert_unique(series.hash, at, |at| left[*at].hash);
        }
        self.series = Arc::new(left);
        taken
    }
}

impl<K: Handle> Table<K> {
    fn insert(
        &mut self,
        description: &Description,
        hash: u64,
        values: &[&str],
        score: Option<Arc<Score>>,
    ) -> K {
        let handle = K::birth(description);
        Arc::make_mut(&mut self.series).push(Arc::new(Series {
            hash,
            values: values.iter().map(|value| Box::from(*value)).collect(),
            rendered: render(description.labels.iter().copied(), values.iter().copied()).into(),
            handle: handle.clone(),
            score,
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
        let Some(contest) = &self.inner.contest else {
            let series = Arc::clone(&self.inner.table.read().series);
            for series in &*series {
                each(series.labels(), series.handle.sample());
            }
            return;
        };
        let (all, leaving) = self.settle();
        for series in &*all {
            let sample = if leaving.contains(&series.values[contest.label]) {
                series.handle.last_sample(&self.inner.description)
            } else {
                series.handle.sample()
            };
            each(series.labels(), sample);
        }
        if !leaving.is_empty() {
            self.dismiss(contest, &leaving);
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

/// Typed entry for observed metrics: histograms cannot be read as one number.
pub trait Observable: Handle {}
impl Observable for crate::handle::Gauge {}
impl Observable for Counter {}

#[cfg(test)]
mod tests;
