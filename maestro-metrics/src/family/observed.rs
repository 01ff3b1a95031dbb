//! A metric whose values somebody else keeps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Collect, Labels, OVERFLOW, render};
use crate::catalogue::{Description, Kind};
use crate::cell::Sample;

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
        let mut merged = Merged::default();
        for (values, rendered, read) in sources {
            match read() {
                Some(value) => merged.add(values, rendered, value),
                None => gone.push(read),
            }
        }
        if !gone.is_empty() {
            self.sources
                .write()
                .retain(|source| !gone.iter().any(|read| Arc::ptr_eq(read, &source.read)));
        }
        for (values, rendered, value) in merged.bounded(&self.description) {
            let labels = Labels {
                values: &values,
                rendered: &rendered,
            };
            each(labels, Sample::Number(value));
        }
    }
}

/// Values by their labels, those with the same labels added up.
#[derive(Default)]
struct Merged {
    index: HashMap<Arc<str>, usize>,
    series: Vec<(Values, Arc<str>, f64)>,
}

impl Merged {
    fn add(&mut self, values: Values, rendered: Arc<str>, value: f64) {
        if let Some(at) = self.index.get(&rendered) {
            self.series[*at].2 += value;
        } else {
            self.index.insert(Arc::clone(&rendered), self.series.len());
            self.series.push((values, rendered, value));
        }
    }

    /// Of a gauge, the largest values of the label that is bounded by [`Metric::top`], the others
    /// added up. A counter is shown as it is: who is added up changes, and a sum that shrinks would
    /// be read as a restart.
    ///
    /// [`Metric::top`]: crate::Metric::top
    fn bounded(self, description: &Description) -> Vec<(Values, Arc<str>, f64)> {
        let label = description
            .top
            .filter(|_| description.kind == Kind::Gauge)
            .and_then(|top| {
                let label = description.labels.iter().position(|l| *l == top.label)?;
                Some((label, top.keep))
            });
        let Some((label, keep)) = label else {
            return self.series;
        };
        let mut sums: HashMap<Box<str>, f64> = HashMap::new();
        for (values, _, value) in &self.series {
            *sums.entry(values[label].clone()).or_default() += value.abs();
        }
        if sums.len() <= keep {
            return self.series;
        }
        let mut ranked: Vec<(Box<str>, f64)> = sums.into_iter().collect();
        // Of equals always the same, so that series do not come and go.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let kept: HashSet<Box<str>> = ranked.into_iter().take(keep).map(|(v, _)| v).collect();
        let mut bounded = Self::default();
        for (values, rendered, value) in self.series {
            if kept.contains(&values[label]) {
                bounded.add(values, rendered, value);
                continue;
            }
            let mut instead = values.to_vec();
            instead[label] = OVERFLOW.into();
            let rendered = render(
                description.labels.iter().copied(),
                instead.iter().map(|value| &**value),
            );
            bounded.add(instead.into(), rendered.into(), value);
        }
        bounded.series
    }
}
