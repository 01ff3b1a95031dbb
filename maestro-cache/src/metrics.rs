//! What this crate measures, declared once as data.

use maestro_metrics::{
    Catalogue, Counter, FAST_DURATION_BUCKETS, Family, Gauge, Histogram, Metric, Registry,
    StripedCounter,
};

use crate::config::CacheConfig;
use crate::error::ErrorKind;

const OPERATION_DURATION: Metric<Histogram, 8> = Metric::seconds(
    "db_client_operation_duration_seconds",
    "Time of one statement, from sending it to the end of its answer.",
)
.labels([
    "db_system_name",
    "db_namespace",
    "db_operation_name",
    "db_collection_name",
    "db_response_status_code",
    "error_type",
    "server_address",
    "server_port",
])
.buckets(FAST_DURATION_BUCKETS);
const REQUESTS: Metric<Counter, 3> = Metric::counter(
    "maestro_cache_requests_total",
    "Lookups by region, level (local, redis) and result (hit, miss, stale, error).",
)
.labels(["region", "level", "result"]);
const LOADS: Metric<Histogram, 2> = Metric::seconds(
    "maestro_cache_load_duration_seconds",
    "Time in loaders, by region and result (ok, or the kind of error).",
)
.labels(["region", "result"]);
const STALE: Metric<Counter, 1> = Metric::counter(
    "maestro_cache_stale_served_total",
    "Values past their lifetime that stood in for a load that failed or took too long.",
)
.labels(["region"]);
const UNUSABLE: Metric<Counter, 2> = Metric::counter(
    "maestro_cache_unusable_values_total",
    "Stored bytes that counted as a miss, by reason (foreign, damaged, type, wrong_type).",
)
.labels(["region", "reason"]);
const UNSTORED: Metric<Counter, 2> = Metric::counter(
    "maestro_cache_unstored_loads_total",
    "Loaded values that were not stored, by reason (newer, invalidated, late, or a kind of error).",
)
.labels(["region", "reason"]);
const INVALIDATIONS: Metric<Counter> = Metric::counter(
    "maestro_cache_invalidations_total",
    "Changed keys that the server pushed to this process.",
);
const LAG: Metric<Histogram> = Metric::seconds(
    "maestro_cache_invalidation_lag_seconds",
    "Time from sending a change of a key to hearing of it on the connection for invalidations.",
)
.buckets(FAST_DURATION_BUCKETS);
const DEFERRED: Metric<Gauge> = Metric::gauge(
    "maestro_cache_deferred_invalidations",
    "Invalidations that wait for Redis to be back.",
);
const ENTRIES: Metric<Gauge> =
    Metric::gauge("maestro_cache_local_entries", "Values in process memory.");
const BYTES: Metric<Gauge> = Metric::gauge(
    "maestro_cache_local_bytes",
    "Memory counted for values in process memory.",
);
const CONNECTED: Metric<Gauge, 1> = Metric::gauge(
    "maestro_cache_connected",
    "1 while connected, by purpose (commands, invalidations).",
)
.labels(["purpose"]);
const BREAKER_TRANSITIONS: Metric<Counter, 2> = Metric::counter(
    "maestro_resilience_breaker_transitions_total",
    "Changes of a circuit breaker's state: open, half_open, closed.",
)
.labels(["target", "to"]);
const BREAKER_OPEN: Metric<Gauge, 1> = Metric::gauge(
    "maestro_resilience_breaker_open",
    "1 while a circuit breaker is open, by target.",
)
.labels(["target"]);

const LOCKS: Metric<Counter, 1> = Metric::counter(
    "maestro_cache_lock_attempts_total",
    "Attempts to take a lock, by result (acquired, held, or a kind of error).",
)
.labels(["result"]);
const LEASES_LOST: Metric<Counter> = Metric::counter(
    "maestro_cache_leases_lost_total",
    "Locks whose lease could not be renewed in time, while their holder still worked.",
);
const LIMITS: Metric<Counter, 2> = Metric::counter(
    "maestro_cache_limit_checks_total",
    "Decisions of rate limiters, by result (allowed, refused, allowed_without_redis, refused_without_redis).",
)
.labels(["limiter", "result"]);

/// Every metric of this crate; `docs/metrics.md`, dashboards and rules come from it.
pub const CATALOGUE: Catalogue = Catalogue::new(
    "maestro-cache",
    &[
        OPERATION_DURATION.describe(),
        REQUESTS.describe(),
        LOADS.describe(),
        STALE.describe(),
        UNUSABLE.describe(),
        UNSTORED.describe(),
        INVALIDATIONS.describe(),
        LAG.describe(),
        DEFERRED.describe(),
        ENTRIES.describe(),
        BYTES.describe(),
        CONNECTED.describe(),
        BREAKER_TRANSITIONS.describe(),
        BREAKER_OPEN.describe(),
        LOCKS.describe(),
        LEASES_LOST.describe(),
        LIMITS.describe(),
    ],
);

/// What is asked of the server: commands, and scripts under the name of what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Ping,
    Get,
    MultiGet,
    Begin,
    Store,
    Remove,
    Mark,
    Lock,
    Renew,
    Release,
    Limit,
    List,
    Counter,
    Session,
    Publish,
}

impl Operation {
    const ALL: [Self; 15] = [
        Self::Ping,
        Self::Get,
        Self::MultiGet,
        Self::Begin,
        Self::Store,
        Self::Remove,
        Self::Mark,
        Self::Lock,
        Self::Renew,
        Self::Release,
        Self::Limit,
        Self::List,
        Self::Counter,
        Self::Session,
        Self::Publish,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Get => "GET",
            Self::MultiGet => "MGET",
            Self::Begin => "begin",
            Self::Store => "store",
            Self::Remove => "remove",
            Self::Mark => "mark",
            Self::Lock => "lock",
            Self::Renew => "renew",
            Self::Release => "release",
            Self::Limit => "limit",
            Self::List => "list",
            Self::Counter => "counter",
            Self::Session => "session",
            Self::Publish => "PUBLISH",
        }
    }
}

const SYSTEM: &str = "redis";

/// Handles of one cache.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    operations: Family<Histogram, 8>,
    /// By operation, for answers without error: resolved once.
    succeeded: Vec<Histogram>,
    database: String,
    address: String,
    port: String,
    pub(crate) invalidations: Counter,
    pub(crate) lag: Histogram,
    pub(crate) deferred: Gauge,
    pub(crate) connected: Gauge,
    pub(crate) tracking: Gauge,
    breaker_opened: Counter,
    breaker_closed: Counter,
    breaker_open: Gauge,
    locks: Family<Counter, 1>,
    pub(crate) leases_lost: Counter,
    limits: Family<Counter, 2>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, config: &CacheConfig) -> Self {
        let operations = registry.family(&OPERATION_DURATION);
        let (database, port) = (config.database.to_string(), config.port.to_string());
        let succeeded = Operation::ALL
            .iter()
            .map(|operation| {
                operations.with([
                    SYSTEM,
                    &database,
                    operation.as_str(),
                    "",
                    "",
                    "",
                    &config.host,
                    &port,
                ])
            })
            .collect();
        let connected = registry.family(&CONNECTED);
        let transitions = registry.family(&BREAKER_TRANSITIONS);
        Self {
            registry: registry.clone(),
            operations,
            succeeded,
            database,
            address: config.host.clone(),
            port,
            invalidations: registry.metric(&INVALIDATIONS),
            lag: registry.metric(&LAG),
            deferred: registry.metric(&DEFERRED),
            connected: connected.with(["commands"]),
            tracking: connected.with(["invalidations"]),
            breaker_opened: transitions.with([SYSTEM, "open"]),
            breaker_closed: transitions.with([SYSTEM, "closed"]),
            breaker_open: registry.family(&BREAKER_OPEN).with([SYSTEM]),
            locks: registry.family(&LOCKS),
            leases_lost: registry.metric(&LEASES_LOST),
            limits: registry.family(&LIMITS),
        }
    }

    /// Reads the size of process memory at every scrape.
    pub(crate) fn observe_local(&self, coherence: &std::sync::Arc<crate::coherence::Coherence>) {
        let weak = std::sync::Arc::downgrade(coherence);
        let entries = weak.clone();
        self.registry
            .observe(&ENTRIES, [], move || Some(entries.upgrade()?.len() as f64));
        self.registry
            .observe(&BYTES, [], move || Some(weak.upgrade()?.weight() as f64));
    }

    pub(crate) fn succeeded(&self, operation: Operation) -> Option<&Histogram> {
        let index = Operation::ALL.iter().position(|known| *known == operation);
        self.succeeded.get(index?)
    }

    pub(crate) fn failed(&self, operation: Operation, code: &str, kind: ErrorKind) -> Histogram {
        self.operations.with([
            SYSTEM,
            &self.database,
            operation.as_str(),
            "",
            code,
            kind.as_str(),
            &self.address,
            &self.port,
        ])
    }

    pub(crate) fn lock(&self, result: &str) {
        self.locks.with([result]).increment();
    }

    pub(crate) fn limit(&self, limiter: &str, result: &str) {
        self.limits.with([limiter, result]).increment();
    }

    pub(crate) fn breaker(&self, open: bool) {
        if open {
            self.breaker_opened.increment();
        } else {
            self.breaker_closed.increment();
        }
        self.breaker_open.set(f64::from(u8::from(open)));
    }

    pub(crate) fn region(&self, name: &str) -> RegionMetrics {
        let requests = self.registry.family(&REQUESTS);
        let request = |level, result| requests.with([name, level, result]);
        RegionMetrics {
            name: name.into(),
            local_hit: request("local", "hit").striped(),
            local_miss: request("local", "miss").striped(),
            redis_hit: request("redis", "hit").striped(),
            redis_miss: request("redis", "miss"),
            redis_stale: request("redis", "stale"),
            redis_error: request("redis", "error"),
            loaded: self.registry.family(&LOADS).with([name, "ok"]),
            loads: self.registry.family(&LOADS),
            stale_served: self.registry.family(&STALE).with([name]),
            unusable: self.registry.family(&UNUSABLE),
            unstored: self.registry.family(&UNSTORED),
        }
    }
}

/// Handles of one region.
#[derive(Debug)]
pub(crate) struct RegionMetrics {
    name: Box<str>,
    pub(crate) local_hit: StripedCounter,
    pub(crate) local_miss: StripedCounter,
    pub(crate) redis_hit: StripedCounter,
    pub(crate) redis_miss: Counter,
    pub(crate) redis_stale: Counter,
    pub(crate) redis_error: Counter,
    pub(crate) loaded: Histogram,
    loads: Family<Histogram, 2>,
    pub(crate) stale_served: Counter,
    unusable: Family<Counter, 2>,
    unstored: Family<Counter, 2>,
}

impl RegionMetrics {
    pub(crate) fn load_failed(&self, kind: ErrorKind) -> Histogram {
        self.loads.with([&self.name, kind.as_str()])
    }

    pub(crate) fn unusable(&self, reason: &str) {
        self.unusable.with([&self.name, reason]).increment();
    }

    pub(crate) fn unstored(&self, reason: &str) {
        self.unstored.with([&self.name, reason]).increment();
    }
}
