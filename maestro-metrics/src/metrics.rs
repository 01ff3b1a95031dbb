//! What this crate itself measures.

use crate::catalogue::{Catalogue, Metric};
use crate::handle::{Counter, Gauge, Histogram};

pub(crate) const OVERFLOWS: Metric<Counter, 2> = Metric::counter(
    "maestro_metrics_overflow_total",
    "Lookups of label values that were counted under `_overflow`, because the family had reached \
     its limit of series.",
)
.labels(["metric", "label"]);

pub(crate) const CONFLICTS: Metric<Counter, 1> = Metric::counter(
    "maestro_metrics_conflicts_total",
    "Metrics that were declared twice in different ways; the second is not exposed.",
)
.labels(["metric"]);

pub(crate) const BUILD: Metric<Gauge, 3> = Metric::gauge(
    "maestro_build_info",
    "Always 1; the labels say what is running where.",
)
.labels(["version", "sdk_version", "instance_id"]);

pub(crate) const HEALTH_STATE: Metric<Gauge, 2> = Metric::gauge(
    "maestro_health_state",
    "1 for the state a check is in (healthy, degraded, unhealthy), 0 for the others.",
)
.labels(["check", "state"]);

pub(crate) const HEALTH_DURATION: Metric<Histogram, 1> = Metric::seconds(
    "maestro_health_check_duration_seconds",
    "Time of one run of a health check.",
)
.labels(["check"])
.buckets(crate::catalogue::FAST_DURATION_BUCKETS);

pub(crate) const LOG_LINES: Metric<Counter, 1> =
    Metric::counter("maestro_log_lines_total", "Log lines written, by level.").labels(["level"]);

pub(crate) const LOG_FAILURES: Metric<Counter> = Metric::counter(
    "maestro_log_write_failures_total",
    "Log lines that could not be written to the output.",
);

pub(crate) const SPANS_EXPORTED: Metric<Counter> = Metric::counter(
    "maestro_traces_spans_exported_total",
    "Spans a collector has accepted.",
);

pub(crate) const SPANS_DROPPED: Metric<Counter, 1> = Metric::counter(
    "maestro_traces_spans_dropped_total",
    "Spans that were recorded and reached no collector, by reason: queue_full, unreachable (no \
     answer after all attempts), refused (the collector said no), rejected (it took the rest of \
     the batch), shutdown.",
)
.labels(["reason"]);

pub(crate) const SPANS_KEPT: Metric<Counter, 1> = Metric::counter(
    "maestro_traces_spans_kept_total",
    "Root spans of unsampled traces that were exported all the same, by reason: error, slow.",
)
.labels(["reason"]);

pub(crate) const SPANS_QUEUED: Metric<Gauge> =
    Metric::gauge("maestro_traces_queue_spans", "Spans waiting for export.");

pub(crate) const EXPORT_DURATION: Metric<Histogram, 1> = Metric::seconds(
    "maestro_traces_export_duration_seconds",
    "Time of one attempt to deliver a batch, by outcome: delivered, retry, refused.",
)
.labels(["outcome"]);

pub(crate) const EXPORTER_STATE: Metric<Gauge, 1> = Metric::gauge(
    "maestro_traces_exporter_state",
    "1 for the state the exporter is in: idle (nothing sent yet), delivering, failing.",
)
.labels(["state"]);

/// What this crate measures, for the generated documentation.
pub const CATALOGUE: Catalogue = Catalogue::new(
    "maestro-metrics",
    &[
        BUILD.describe(),
        HEALTH_STATE.describe(),
        HEALTH_DURATION.describe(),
        LOG_LINES.describe(),
        LOG_FAILURES.describe(),
        SPANS_EXPORTED.describe(),
        SPANS_DROPPED.describe(),
        SPANS_KEPT.describe(),
        SPANS_QUEUED.describe(),
        EXPORT_DURATION.describe(),
        EXPORTER_STATE.describe(),
        OVERFLOWS.describe(),
        CONFLICTS.describe(),
    ],
);
