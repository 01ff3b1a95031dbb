//! The crate's metric catalogue, declared once as data.

use std::time::Duration;

use maestro_metrics::{Catalogue, Counter, Family, Gauge, Histogram, Metric, Registry, Tracked};

use crate::error::Error;

const SENT: Metric<Counter, 3> = Metric::counter(
    "messaging_client_sent_messages_total",
    "Publishes by exchange and outcome (`error_type` is empty when the broker has the message).",
)
.labels([
    "messaging_system",
    "messaging_destination_name",
    "error_type",
])
.development();
const PUBLISH_DURATION: Metric<Histogram, 3> = Metric::seconds(
    "messaging_client_operation_duration_seconds",
    "Time from the call to the broker's answer, by operation and exchange.",
)
.labels([
    "messaging_system",
    "messaging_operation_name",
    "messaging_destination_name",
])
.development();
const CONSUMED: Metric<Counter, 2> = Metric::counter(
    "messaging_client_consumed_messages_total",
    "Deliveries by queue.",
)
.labels(["messaging_system", "messaging_destination_name"])
.development();
const PROCESS_DURATION: Metric<Histogram, 3> = Metric::seconds(
    "messaging_process_duration_seconds",
    "Time in handlers by queue and outcome (`error_type` is empty when it succeeded).",
)
.labels([
    "messaging_system",
    "messaging_destination_name",
    "error_type",
])
.development();
const UNROUTED: Metric<Counter, 1> = Metric::counter(
    "maestro_messaging_unrouted_total",
    "Events that nobody listened to, by event type.",
)
.labels(["event"]);
const SETTLED: Metric<Counter, 2> = Metric::counter(
    "maestro_messaging_settled_total",
    "Deliveries by queue and what became of them: acked, retried, dead-lettered, returned, failed.",
)
.labels(["queue", "result"]);
const IN_FLIGHT: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_handlers_in_flight",
    "Handlers running, by queue.",
)
.labels(["queue"]);
const CONNECTED: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_connected",
    "1 while the connection is up, by purpose (publish, consume).",
)
.labels(["purpose"]);
const BLOCKED: Metric<Gauge> = Metric::gauge(
    "maestro_messaging_blocked",
    "1 while the broker blocks publishing (memory or disk alarm).",
);
const LAST_ALIVE: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_consumer_last_alive_seconds",
    "Seconds since the consumer of a queue was last seen working.",
)
.labels(["queue"]);
const LAG: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_consumer_lag_seconds",
    "Age of the message delivered last when it came, by queue; 0 once the queue is empty.",
)
.labels(["queue"]);
const DEPTH: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_queue_depth",
    "Messages ready in a queue of this service.",
)
.labels(["queue"]);
const DLQ_DEPTH: Metric<Gauge, 1> = Metric::gauge(
    "maestro_messaging_dlq_depth",
    "Messages in a dead-letter queue of this service.",
)
.labels(["queue"]);
const BACKLOG: Metric<Gauge, 2> = Metric::gauge(
    "maestro_messaging_backlog",
    "Deliveries of a tenant that this process holds and has not settled, by queue, for the busiest \
     tenants: whose messages wait or are retried. What waits in the broker has no tenant to it.",
)
.labels(["queue", "tenant"])
.top("tenant", 20);
const OUTBOX_DEPTH: Metric<Gauge> = Metric::gauge(
    "maestro_messaging_outbox_depth",
    "Events written down and not published yet, scheduled ones aside; counted up to 100,000.",
);
const OUTBOX_AGE: Metric<Gauge> = Metric::gauge(
    "maestro_messaging_outbox_oldest_age_seconds",
    "Age of the oldest event that waits to be published; 0 when none does.",
);
const SAGA_AGE: Metric<Gauge, 2> = Metric::gauge(
    "maestro_messaging_saga_oldest_age_seconds",
    "Age of the oldest running saga, by kind and state; 0 when none is in that state.",
)
.labels(["saga", "state"]);
const SAGA_DURATION: Metric<Histogram, 1> = Metric::seconds(
    "maestro_messaging_saga_duration_seconds",
    "Time from the beginning of a saga to its end, by kind.",
)
.labels(["saga"]);
const SAGA_TIMEOUTS: Metric<Counter, 1> = Metric::counter(
    "maestro_messaging_saga_timeouts_total",
    "Sagas that ended because their time was up, by kind.",
)
.labels(["saga"]);

/// Every metric of this crate; `docs/metrics.md`, dashboards and rules come from it.
pub const CATALOGUE: Catalogue = Catalogue::new(
    "maestro-messaging",
    &[
        SENT.describe(),
        PUBLISH_DURATION.describe(),
        CONSUMED.describe(),
        PROCESS_DURATION.describe(),
        UNROUTED.describe(),
        SETTLED.describe(),
        IN_FLIGHT.describe(),
        CONNECTED.describe(),
        BLOCKED.describe(),
        LAST_ALIVE.describe(),
        LAG.describe(),
        DEPTH.describe(),
        DLQ_DEPTH.describe(),
        BACKLOG.describe(),
        OUTBOX_DEPTH.describe(),
        OUTBOX_AGE.describe(),
        SAGA_AGE.describe(),
        SAGA_DURATION.describe(),
        SAGA_TIMEOUTS.describe(),
    ],
);

/// The handles of one client.
#[derive(Debug)]
pub(crate) struct Metrics {
    sent: Family<Counter, 3>,
    published: Counter,
    publish_duration: Histogram,
    pub(crate) unrouted: Family<Counter, 1>,
    consumed: Family<Counter, 2>,
    process_duration: Family<Histogram, 3>,
    settled: Family<Counter, 2>,
    in_flight: Family<Gauge, 1>,
    pub(crate) connected: Family<Gauge, 1>,
    pub(crate) blocked: Gauge,
    last_alive: Family<Gauge, 1>,
    lag: Family<Gauge, 1>,
    depth: Family<Gauge, 1>,
    dlq_depth: Family<Gauge, 1>,
    backlog: Family<Gauge, 2>,
    #[cfg(feature = "outbox")]
    pub(crate) outbox_depth: Gauge,
    #[cfg(feature = "outbox")]
    pub(crate) outbox_age: Gauge,
    #[cfg(feature = "outbox")]
    pub(crate) sagas: SagaMetrics,
    events_exchange: String,
}

/// What sagas are measured by.
#[cfg(feature = "outbox")]
#[derive(Debug)]
pub(crate) struct SagaMetrics {
    pub(crate) oldest_age: Family<Gauge, 2>,
    pub(crate) duration: Family<Histogram, 1>,
    pub(crate) timeouts: Family<Counter, 1>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, events_exchange: String) -> Self {
        let sent = registry.family(&SENT);
        Self {
            published: sent.with([SYSTEM, &events_exchange, ""]),
            publish_duration: registry.family(&PUBLISH_DURATION).with([
                SYSTEM,
                "publish",
                &events_exchange,
            ]),
            sent,
            unrouted: registry.family(&UNROUTED),
            consumed: registry.family(&CONSUMED),
            process_duration: registry.family(&PROCESS_DURATION),
            settled: registry.family(&SETTLED),
            in_flight: registry.family(&IN_FLIGHT),
            connected: registry.family(&CONNECTED),
            blocked: registry.metric(&BLOCKED),
            last_alive: registry.family(&LAST_ALIVE),
            lag: registry.family(&LAG),
            depth: registry.family(&DEPTH),
            dlq_depth: registry.family(&DLQ_DEPTH),
            backlog: registry.family(&BACKLOG),
            #[cfg(feature = "outbox")]
            outbox_depth: registry.metric(&OUTBOX_DEPTH),
            #[cfg(feature = "outbox")]
            outbox_age: registry.metric(&OUTBOX_AGE),
            #[cfg(feature = "outbox")]
            sagas: SagaMetrics {
                oldest_age: registry.family(&SAGA_AGE),
                duration: registry.family(&SAGA_DURATION),
                timeouts: registry.family(&SAGA_TIMEOUTS),
            },
            events_exchange,
        }
    }

    /// A publish has ended, well or with this error.
    pub(crate) fn publish_ended(&self, took: Duration, error: Option<&Error>) {
        self.publish_duration.observe_duration(took);
        match error {
            None => self.published.increment(),
            Some(error) => self
                .sent
                .with([SYSTEM, &self.events_exchange, error.kind().as_str()])
                .increment(),
        }
    }

    pub(crate) fn queue(&self, queue: &str, dead: &str) -> QueueMetrics {
        let settled = |result| self.settled.with([queue, result]);
        let processed = |error| self.process_duration.with([SYSTEM, queue, error]);
        QueueMetrics {
            consumed: self.consumed.with([SYSTEM, queue]),
            succeeded: processed(""),
            failed: processed("failed"),
            timed_out: processed("timeout"),
            panicked: processed("panic"),
            acked: settled("acked"),
            retried: settled("retried"),
            dead_lettered: settled("dead-lettered"),
            returned: settled("returned"),
            unsettled: settled("failed"),
            in_flight: self.in_flight.with([queue]),
            last_alive: self.last_alive.with([queue]),
            lag: self.lag.with([queue]),
            depth: self.depth.with([queue]),
            dlq_depth: self.dlq_depth.with([dead]),
            backlog: self.backlog.clone(),
            name: queue.into(),
        }
    }
}

/// The handles of one subscription.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) consumed: Counter,
    pub(crate) succeeded: Histogram,
    pub(crate) failed: Histogram,
    pub(crate) timed_out: Histogram,
    pub(crate) panicked: Histogram,
    pub(crate) acked: Counter,
    pub(crate) retried: Counter,
    pub(crate) dead_lettered: Counter,
    pub(crate) returned: Counter,
    pub(crate) unsettled: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) last_alive: Gauge,
    pub(crate) lag: Gauge,
    pub(crate) depth: Gauge,
    pub(crate) dlq_depth: Gauge,
    backlog: Family<Gauge, 2>,
    /// Of the queue.
    name: Box<str>,
}

impl QueueMetrics {
    /// A delivery of a tenant is held, until the guard is dropped.
    pub(crate) fn hold(&self, tenant: &str) -> Tracked {
        self.backlog.with([&self.name, tenant]).track()
    }
}

const SYSTEM: &str = "rabbitmq";
