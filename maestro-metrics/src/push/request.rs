//! Remote write's `WriteRequest`, version 0.1.0: every series with its labels in the order of their
//! names and one sample.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::catalogue::Kind;
use crate::cell::{Sample, Snapshot};
use crate::encode::merge;
use crate::protobuf::{self, member};
use crate::registry::Registry;

pub(crate) fn encode(registry: &Registry, labels: &[(&str, &str)], at: SystemTime) -> Vec<u8> {
    let millis = at
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let mut writer = Writer {
        message: Vec::new(),
        millis: u64::try_from(millis).unwrap_or(u64::MAX),
    };
    let (families, foreign) = registry.everything();
    let constant: Vec<(&str, &str)> = registry
        .constant()
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(labels.iter().copied())
        .collect();
    for collectors in families.values() {
        let Some(description) = collectors.first().map(|first| first.description()) else {
            continue;
        };
        for series in merge(collectors) {
            let own = description.labels.iter().copied();
            let own = own.zip(series.values.iter().map(|value| &**value));
            let labels: Vec<_> = constant.iter().copied().chain(own).collect();
            writer.sample(
                description.name,
                &labels,
                &series.sample,
                description.buckets,
            );
        }
        writer.metadata(description.kind, description.name, description.help);
    }
    for family in foreign {
        for (own, sample) in &family.series {
            let own = own
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()));
            let labels: Vec<_> = constant.iter().copied().chain(own).collect();
            writer.sample(&family.name, &labels, sample, &family.bounds);
        }
        writer.metadata(family.kind, &family.name, &family.help);
    }
    writer.message
}

struct Writer {
    message: Vec<u8>,
    millis: u64,
}

impl Writer {
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], sample: &Sample, bounds: &[f64]) {
        match sample {
            Sample::Integer(value) => self.series(name, labels, *value as f64),
            Sample::Number(value) => self.series(name, labels, *value),
            Sample::Histogram(snapshot) => self.histogram(name, labels, snapshot, bounds),
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        snapshot: &Snapshot,
        bounds: &[f64],
    ) {
        let bucket = format!("{name}_bucket");
        let mut cumulative = 0;
        for (i, count) in snapshot.buckets.iter().enumerate() {
            cumulative += count;
            let le = bounds
                .get(i)
                .map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
            let mut labels = labels.to_vec();
            labels.push(("le", &le));
            self.series(&bucket, &labels, cumulative as f64);
        }
        self.series(&format!("{name}_sum"), labels, snapshot.sum);
        self.series(&format!("{name}_count"), labels, cumulative as f64);
    }

    fn series(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut labels: Vec<_> = labels
            .iter()
            .copied()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        labels.push(("__name__", name));
        labels.sort_unstable();
        let millis = self.millis;
        protobuf::message(&mut self.message, 1, |series| {
            for (name, value) in labels {
                protobuf::message(series, 1, |label| {
                    protobuf::bytes(label, 1, name.as_bytes());
                    protobuf::bytes(label, 2, value.as_bytes());
                });
            }
            protobuf::message(series, 2, |sample| {
                member::double(sample, 1, value);
                protobuf::integer(sample, 2, millis);
            });
        });
    }

    fn metadata(&mut self, kind: Kind, name: &str, help: &str) {
        protobuf::message(&mut self.message, 3, |metadata| {
            let number = match kind {
                Kind::Counter => 1,
                Kind::Gauge => 2,
                Kind::Histogram => 3,
            };
            protobuf::integer(metadata, 1, number);
            protobuf::bytes(metadata, 2, name.as_bytes());
            protobuf::bytes(metadata, 4, help.as_bytes());
        });
    }
}
