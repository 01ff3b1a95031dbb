//! The tables, and how they come to be.

use std::fmt::Write as _;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::error::Error;
use crate::outbox::database;

/// Creates or upgrades the tables of outbox and inbox, once, whatever number of replicas call this
/// at the same time. Run it with the service's own migrations, as the role that owns the schema
/// objects (`<db>_migrator`); the service's login needs no right on them beyond the database's
/// default privileges.
///
/// The ledger is `maestro.messaging_migrations`, apart from `_sqlx_migrations`, which belongs to the
/// service.
///
/// ```no_run
/// # async fn run(mut connection: sqlx::PgConnection) -> Result<(), maestro_messaging::Error> {
/// maestro_messaging::outbox::migrate(&mut connection).await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropping the future leaves nothing half-done: all is one transaction.
pub async fn migrate(connection: &mut PgConnection) -> Result<(), Error> {
    run(connection)
        .await
        .map_err(|error| database("creating the tables of outbox and inbox", error))
}

async fn run(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK_KEY)
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql(LEDGER).execute(&mut *transaction).await?;
    let applied: Option<i32> =
        sqlx::query_scalar("SELECT max(version) FROM maestro.messaging_migrations")
            .fetch_one(&mut *transaction)
            .await?;
    let applied = usize::try_from(applied.unwrap_or_default()).unwrap_or_default();
    for (index, step) in STEPS.iter().enumerate().skip(applied) {
        let mut script = String::from(*step);
        // Constants of this crate, no input.
        let _ = write!(
            script,
            "\nINSERT INTO maestro.messaging_migrations (version) VALUES ({});",
            index + 1
        );
        sqlx::raw_sql(AssertSqlSafe(script))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

/// `maestro-m` in ASCII; advisory locks belong to a database.
const LOCK_KEY: i64 = 0x6d61_6573_7472_6f6d;

const LEDGER: &str = "
CREATE SCHEMA IF NOT EXISTS maestro;
CREATE TABLE IF NOT EXISTS maestro.messaging_migrations (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);";

/// Applied in order, each once. Never changed after a release: a new step is appended.
const STEPS: &[&str] = &[
    "
CREATE TABLE maestro.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket smallint NOT NULL,
    message_id uuid NOT NULL,
    event_type text NOT NULL,
    key text,
    metadata jsonb NOT NULL,
    body bytea NOT NULL,
    not_before timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- What can be sent, in order; what is scheduled stays out of its way.
CREATE INDEX outbox_pending ON maestro.outbox (id) WHERE not_before IS NULL;
CREATE INDEX outbox_scheduled ON maestro.outbox (not_before) WHERE not_before IS NOT NULL;
CREATE INDEX outbox_scheduled_message ON maestro.outbox (message_id) WHERE not_before IS NOT NULL;
-- Rows live for milliseconds: the table is mostly dead rows, and small.
ALTER TABLE maestro.outbox SET (
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE maestro.outbox_lease (
    bucket smallint PRIMARY KEY,
    owner uuid,
    token bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO maestro.outbox_lease (bucket) SELECT generate_series(0, 63);

CREATE TABLE maestro.outbox_relay (
    id uuid PRIMARY KEY,
    expires_at timestamptz NOT NULL
);

CREATE TABLE maestro.inbox (
    subscription text NOT NULL,
    message_id uuid NOT NULL,
    handled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subscription, message_id)
);
CREATE INDEX inbox_handled ON maestro.inbox (handled_at);
",
    "
CREATE TABLE maestro.saga (
    saga text NOT NULL,
    key text NOT NULL,
    state text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (saga, key)
);
-- The oldest of each state.
CREATE INDEX saga_oldest ON maestro.saga (saga, state, began_at);
",
];
