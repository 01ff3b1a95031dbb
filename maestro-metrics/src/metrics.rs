//! What this crate itself measures.

use crate::catalogue::{Catalogue, Metric};
use crate::handle::{Counter, Gauge, Histogram};

pub(crate) const OVERFLOWS: Metric<Counter, 2> = Metric::counter(
    "maestro_metrics_overflow_total",
    "Lookups of label values that were counted under `_overflow`, because the family had reached \
     its limit of series, or only the busiest values of the label are kept.",
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

pub(crate) const PROCESS_CPU: Metric<Counter> = Metric::counter(
    "process_cpu_seconds_total",
    "CPU time of the process, in user and kernel mode.",
);

pub(crate) const PROCESS_RESIDENT: Metric<Gauge> = Metric::gauge(
    "process_resident_memory_bytes",
    "Memory of the process in RAM.",
);

pub(crate) const PROCESS_VIRTUAL: Metric<Gauge> = Metric::gauge(
    "process_virtual_memory_bytes",
    "Address space of the process.",
);

pub(crate) const PROCESS_FDS: Metric<Gauge> =
    Metric::gauge("process_open_fds", "File descriptors the process has open.");

pub(crate) const PROCESS_FDS_MAX: Metric<Gauge> = Metric::gauge(
    "process_max_fds",
    "File descriptors the process may have open.",
);

pub(crate) const PROCESS_THREADS: Metric<Gauge> =
    Metric::gauge("process_threads", "Threads of the process.");

pub(crate) const PROCESS_START: Metric<Gauge> = Metric::gauge(
    "process_start_time_seconds",
    "When the process started, in seconds since 1970.",
);

pub(crate) const RUNTIME_WORKERS: Metric<Gauge> = Metric::gauge(
    "maestro_runtime_workers",
    "Worker threads of the async runtime.",
);

pub(crate) const RUNTIME_TASKS: Metric<Gauge> =
    Metric::gauge("maestro_runtime_tasks", "Tasks that have not ended.");

pub(crate) const RUNTIME_QUEUE: Metric<Gauge> = Metric::gauge(
    "maestro_runtime_queue_depth",
    "Tasks that wait in the runtime's global queue.",
);

pub(crate) const RUNTIME_BUSY: Metric<Counter> = Metric::counter(
    "maestro_runtime_busy_seconds_total",
    "Time the workers were busy, all together.",
);

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

const SERVER_LABELS: [&str; 6] = [
    "http_request_method",
    "url_scheme",
    "http_route",
    "http_response_status_code",
    "error_type",
    "network_protocol_version",
];

pub(crate) const HTTP_DURATION: Metric<Histogram, 6> = Metric::seconds(
    "http_server_request_duration_seconds",
    "Time from the head of a request to the head of its response, by matched route.",
)
.labels(SERVER_LABELS);

pub(crate) const HTTP_ACTIVE: Metric<Gauge, 2> = Metric::gauge(
    "http_server_active_requests",
    "Requests in flight, until the end of their response's body.",
)
.labels(["http_request_method", "url_scheme"])
.development();

pub(crate) const HTTP_REQUEST_SIZE: Metric<Histogram, 6> = Metric::bytes(
    "http_server_request_body_size_bytes",
    "Size of request bodies, as far as they were read.",
)
.labels(SERVER_LABELS)
.development();

pub(crate) const HTTP_RESPONSE_SIZE: Metric<Histogram, 6> = Metric::bytes(
    "http_server_response_body_size_bytes",
    "Size of response bodies, as far as they were sent.",
)
.labels(SERVER_LABELS)
.development();

pub(crate) const HTTP_PANICS: Metric<Counter, 1> = Metric::counter(
    "maestro_http_panics_total",
    "Handlers that panicked; their requests were answered with 500.",
)
.labels(["http_route"]);

pub(crate) const HTTP_CLIENT_DURATION: Metric<Histogram, 5> = Metric::seconds(
    "http_client_request_duration_seconds",
    "Time of one attempt of an outbound request, to the head of its response.",
)
.labels([
    "http_request_method",
    "server_address",
    "server_port",
    "http_response_status_code",
    "error_type",
]);

pub(crate) const HTTP_CLIENT_RETRIES: Metric<Counter, 1> = Metric::counter(
    "maestro_http_client_retries_total",
    "Outbound requests that were sent again.",
)
.labels(["server_address"]);

pub(crate) const BREAKER_TRANSITIONS: Metric<Counter, 2> = Metric::counter(
    "maestro_resilience_breaker_transitions_total",
    "Changes of a circuit breaker's state: open, half_open, closed.",
)
.labels(["target", "to"]);

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
        PROCESS_CPU.describe(),
        PROCESS_RESIDENT.describe(),
        PROCESS_VIRTUAL.describe(),
        PROCESS_FDS.describe(),
        PROCESS_FDS_MAX.describe(),
        PROCESS_THREADS.describe(),
        PROCESS_START.describe(),
        RUNTIME_WORKERS.describe(),
        RUNTIME_TASKS.describe(),
        RUNTIME_QUEUE.describe(),
        RUNTIME_BUSY.describe(),
        HEALTH_STATE.describe(),
        HEALTH_DURATION.describe(),
        HTTP_DURATION.describe(),
        HTTP_ACTIVE.describe(),
        HTTP_REQUEST_SIZE.describe(),
        HTTP_RESPONSE_SIZE.describe(),
        HTTP_PANICS.describe(),
        HTTP_CLIENT_DURATION.describe(),
        HTTP_CLIENT_RETRIES.describe(),
        BREAKER_TRANSITIONS.describe(),
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
