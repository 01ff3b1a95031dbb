//! The exposition formats: Prometheus text 0.0.4 and OpenMetrics 1.0.

use std::io::Write;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::catalogue::{Description, Kind, Unit};
use crate::cell::{Exemplar, Sample, Snapshot};
use crate::family::Collect;

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
    if format == Format::OpenMetrics {
        writer.buffer.extend_from_slice(b"# EOF\n");
    }
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
        let lines = Lines::new(&description);
        let mut headed = false;
        if let [one] = collectors {
            one.collect(&mut |labels, sample| {
                if !std::mem::replace(&mut headed, true) {
                    self.head(&description);
                }
                self.series(&description, &lines, labels, &sample);
            });
            return;
        }
        // Two registries can hold the same series; Prometheus must see it once.
        let mut merged: Vec<(Box<str>, Sample)> = Vec::new();
        let mut index = std::collections::HashMap::<Box<str>, usize>::new();
        for collector in collectors {
            if collector.description().kind != description.kind {
                continue;
            }
            collector.collect(&mut |labels, sample| {
                if let Some(at) = index.get(labels) {
                    merged[*at].1.merge(&sample);
                } else {
                    index.insert(labels.into(), merged.len());
                    merged.push((labels.into(), sample));
                }
            });
        }
        if !merged.is_empty() {
            self.head(&description);
        }
        for (labels, sample) in &merged {
            self.series(&description, &lines, labels, sample);
        }
    }

    fn head(&mut self, description: &Description) {
        let name = match self.format {
            Format::Text => description.name,
            // There, the family of a counter has the name without `_total`.
            Format::OpenMetrics => base_name(description),
        };
        self.put("# HELP ");
        self.put(name);
        self.put(" ");
        for c in description.help.chars() {
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
        self.put(description.kind.as_str());
        self.put("\n");
        if self.format == Format::OpenMetrics && description.unit != Unit::None {
            self.put("# UNIT ");
            self.put(name);
            self.put(" ");
            self.put(description.unit.as_str());
            self.put("\n");
        }
    }

    fn series(&mut self, description: &Description, lines: &Lines, labels: &str, sample: &Sample) {
        match sample {
            Sample::Integer(value) => {
                self.name(description.name, "", labels, "");
                self.integer(*value);
                self.put("\n");
            }
            Sample::Number(value) => {
                self.name(description.name, "", labels, "");
                self.number(*value);
                self.put("\n");
            }
            Sample::Histogram(snapshot) => self.histogram(description, lines, labels, snapshot),
        }
    }

    fn histogram(
        &mut self,
        description: &Description,
        lines: &Lines,
        labels: &str,
        snapshot: &Snapshot,
    ) {
        let mut cumulative = 0;
        for (bucket, count) in snapshot.buckets.iter().enumerate() {
            cumulative += count;
            let le = lines.le.get(bucket).map_or("le=\"+Inf\"", |le| le);
            self.name(description.name, "_bucket", labels, le);
            self.integer(cumulative);
            if self.format == Format::OpenMetrics
                && let Some(Some(exemplar)) = snapshot.exemplars.get(bucket)
            {
                self.exemplar(exemplar);
            }
            self.put("\n");
        }
        self.name(description.name, "_sum", labels, "");
        self.number(snapshot.sum);
        self.put("\n");
        self.name(description.name, "_count", labels, "");
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
            digits[at] = b'0' + (value % 10) as u8;
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

/// The `le` labels of a family, written once.
struct Lines {
    le: Vec<String>,
}

impl Lines {
    fn new(description: &Description) -> Self {
        Self {
            // `{:?}` writes 10 as `10.0`: the canonical form of OpenMetrics, and in both formats the
            // same, so that series do not change when the format is negotiated anew.
            le: description
                .buckets
                .iter()
                .map(|bound| format!("le=\"{bound:?}\""))
                .collect(),
        }
    }
}

fn base_name(description: &Description) -> &'static str {
    match description.kind {
        Kind::Counter => description
            .name
            .strip_suffix("_total")
            .unwrap_or(description.name),
        _ => description.name,
    }
}
