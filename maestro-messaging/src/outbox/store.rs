//! Writing events down beside the data they are about.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{Executor, PgExecutor, Postgres};
use uuid::Uuid;

use crate::client::{Inner, Messaging};
use crate::envelope::Envelope;
use crate::error::Error;
use crate::event::Event;
use crate::outbox::answered;
use crate::outbox::lease::BUCKETS;
use crate::outbox::relay::RelayBuilder;
use crate::publish;
use crate::transport::Outgoing;

/// Publishes events with the transaction that causes them.
///
/// ```no_run
/// # use maestro_messaging::{Event, outbox::Outbox};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { order_id: String }
/// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed.v1"; }
/// # async fn place(outbox: Outbox, pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// sqlx::query("INSERT INTO orders (id) VALUES ($1)").bind("7").execute(&mut *tx).await?;
/// outbox.add(&mut *tx, &OrderPlaced { order_id: "7".into() }).await?;
/// tx.commit().await?;                     // published from here on, and only from here on
/// # Ok(())
/// # }
/// ```
///
/// Events of one key are published in the order of their transactions if those transactions lock
/// the same thing before `add` (the row the key names, usually): ids are given before commit, so
/// without a lock two transactions can commit the other way round.
#[derive(Clone)]
pub struct Outbox {
    pub(crate) inner: Arc<Inner>,
}

impl Outbox {
    pub(crate) fn new(messaging: &Messaging) -> Self {
        Self {
            inner: Arc::clone(messaging.inner()),
        }
    }

    /// Writes an event down in the caller's transaction. Trace, correlation id and tenant of the
    /// work in hand travel along. Returns the message's identity.
    pub async fn add<'c, E: Event>(
        &self,
        executor: impl PgExecutor<'c>,
        event: &E,
    ) -> Result<Uuid, Error> {
        self.insert(executor, event, None).await
    }

    /// Writes down an event that is published at a time, not before: a delayed message, or the
    /// timeout of a saga, which [`cancel`](Self::cancel) takes back. Order among scheduled events
    /// is not promised.
    pub async fn schedule<'c, E: Event>(
        &self,
        executor: impl PgExecutor<'c>,
        event: &E,
        not_before: SystemTime,
    ) -> Result<Uuid, Error> {
        self.insert(executor, event, Some(not_before)).await
    }

    /// Takes back a scheduled event. False if it is due or published already.
    pub async fn cancel<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        message_id: Uuid,
    ) -> Result<bool, Error> {
        let deleted = sqlx::query(
            "DELETE FROM maestro.outbox WHERE message_id = $1 AND not_before IS NOT NULL",
        )
        .bind(message_id)
        .execute(executor);
        let deleted = answered("cancelling a scheduled event", deleted).await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Begins a relay, which publishes what is written down. Every replica runs one; they share the
    /// work.
    ///
    /// `database` is a [`sqlx::PgPool`] or anything of which a reference executes statements.
    ///
    /// ```no_run
    /// # async fn example(outbox: maestro_messaging::outbox::Outbox, pool: sqlx::PgPool) {
    /// use std::time::{Duration, Instant};
    ///
    /// let relay = outbox.relay(pool).start();
    /// // At the end, after the consumers and before the connections:
    /// let ended = relay.drain_step().run(Instant::now() + Duration::from_secs(10)).await;
    /// println!("{} took {:?}", ended.name, ended.took);
    /// # }
    /// ```
    pub fn relay<D>(&self, database: D) -> RelayBuilder<D>
    where
        D: Send + Sync + 'static,
        for<'c> &'c D: Executor<'c, Database = Postgres>,
    {
        RelayBuilder::new(self, database)
    }

    async fn insert<'c, E: Event>(
        &self,
        executor: impl PgExecutor<'c>,
        event: &E,
        not_before: Option<SystemTime>,
    ) -> Result<Uuid, Error> {
        let (envelope, outgoing) = publish::prepare(self.inner.service(), event, None)?;
        let bucket = bucket(&envelope);
        let metadata = Metadata::of(&envelope);
        // Seconds since the epoch: what is due is decided by the database's clock alone.
        let due = not_before.map(|at| {
            at.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64()
        });
        // One round trip. Notifications of one transaction are one; a scheduled event wakes nobody.
        let inserted = sqlx::query(
            "WITH row AS (
                INSERT INTO maestro.outbox (bucket, message_id, event_type, key, metadata, body, not_before)
                VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7))
                RETURNING not_before
            )
            SELECT pg_notify('maestro_outbox', '') FROM row WHERE not_before IS NULL",
        )
        .bind(bucket)
        .bind(envelope.message_id)
        .bind(envelope.event_type.as_str())
        .bind(envelope.key.as_deref())
        .bind(Json(&metadata))
        .bind(outgoing.body.as_ref())
        .bind(due)
        .execute(executor);
        answered("adding an event to the outbox", inserted).await?;
        Ok(envelope.message_id)
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox")
            .field("service", self.inner.service())
            .finish()
    }
}

impl Messaging {
    /// The outbox: events published with the transaction that causes them.
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self)
    }
}

/// What an envelope holds beside what has a column.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    causation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baggage: Option<String>,
    /// Seconds since the epoch.
    published_at: u64,
}

impl Metadata {
    fn of(envelope: &Envelope) -> Self {
        let since = envelope
            .published_at
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            correlation_id: envelope.correlation_id.clone(),
            causation_id: envelope.causation_id.clone(),
            tenant: envelope.tenant.clone(),
            traceparent: envelope.traceparent.clone(),
            tracestate: envelope.tracestate.clone(),
            baggage: envelope.baggage.clone(),
            published_at: since.unwrap_or_default().as_secs(),
        }
    }
}

/// A row as the relay reads it.
pub(crate) type Row = (
    i64,
    i16,
    Uuid,
    String,
    Option<String>,
    Json<Metadata>,
    Vec<u8>,
);

/// The message of a row.
pub(crate) fn outgoing(inner: &Inner, row: Row) -> Result<Outgoing, Error> {
    let (_, _, message_id, event_type, key, Json(metadata), body) = row;
    let mut envelope = Envelope::new(&event_type, inner.service().as_str());
    envelope.message_id = message_id;
    envelope.key = key;
    envelope.correlation_id = metadata.correlation_id;
    envelope.causation_id = metadata.causation_id;
    envelope.tenant = metadata.tenant;
    envelope.traceparent = metadata.traceparent;
    envelope.tracestate = metadata.tracestate;
    envelope.baggage = metadata.baggage;
    envelope.published_at = UNIX_EPOCH.checked_add(Duration::from_secs(metadata.published_at));
    publish::outgoing(&inner.exchange, &event_type, &envelope, body.into())
}

/// The bucket of an event: by its key, so that one relay has all events of a key.
fn bucket(envelope: &Envelope) -> i16 {
    let hash = match &envelope.key {
        Some(key) => hash(key.as_bytes()),
        None => hash(envelope.message_id.as_bytes()),
    };
    i16::try_from(hash % BUCKETS).unwrap_or_default()
}

/// FNV-1a: rows written by one version are read by another, so the hash is fixed here.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_bucket_for_ever_and_keys_spread_over_all() {
        let mut envelope = Envelope::new("order.placed.v1", "orders");
        envelope.key = Some("order-7".to_owned());
        assert_eq!(bucket(&envelope), 59);
        let mut seen = std::collections::HashSet::new();
        for number in 0..2_000 {
            envelope.key = Some(format!("order-{number}"));
            seen.insert(bucket(&envelope));
        }
        assert_eq!(seen.len(), 64);
        assert!(seen.iter().all(|bucket| (0..64).contains(bucket)));
    }

    #[test]
    fn metadata_of_older_and_newer_versions_is_read() {
        let metadata: Metadata = serde_json::from_str(r#"{"tenant":"acme","later":1}"#).unwrap();
        assert_eq!(metadata.tenant.as_deref(), Some("acme"));
        assert_eq!(metadata.published_at, 0);
    }
}
