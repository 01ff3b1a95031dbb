//! Effects that happen once.

use std::time::Duration;

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::error::Error;
use crate::outbox::answered;

/// Remembers which messages a subscription has handled, in the transaction of their effects.
///
/// ```no_run
/// # use maestro_messaging::{HandlerError, MessageContext, outbox::Inbox};
/// # struct OrderPlaced { order_id: String }
/// # async fn handle(pool: &sqlx::PgPool, event: OrderPlaced, context: MessageContext) -> Result<(), HandlerError> {
/// let mut tx = pool.begin().await?;
/// if !Inbox.once(&mut *tx, context.subscription(), context.message_id()).await? {
///     return Ok(());                       // its effects are there already
/// }
/// sqlx::query("INSERT INTO invoices (order_id) VALUES ($1)").bind(event.order_id).execute(&mut *tx).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Inbox;

impl Inbox {
    /// True if this is the first time, seen from this transaction: go on, and commit both together.
    /// False if an earlier transaction has handled the message.
    ///
    /// While another transaction handles the same message, this waits for its end.
    pub async fn once<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        subscription: &str,
        message_id: Uuid,
    ) -> Result<bool, Error> {
        let inserted = sqlx::query(
            "INSERT INTO maestro.inbox (subscription, message_id) VALUES ($1, $2)
             ON CONFLICT DO NOTHING",
        )
        .bind(subscription)
        .bind(message_id)
        .execute(executor);
        let inserted = answered("looking a message up in the inbox", inserted).await?;
        Ok(inserted.rows_affected() == 1)
    }

    /// Forgets what was handled longer ago than this, at most 10,000 rows a call; returns how many.
    /// A relay does this by itself ([`RelayBuilder::inbox_retention`]).
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), maestro_messaging::Error> {
    /// use std::time::Duration;
    /// use maestro_messaging::outbox::Inbox;
    ///
    /// // A service that consumes and has no relay, once a day:
    /// while Inbox.forget(&pool, Duration::from_hours(7 * 24)).await? == 10_000 {}
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`RelayBuilder::inbox_retention`]: crate::outbox::RelayBuilder::inbox_retention
    pub async fn forget<'c>(
        &self,
        executor: impl PgExecutor<'c>,
        older_than: Duration,
    ) -> Result<u64, Error> {
        let deleted = sqlx::query(
            "DELETE FROM maestro.inbox WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM maestro.inbox
                WHERE handled_at < now() - make_interval(secs => $1)
                ORDER BY handled_at LIMIT 10000
            ))",
        )
        .bind(older_than.as_secs_f64())
        .execute(executor);
        Ok(answered("cleaning the inbox", deleted)
            .await?
            .rows_affected())
    }
}
