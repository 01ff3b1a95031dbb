//! The variables of this crate, as data.

use maestro_config::{Kind, Table, Variable};

pub(super) const SCHEMES: &[&str] = &["postgresql", "postgres"];

pub(super) const URL: Variable =
    Variable::new("MAESTRO_POSTGRES_URL", Kind::Url { schemes: SCHEMES })
        .aliases(&["DATABASE_URL"])
        .secret()
        .required()
        .doc("The service's database, through the pooler if there is one.")
        .example("postgresql://orders:<password>@maestro-postgres:5432/orders");
pub(super) const DIRECT_URL: Variable =
    Variable::new("MAESTRO_POSTGRES_DIRECT_URL", Kind::Url { schemes: SCHEMES })
        .secret()
        .doc("The server itself, for migrations, LISTEN and advisory locks; MAESTRO_POSTGRES_URL when absent.")
        .example("postgresql://orders:<password>@maestro-postgres:5432/orders");
pub(super) const MIGRATION_URL: Variable = Variable::new(
    "MAESTRO_POSTGRES_MIGRATION_URL",
    Kind::Url { schemes: SCHEMES },
)
.secret()
.doc("The server itself as the migrating role; MAESTRO_POSTGRES_DIRECT_URL when absent.")
.example("postgresql://orders_migrator:<password>@maestro-postgres:5432/orders");
pub(super) const PASSWORD: Variable = Variable::new("MAESTRO_POSTGRES_PASSWORD", Kind::String)
    .secret()
    .doc("Password of the role in MAESTRO_POSTGRES_URL, apart from it so that only the secret rotates; the URL's own when absent.")
    .example("<password>");
pub(super) const READ_URL: Variable =
    Variable::new("MAESTRO_POSTGRES_READ_URL", Kind::Url { schemes: SCHEMES })
        .secret()
        .doc("A streaming standby: `db.read()` reads there while it is close enough behind, and the service follows it when it is promoted.")
        .example("postgresql://orders:<password>@maestro-postgres-read:5432/orders");
pub(super) const READ_MAX_LAG: Variable =
    Variable::new("MAESTRO_POSTGRES_READ_MAX_LAG", Kind::Duration)
        .default("5s")
        .doc("How far behind the standby may be for `db.read()`; beyond, reads go to the primary; above zero.")
        .example("5s");
pub(super) const POOLER: Variable =
    Variable::new("MAESTRO_POSTGRES_POOLER", Kind::Choice { words: &["none", "pgbouncer"] })
        .default("none")
        .doc("What stands between the service and the server; PgBouncer needs 1.21 or later with prepared statements.")
        .example("pgbouncer");
// Above a hundred connections per process the server does less work per second, not more.
pub(super) const POOL_MAX: Variable = Variable::new(
    "MAESTRO_POSTGRES_POOL_MAX",
    Kind::Count { min: 1, max: 1_000 },
)
.default("10")
.doc("Largest number of connections of one process.")
.example("10");
pub(super) const POOL_MIN: Variable = Variable::new(
    "MAESTRO_POSTGRES_POOL_MIN",
    Kind::Count { min: 0, max: 1_000 },
)
.default("0")
.doc("Connections kept open when nothing uses them.")
.example("2");
pub(super) const ACQUIRE_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_ACQUIRE_TIMEOUT", Kind::Duration)
        .default("5s")
        .doc("How long a caller waits for a connection; above zero.")
        .example("5s");
pub(super) const CONNECT_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_CONNECT_TIMEOUT", Kind::Duration)
        .default("5s")
        .doc("How long opening one connection may take, with TLS and authentication; above zero.")
        .example("5s");
pub(super) const STATEMENT_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_STATEMENT_TIMEOUT", Kind::Duration)
        .default("30s")
        .doc("How long one statement may run, enforced by the server and with a little grace by the client; `0` = no limit.")
        .example("30s");
pub(super) const LOCK_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_LOCK_TIMEOUT", Kind::Duration)
        .default("10s")
        .doc("How long a statement waits for a lock of another transaction; `0` = no limit.")
        .example("10s");
pub(super) const IDLE_IN_TRANSACTION_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_IDLE_IN_TRANSACTION_TIMEOUT", Kind::Duration)
        .default("60s")
        .doc("How long a transaction may sit between two statements before the server ends it; `0` = no limit.")
        .example("60s");
pub(super) const IDLE_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_IDLE_TIMEOUT", Kind::Duration)
        .default("10m")
        .doc("A connection unused for this long is closed, above the minimum; `0` = never.")
        .example("10m");
pub(super) const MAX_LIFETIME: Variable = Variable::new(
    "MAESTRO_POSTGRES_MAX_LIFETIME",
    Kind::Duration,
)
.default("30m")
.doc("A connection older than this is replaced when it is next free, with jitter; `0` = never.")
.example("30m");
pub(super) const SLOW_QUERY: Variable =
    Variable::new("MAESTRO_POSTGRES_SLOW_QUERY", Kind::Duration)
        .default("500ms")
        .doc("A statement that takes longer is logged as slow; `0` = no slow-query log.")
        .example("500ms");
pub(super) const STATEMENT_TAGS: Variable = Variable::new(
    "MAESTRO_POSTGRES_STATEMENT_TAGS",
    Kind::Choice {
        words: &["none", "service"],
    },
)
.default("none")
.doc("A comment on every statement with the service's name and version, for what shows texts and no `application_name`: `pg_stat_statements`, query insights.")
.example("service");
pub(super) const TLS_CA: Variable = Variable::new("MAESTRO_POSTGRES_TLS_CA", Kind::Path)
    .doc("Certificate authority of the server, PEM; turns full verification on.")
    .example("/run/secrets/postgres-ca.pem");
pub(super) const TLS_CERT: Variable = Variable::new("MAESTRO_POSTGRES_TLS_CERT", Kind::Path)
    .doc("Client certificate for mutual TLS, PEM; together with MAESTRO_POSTGRES_TLS_KEY.")
    .example("/run/secrets/postgres-client.pem");
pub(super) const TLS_KEY: Variable = Variable::new("MAESTRO_POSTGRES_TLS_KEY", Kind::Path)
    .doc("Key of the client certificate, PEM.")
    .example("/run/secrets/postgres-client.key");

pub(super) static TABLE: Table = Table {
    owner: "maestro-db",
    areas: &["MAESTRO_POSTGRES_"],
    variables: &[
        URL,
        DIRECT_URL,
        MIGRATION_URL,
        PASSWORD,
        READ_URL,
        READ_MAX_LAG,
        POOLER,
        POOL_MAX,
        POOL_MIN,
        ACQUIRE_TIMEOUT,
        CONNECT_TIMEOUT,
        STATEMENT_TIMEOUT,
        LOCK_TIMEOUT,
        IDLE_IN_TRANSACTION_TIMEOUT,
        IDLE_TIMEOUT,
        MAX_LIFETIME,
        SLOW_QUERY,
        STATEMENT_TAGS,
        TLS_CA,
        TLS_CERT,
        TLS_KEY,
    ],
};
