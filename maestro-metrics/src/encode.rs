//! The exposition formats: Prometheus text 0.0.4 and OpenMetrics 1.0.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::catalogue::{Description, Kind, Unit};
use crate::cell::{Exemplar, Sample, Snapshot};
use crate::family::{Collect, Labels, render};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Prometheus text, version 0.0.4.
    Text,
    /// OpenMetrics text, version 1.0, with units and exemplars.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type` of a response in this format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes families, each given as everything that goes under one name.
pub(crate) fn encode<'a>(
    format: Format,
    constant: &str,
    families: impl Iterator<Item = &'a Vec<Arc<dyn Collect>>>,
    foreign: &[ForeignFamily],
    buffer: &mut Vec<u8>,
) {
    let mut writer = Writer {
        format,
        constant,
        buffer,
    };
    for collectors in families {
        writer.family(collectors);
    }
    for family in foreign {
        let heading = Heading::of_foreign(family);
        writer.head(&heading);
        for (labels, sample) in &family.series {
            let labels = render(
                labels.iter().map(|(name, _)| name.as_str()),
                labels.iter().map(|(_, value)| value.as_str()),
            );
            writer.series(&heading, &labels, sample);
        }
    }
    if format == Format::OpenMetrics {
        writer.buffer.extend_from_slice(b"# EOF\n");
    }
}

/// A family that somebody else counts and describes.
pub(crate) struct ForeignFamily {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) kind: Kind,
    pub(crate) bounds: Vec<f64>,
    pub(crate) series: Vec<(Vec<(String, String)>, Sample)>,
}

/// Where foreign families come from.
pub(crate) trait Foreign: Send + Sync {
    fn gather(&self) -> Vec<ForeignFamily>;
}

/// A series that was merged from all that have its labels.
pub(crate) struct Merged {
    #[cfg_attr(
        not(any(feature = "prometheus", feature = "push")),
        expect(dead_code, reason = "the text formats copy what is rendered")
    )]
    pub(crate) values: Vec<Box<str>>,
    pub(crate) rendered: Box<str>,
    pub(crate) sample: Sample,
}

/// The series of everything that goes under one name: two registries can hold the same, and
/// Prometheus must see it once.
pub(crate) fn merge(collectors: &[Arc<dyn Collect>]) -> Vec<Merged> {
    let mut merged: Vec<Merged> = Vec::new();
    let mut index = HashMap::<Box<str>, usize>::new();
    let kind = collectors.first().map(|first| first.description().kind);
    for collector in collectors {
        if Some(collector.description().kind) != kind {
            continue;
        }
        collector.collect(&mut |labels: Labels<'_>, sample| {
            if let Some(at) = index.get(labels.rendered) {
                merged[*at].sample.merge(&sample);
            } else {
                index.insert(labels.rendered.into(), merged.len());
                merged.push(Merged {
                    values: labels.values.to_vec(),
                    rendered: labels.rendered.into(),
                    sample,
                });
            }
        });
    }
    merged
}

/// What is written once for a family.
struct Heading<'a> {
    name: &'a str,
    help: &'a str,
    kind: Kind,
    unit: Unit,
    /// The `le` labels. `{:?}` writes 10 as `10.0`: the canonical form of OpenMetrics, and in both
    /// formats the same, so that series do not change when the format is negotiated anew.
    le: Vec<String>,
}

impl<'a> Heading<'a> {
    fn of(description: &'a Description) -> Self {
        Self {
            name: description.name,
            help: description.help,
            kind: description.kind,
            unit: description.unit,
            le: le(description.buckets),
        }
    }

    fn of_foreign(family: &'a ForeignFamily) -> Self {
        Self {
            name: &family.name,
            help: &family.help,
            kind: family.kind,
            unit: Unit::None,
            le: le(&family.bounds),
        }
    }
}

fn le(bounds: &[f64]) -> Vec<String> {
    bounds
        .iter()
        .map(|bound| format!("le=\"{bound:?}\""))
        .collect()
}

struct Writer<'a> {
    format: Format,
    constant: &'a str,
    buffer: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn family(&mut self, collectors: &[Arc<dyn Collect>]) {
        let Some(first) = collectors.first() else {
            return;
        };
        let description = *first.description();
        let heading = Heading::of(&description);
        let mut headed = false;
        if let [one] = collectors {
            one.collect(&mut |labels, sample| {
                if !std::mem::replace(&mut headed, true) {
                    self.head(&heading);
                }
                self.series(&heading, labels.rendered, &sample);
            });
            return;
        }
        for (i, series) in merge(collectors).iter().enumerate() {
            if i == 0 {
                self.head(&heading);
            }
            self.series(&heading, &series.rendered, &series.sample);
        }
    }

    fn head(&mut self, heading: &Heading<'_>) {
        let name = match (self.format, heading.kind) {
            // There, the family of a counter has the name without `_total`.
            (Format::OpenMetrics, Kind::Counter) => base_name(heading.name),
            _ => heading.name,
        };
        self.put("# HELP ");
        self.put(name);
        self.put(" ");
        for c in heading.help.chars() {
            match c {
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                '"' if self.format == Format::OpenMetrics => self.put("\\\""),
                c => self.put(c.encode_utf8(&mut [0; 4])),
            }
        }
        self.put("\n# TYPE ");
        self.put(name);
        self.put(" ");
        self.put(heading.kind.as_str());
        self.put("\n");
        if self.format == Format::OpenMetrics && heading.unit != Unit::None {
            self.put("# UNIT ");
            self.put(name);
            self.put(" ");
            self.put(heading.unit.as_str());
            self.put("\n");
        }
    }

    fn series(&mut self, heading: &Heading<'_>, labels: &str, sample: &Sample) {
        // OpenMetrics knows no counter without the suffix; ours all have it.
        let suffix = match (self.format, heading.kind) {
            (Format::OpenMetrics, Kind::Counter) if !heading.name.ends_with(TOTAL) => TOTAL,
            _ => "",
        };
        match sample {
            Sample::Integer(value) => {
                self.name(heading.name, suffix, labels, "");
                self.integer(*value);
                self.put("\n");
            }
            Sample::Number(value) => {
                self.name(heading.name, suffix, labels, "");
                self.number(*value);
                self.put("\n");
            }
            Sample::Histogram(snapshot) => self.histogram(heading, labels, snapshot),
        }
    }

    fn histogram(&mut self, heading: &Heading<'_>, labels: &str, snapshot: &Snapshot) {
        let mut cumulative = 0;
        for (bucket, count) in snapshot.buckets.iter().enumerate() {
            cumulative += count;
            let le = heading.le.get(bucket).map_or("le=\"+Inf\"", |le| le);
            self.name(heading.name, "_bucket", labels, le);
            self.integer(cumulative);
            if self.format == Format::OpenMetrics
                && let Some(Some(exemplar)) = snapshot.exemplars.get(bucket)
            {
                self.exemplar(exemplar);
            }
            self.put("\n");
        }
        self.name(heading.name, "_sum", labels, "");
        self.number(snapshot.sum);
        self.put("\n");
        self.name(heading.name, "_count", labels, "");
        self.integer(cumulative);
        self.put("\n");
    }

    fn exemplar(&mut self, exemplar: &Exemplar) {
        let at = exemplar
            .at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        // Writing to a `Vec` cannot fail.
        let _ = write!(
            self.buffer,
            " # {{trace_id=\"{}\",span_id=\"{}\"}} {} {}.{:03}",
            exemplar.trace,
            exemplar.span,
            exemplar.value,
            at / 1_000,
            at % 1_000
        );
    }

    fn name(&mut self, name: &str, suffix: &str, labels: &str, last: &str) {
        self.put(name);
        self.put(suffix);
        let mut open = "{";
        for part in [self.constant, labels, last] {
            if !part.is_empty() {
                self.put(open);
                self.put(part);
                open = ",";
            }
        }
        self.put(if open == "," { "} " } else { " " });
    }

    fn put(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    fn integer(&mut self, mut value: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            // One decimal digit fits a byte.
            digits[at] = b'0' + (value % 10).to_le_bytes()[0];
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.buffer.extend_from_slice(&digits[at..]);
    }

    fn number(&mut self, value: f64) {
        if value.is_nan() {
            self.put("NaN");
        } else if value.is_infinite() {
            self.put(if value > 0.0 { "+Inf" } else { "-Inf" });
        } else {
            // Writing to a `Vec` cannot fail.
            let _ = write!(self.buffer, "{value}");
        }
    }
}

const TOTAL: &str = "_total";

pub(crate) fn base_name(name: &str) -> &str {
    name.strip_suffix(TOTAL).unwrap_or(name)
}
