//! What this crate measures, declared once as data.

use maestro_metrics::{
    Catalogue, Counter, FAST_DURATION_BUCKETS, Family, Gauge, Histogram, Metric, Registry,
};

use crate::config::Endpoint;
use crate::statement::Statement;

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

const POOL: &str = "db_client_connection_pool_name";

/// The conventions' `…connection.count` would end in `_count`, which Prometheus keeps for histograms
/// (`docs/adr/0053-connections-instead-of-count.md`).
const CONNECTIONS: Metric<Gauge, 2> = Metric::gauge(
    "db_client_connections",
    "Open connections, by state: idle or used.",
)
.labels([POOL, "db_client_connection_state"])
.development();
const CONNECTIONS_MAX: Metric<Gauge, 1> =
    Metric::gauge("db_client_connection_max", "Connections the pool may have.")
        .labels([POOL])
        .development();
const CONNECTIONS_IDLE_MAX: Metric<Gauge, 1> = Metric::gauge(
    "db_client_connection_idle_max",
    "Connections the pool may keep open when nothing uses them, until their idle time is over.",
)
.labels([POOL])
.development();
const CONNECTIONS_IDLE_MIN: Metric<Gauge, 1> = Metric::gauge(
    "db_client_connection_idle_min",
    "Connections the pool keeps open when nothing uses them.",
)
.labels([POOL])
.development();
const PENDING: Metric<Gauge, 1> = Metric::gauge(
    "db_client_connection_pending_requests",
    "Callers that wait for a connection.",
)
.labels([POOL])
.development();
const TIMEOUTS: Metric<Counter, 1> = Metric::counter(
    "db_client_connection_timeouts_total",
    "Callers that got no connection within the acquire timeout.",
)
.labels([POOL])
.development();
const CREATE_TIME: Metric<Histogram, 1> = Metric::seconds(
    "db_client_connection_create_time_seconds",
    "Time to open a connection.",
)
.labels([POOL])
.buckets(FAST_DURATION_BUCKETS)
.development();
const WAIT_TIME: Metric<Histogram, 1> = Metric::seconds(
    "db_client_connection_wait_time_seconds",
    "Time a caller waited for a connection.",
)
.labels([POOL])
.buckets(FAST_DURATION_BUCKETS)
.development();
const USE_TIME: Metric<Histogram, 1> = Metric::seconds(
    "db_client_connection_use_time_seconds",
    "Time between taking a connection and giving it back.",
)
.labels([POOL])
.buckets(FAST_DURATION_BUCKETS)
.development();
const DISCARDED: Metric<Counter, 2> = Metric::counter(
    "maestro_db_connections_discarded_total",
    "Connections closed instead of handed back, by reason: cancelled, broken, session.",
)
.labels([POOL, "reason"]);
const TRANSACTIONS: Metric<Counter, 1> = Metric::counter(
    "maestro_db_transactions_total",
    "Transactions by outcome: committed, rolled_back, aborted, unknown, dropped.",
)
.labels(["outcome"]);
const RETRIES: Metric<Counter> = Metric::counter(
    "maestro_db_transaction_retries_total",
    "Transactions run again after a collision.",
);
const SLOW: Metric<Counter> = Metric::counter(
    "maestro_db_slow_statements_total",
    "Statements that took longer than MAESTRO_POSTGRES_SLOW_QUERY.",
);
const READS: Metric<Counter, 1> = Metric::counter(
    "maestro_db_reads_total",
    "Statements and transactions of `db.read()`, by the server that answered: replica or primary.",
)
.labels(["server"]);
const REPLICA_LAG: Metric<Gauge> = Metric::gauge(
    "maestro_db_replica_lag_seconds",
    "How old the rows of the replica may be at most; grows while that cannot be found out.",
);

/// The metrics of this crate.
pub const CATALOGUE: Catalogue = Catalogue::new(
    "maestro-db",
    &[
        OPERATION_DURATION.describe(),
        CONNECTIONS.describe(),
        CONNECTIONS_MAX.describe(),
        CONNECTIONS_IDLE_MAX.describe(),
        CONNECTIONS_IDLE_MIN.describe(),
        PENDING.describe(),
        TIMEOUTS.describe(),
        CREATE_TIME.describe(),
        WAIT_TIME.describe(),
        USE_TIME.describe(),
        DISCARDED.describe(),
        TRANSACTIONS.describe(),
        RETRIES.describe(),
        SLOW.describe(),
        READS.describe(),
        REPLICA_LAG.describe(),
    ],
);

/// Handles of one pool.
#[derive(Debug)]
pub(crate) struct PoolMetrics {
    operations: Family<Histogram, 8>,
    database: String,
    host: String,
    port: String,
    pool: String,
    pub(crate) timeouts: Counter,
    pub(crate) create_time: Histogram,
    pub(crate) wait_time: Histogram,
    pub(crate) use_time: Histogram,
    pub(crate) cancelled: Counter,
    pub(crate) broken: Counter,
    pub(crate) session: Counter,
    pub(crate) slow: Counter,
    pub(crate) committed: Counter,
    pub(crate) rolled_back: Counter,
    pub(crate) aborted: Counter,
    pub(crate) unknown: Counter,
    pub(crate) dropped: Counter,
    pub(crate) retries: Counter,
}

/// Handles of reads that may go to a replica.
#[derive(Debug)]
pub(crate) struct ReadMetrics {
    pub(crate) replica: Counter,
    pub(crate) primary: Counter,
}

impl ReadMetrics {
    /// `lag` in seconds; `None` when nothing is known any more.
    pub(crate) fn new(
        registry: &Registry,
        lag: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        registry.observe(&REPLICA_LAG, [], lag);
        let reads = registry.family(&READS);
        Self {
            replica: reads.with(["replica"]),
            primary: reads.with(["primary"]),
        }
    }
}

/// What a scrape reads from a pool.
pub(crate) struct PoolCounts {
    pub(crate) idle: usize,
    pub(crate) used: usize,
    pub(crate) max: usize,
    pub(crate) min: usize,
    pub(crate) waiting: usize,
}

impl PoolMetrics {
    pub(crate) fn new(registry: &Registry, endpoint: &Endpoint, pool: &str) -> Self {
        let discarded = registry.family(&DISCARDED);
        let transactions = registry.family(&TRANSACTIONS);
        Self {
            operations: registry.family(&OPERATION_DURATION),
            database: endpoint.database.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port.to_string(),
            pool: pool.to_owned(),
            timeouts: registry.family(&TIMEOUTS).with([pool]),
            create_time: registry.family(&CREATE_TIME).with([pool]),
            wait_time: registry.family(&WAIT_TIME).with([pool]),
            use_time: registry.family(&USE_TIME).with([pool]),
            cancelled: discarded.with([pool, "cancelled"]),
            broken: discarded.with([pool, "broken"]),
            session: discarded.with([pool, "session"]),
            slow: registry.metric(&SLOW),
            committed: transactions.with(["committed"]),
            rolled_back: transactions.with(["rolled_back"]),
            aborted: transactions.with(["aborted"]),
            unknown: transactions.with(["unknown"]),
            dropped: transactions.with(["dropped"]),
            retries: registry.metric(&RETRIES),
        }
    }

    /// The pool's counts, read at each scrape until `read` says that the pool is gone.
    pub(crate) fn expose(
        &self,
        registry: &Registry,
        read: impl Fn() -> Option<PoolCounts> + Clone + Send + Sync + 'static,
    ) {
        let pool = self.pool.as_str();
        let each = |pick: fn(PoolCounts) -> usize| {
            let read = read.clone();
            move || read().map(|counts| pick(counts) as f64)
        };
        registry.observe(&CONNECTIONS, [pool, "idle"], each(|counts| counts.idle));
        registry.observe(&CONNECTIONS, [pool, "used"], each(|counts| counts.used));
        registry.observe(&CONNECTIONS_MAX, [pool], each(|counts| counts.max));
        registry.observe(&CONNECTIONS_IDLE_MAX, [pool], each(|counts| counts.max));
        registry.observe(&CONNECTIONS_IDLE_MIN, [pool], each(|counts| counts.min));
        registry.observe(&PENDING, [pool], each(|counts| counts.waiting));
    }

    /// The series of a statement that succeeded; looked up once per statement.
    pub(crate) fn succeeded(&self, statement: &Statement) -> Histogram {
        self.operation(statement, "", "")
    }

    /// The series of a statement that failed.
    pub(crate) fn failed(&self, statement: &Statement, sqlstate: &str, error: &str) -> Histogram {
        self.operation(statement, sqlstate, error)
    }

    fn operation(&self, statement: &Statement, sqlstate: &str, error: &str) -> Histogram {
        self.operations.with([
            "postgresql",
            &self.database,
            statement.operation,
            statement.table.as_deref().unwrap_or(""),
            sqlstate,
            error,
            &self.host,
            &self.port,
        ])
    }
}
