//! To the `prometheus` crate and from it: a service that has collectors of that crate exposes them
//! with ours, and one that has a registry of that crate exposes ours with its own.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::catalogue::Kind;
use crate::cell::{Sample, Snapshot};
use crate::encode::{Foreign, ForeignFamily, merge};
use crate::registry::Registry;

impl Registry {
    /// Exposes a collector of the `prometheus` crate with this registry's metrics, under its constant
    /// labels. A family whose name is taken is left out; summaries are not supported.
    ///
    /// ```
    /// let requests = prometheus::IntCounter::new("legacy_requests_total", "Requests.")?;
    /// let registry = maestro_metrics::Registry::detached();
    /// registry.register_prometheus(Box::new(requests.clone()));
    /// requests.inc();
    /// assert!(registry.text().contains("legacy_requests_total 1\n"));
    /// # Ok::<(), prometheus::Error>(())
    /// ```
    pub fn register_prometheus(&self, collector: Box<dyn Collector>) {
        self.add_foreign(Arc::new(Theirs(collector)));
    }

    /// This registry's metrics as a collector of the `prometheus` crate.
    ///
    /// ```
    /// let registry = maestro_metrics::Registry::detached();
    /// let theirs = prometheus::Registry::new();
    /// theirs.register(registry.prometheus_collector()?)?;
    /// # Ok::<(), prometheus::Error>(())
    /// ```
    ///
    /// Do not register collectors of the same `prometheus::Registry` here as well: they would be
    /// exposed twice.
    pub fn prometheus_collector(&self) -> Result<Box<dyn Collector>, prometheus::Error> {
        // The crate tells collectors apart by their descriptions and asks for at least one; families
        // that appear later need none.
        let description = Desc::new(
            "maestro_metrics".to_owned(),
            "The metrics of a maestro registry.".to_owned(),
            Vec::new(),
            std::collections::HashMap::new(),
        )?;
        Ok(Box::new(Ours {
            registry: self.clone(),
            description,
        }))
    }
}

struct Theirs(Box<dyn Collector>);

impl Foreign for Theirs {
    fn gather(&self) -> Vec<ForeignFamily> {
        self.0.collect().iter().filter_map(foreign).collect()
    }
}

fn foreign(family: &MetricFamily) -> Option<ForeignFamily> {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => Kind::Counter,
        MetricType::GAUGE | MetricType::UNTYPED => Kind::Gauge,
        MetricType::HISTOGRAM => Kind::Histogram,
        MetricType::SUMMARY => return None,
    };
    let metrics = family.get_metric();
    let bounds = metrics.first().map_or_else(Vec::new, |metric| {
        let buckets = metric.get_histogram().get_bucket();
        let bounds = buckets.iter().map(Bucket::upper_bound);
        bounds.filter(|bound| bound.is_finite()).collect()
    });
    let series = metrics.iter().map(|metric| {
        let labels = metric.get_label().iter();
        let labels = labels.map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
        (labels.collect(), sample(metric, family.get_field_type()))
    });
    Some(ForeignFamily {
        name: family.name().to_owned(),
        help: family.help().to_owned(),
        kind,
        series: series.collect(),
        bounds,
    })
}

fn sample(metric: &Metric, kind: MetricType) -> Sample {
    match kind {
        MetricType::COUNTER => Sample::Number(metric.get_counter().get_value()),
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            // Theirs are cumulative, ours are not.
            let mut buckets = Vec::new();
            let mut below = 0;
            for bucket in histogram
                .get_bucket()
                .iter()
                .filter(|b| b.upper_bound().is_finite())
            {
                buckets.push(bucket.cumulative_count().saturating_sub(below));
                below = bucket.cumulative_count();
            }
            buckets.push(histogram.get_sample_count().saturating_sub(below));
            Sample::Histogram(Box::new(Snapshot {
                buckets,
                sum: histogram.get_sample_sum(),
                exemplars: Vec::new(),
            }))
        }
        _ => Sample::Number(metric.get_gauge().get_value()),
    }
}

struct Ours {
    registry: Registry,
    description: Desc,
}

impl Collector for Ours {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (families, _) = self.registry.everything();
        families
            .values()
            .filter_map(|collectors| {
                let description = collectors.first()?.description();
                let metrics: Vec<Metric> = merge(collectors)
                    .iter()
                    .map(|series| {
                        let own = description.labels.iter().copied().zip(&series.values);
                        let own = own.map(|(name, value)| (name, &**value));
                        let constant = self.registry.constant().iter();
                        let constant = constant.map(|(name, value)| (*name, value.as_str()));
                        metric(
                            constant.chain(own),
                            &series.sample,
                            description.kind,
                            description.buckets,
                        )
                    })
                    .collect();
                if metrics.is_empty() {
                    return None;
                }
                let mut family = MetricFamily::default();
                family.set_name(description.name.to_owned());
                family.set_help(description.help.to_owned());
                family.set_field_type(match description.kind {
                    Kind::Counter => MetricType::COUNTER,
                    Kind::Gauge => MetricType::GAUGE,
                    Kind::Histogram => MetricType::HISTOGRAM,
                });
                family.set_metric(metrics);
                Some(family)
            })
            .collect()
    }
}

fn metric<'a>(
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    sample: &Sample,
    kind: Kind,
    bounds: &[f64],
) -> Metric {
    let labels = labels.map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    let mut metric = Metric::from_label(labels.collect());
    let number = match sample {
        Sample::Integer(value) => *value as f64,
        Sample::Number(value) => *value,
        Sample::Histogram(snapshot) => {
            metric.set_histogram(histogram(snapshot, bounds));
            return metric;
        }
    };
    if kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(number);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(number);
        metric.set_gauge(gauge);
    }
    metric
}

fn histogram(snapshot: &Snapshot, bounds: &[f64]) -> Histogram {
    let mut cumulative = 0;
    let buckets = bounds.iter().zip(&snapshot.buckets).map(|(bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(snapshot.count());
    histogram.set_sample_sum(snapshot.sum);
    histogram
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, HistogramOpts, TextEncoder};

    use super::*;
    use crate::{Format, Histogram as OurHistogram, Metric as Declared};

    const TIME: Declared<OurHistogram, 1> = Declared::seconds("job_seconds", "Jobs.")
        .labels(["job"])
        .buckets(&[0.1, 1.0]);

    /// Sorted, because theirs sorts labels and families.
    fn lines(text: &str) -> Vec<String> {
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.replace("\"1.0\"", "\"1\""))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn both_encoders_say_the_same_of_our_metrics() {
        let registry = Registry::detached();
        let family = registry.family(&TIME);
        family.with(["a"]).observe(0.05);
        family.with(["a"]).observe(7.0);
        family.with(["b"]).observe(0.5);
        let theirs = prometheus::Registry::new();
        theirs
            .register(registry.prometheus_collector().unwrap())
            .unwrap();
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&theirs.gather(), &mut text)
            .unwrap();
        assert_eq!(
            lines(&String::from_utf8(text).unwrap()),
            lines(&registry.text())
        );
    }

    #[test]
    fn their_collectors_are_exposed_with_our_labels_and_never_under_our_names() {
        let registry = Registry::detached();
        registry.family(&TIME).with(["a"]).observe(0.5);
        let options = HistogramOpts::new("their_seconds", "Theirs.").buckets(vec![0.1, 1.0]);
        let histogram = prometheus::Histogram::with_opts(options).unwrap();
        for value in [0.05, 0.5, 0.5, 3.0] {
            histogram.observe(value);
        }
        let odd = prometheus::IntCounter::new("odd", "A counter without the suffix.").unwrap();
        odd.inc();
        let taken = prometheus::IntCounter::new("job_seconds", "Taken.").unwrap();
        registry.register_prometheus(Box::new(histogram));
        registry.register_prometheus(Box::new(odd));
        registry.register_prometheus(Box::new(taken));
        let text = registry.text();
        for line in [
            "their_seconds_bucket{le=\"0.1\"} 1\n",
            "their_seconds_bucket{le=\"1.0\"} 3\n",
            "their_seconds_bucket{le=\"+Inf\"} 4\n",
            "their_seconds_sum 4.05\n",
            "odd 1\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(text.matches("# TYPE job_seconds").count(), 1);
        let mut open = Vec::new();
        registry.encode(Format::OpenMetrics, &mut open);
        let open = String::from_utf8(open).unwrap();
        assert!(open.contains("# TYPE odd counter\nodd_total 1\n"), "{open}");
    }
}
