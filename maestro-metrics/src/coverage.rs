//! Catalogues held against what was really emitted: for the tests of whoever declares metrics.
//!
//! ```
//! use maestro_metrics::{Catalogue, Counter, Metric, Registry, coverage};
//!
//! const JOBS: Metric<Counter> = Metric::counter("jobs_total", "Jobs done.");
//! const CATALOGUE: Catalogue = Catalogue::new("worker", &[JOBS.describe()]);
//!
//! let registry = Registry::detached();
//! let jobs = registry.metric(&JOBS);
//! assert_eq!(coverage::unmoved(&[&CATALOGUE], &registry.text()), ["jobs_total"]);
//! jobs.increment();
//! assert!(coverage::unmoved(&[&CATALOGUE], &registry.text()).is_empty());
//! assert!(coverage::undeclared(&[&CATALOGUE], &registry.text()).is_empty());
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::catalogue::{Catalogue, Description, Kind};

/// What a scrape in [`Format::Text`](crate::Format::Text) holds and none of the catalogues declares,
/// one sentence each: a family nobody declares, or one of another kind or with other labels. The
/// labels that a registry puts before all others are not counted.
pub fn undeclared(catalogues: &[&Catalogue], text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, family) in families(text) {
        let Some(declared) = metrics(catalogues).find(|metric| metric.name == name) else {
            faults.push(format!("{name}: emitted and not declared"));
            continue;
        };
        if family.kind != declared.kind.as_str() {
            faults.push(format!(
                "{name}: declared as {}, emitted as {}",
                declared.kind.as_str(),
                family.kind
            ));
        }
        for labels in &family.labels {
            if !labels.ends_with(declared.labels) {
                faults.push(format!(
                    "{name}: declared with the labels {:?}, emitted with {labels:?}",
                    declared.labels
                ));
            }
        }
    }
    faults
}

/// What the catalogues declare and a scrape in [`Format::Text`](crate::Format::Text) does not show
/// at work: families without a series, and counters and histograms that counted nothing. A gauge is
/// at work as soon as it has a series.
pub fn unmoved(catalogues: &[&Catalogue], text: &str) -> Vec<&'static str> {
    let emitted = families(text);
    metrics(catalogues)
        .filter(|metric| {
            emitted.get(metric.name).is_none_or(|family| {
                family.labels.is_empty() || (metric.kind != Kind::Gauge && !family.moved)
            })
        })
        .map(|metric| metric.name)
        .collect()
}

fn metrics<'a>(catalogues: &[&'a Catalogue]) -> impl Iterator<Item = &'a Description> {
    catalogues.iter().flat_map(|catalogue| catalogue.metrics)
}

/// A family as it was emitted.
struct Emitted<'a> {
    kind: &'a str,
    /// The names of labels that its series have; empty without a series.
    labels: BTreeSet<Vec<&'a str>>,
    /// Whether a series of it counted something.
    moved: bool,
}

fn families(text: &str) -> BTreeMap<&str, Emitted<'_>> {
    let mut families = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("# TYPE ") {
            let (name, kind) = heading.split_once(' ').unwrap_or((heading, ""));
            families.entry(name).or_insert(Emitted {
                kind,
                labels: BTreeSet::new(),
                moved: false,
            });
            current = name;
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (sample, labels) = series.split_once('{').unwrap_or((series, ""));
        let part = sample.strip_prefix(current).unwrap_or_default();
        let belongs = sample == current || matches!(part, "_bucket" | "_sum" | "_count");
        let family = families
            .entry(if belongs { current } else { sample })
            .or_insert(Emitted {
                kind: "untyped",
                labels: BTreeSet::new(),
                moved: false,
            });
        family.labels.insert(label_names(labels));
        // A sum of durations may be 0 and still be one of something.
        family.moved |= part != "_sum" && value.parse::<f64>().is_ok_and(|value| value > 0.0);
    }
    families
}

/// The names in `a="…",b="…"}`, without the bound of a bucket.
fn label_names(mut rest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    while let Some((name, after)) = rest.split_once("=\"") {
        if name != "le" {
            names.push(name);
        }
        let mut escaped = false;
        let end = after.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        rest = after.get(end + 1..).unwrap_or_default();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Gauge, Histogram, Metric, Registry};

    const JOBS: Metric<Counter, 2> =
        Metric::counter("jobs_total", "Jobs.").labels(["kind", "result"]);
    const QUEUE: Metric<Gauge> = Metric::gauge("queue", "Waiting.");
    const TIME: Metric<Histogram, 1> = Metric::seconds("time_seconds", "Time.").labels(["kind"]);
    const CATALOGUE: Catalogue = Catalogue::new(
        "worker",
        &[JOBS.describe(), QUEUE.describe(), TIME.describe()],
    );
    const OTHER_JOBS: Metric<Counter, 1> = Metric::counter("jobs_total", "Jobs.").labels(["kind"]);
    const OTHER: Catalogue = Catalogue::new("other", &[OTHER_JOBS.describe()]);

    #[test]
    fn what_was_never_counted_is_unmoved_and_a_gauge_at_zero_is_not() {
        let registry = Registry::detached();
        let resting = |registry: &Registry| unmoved(&[&CATALOGUE], &registry.text());
        assert_eq!(resting(&registry), ["jobs_total", "queue", "time_seconds"]);
        let jobs = registry.family(&JOBS).with(["a\"},x=\"\\", "ok"]);
        let time = registry.family(&TIME).with(["a"]);
        registry.metric(&QUEUE).set(0.0);
        assert_eq!(resting(&registry), ["jobs_total", "time_seconds"]);
        jobs.increment();
        time.observe(0.0);
        assert_eq!(resting(&registry), [""; 0]);
        assert_eq!(undeclared(&[&CATALOGUE], &registry.text()), [""; 0]);
    }

    #[test]
    fn another_name_kind_or_set_of_labels_is_undeclared() {
        let registry = Registry::detached();
        registry.family(&JOBS).with(["a", "ok"]).increment();
        registry.family(&TIME).with(["a"]).observe(1.0);
        assert_eq!(
            undeclared(&[&OTHER], &registry.text()),
            [
                "jobs_total: declared with the labels [\"kind\"], emitted with [\"kind\", \"result\"]",
                "time_seconds: emitted and not declared",
            ]
        );
        assert_eq!(
            undeclared(&[&CATALOGUE], "# TYPE queue counter\nqueue 1\nstray 1\n"),
            [
                "queue: declared as gauge, emitted as counter",
                "stray: emitted and not declared",
            ]
        );
    }
}
