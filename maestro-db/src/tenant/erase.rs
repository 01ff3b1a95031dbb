//! Erasing a tenant, with a receipt.

use std::fmt;
use std::time::{Duration, Instant};

use futures_core::future::BoxFuture;
use sqlx::AssertSqlSafe;
use sqlx::types::chrono::{DateTime, Utc};

use super::admin::note;
use super::export::counts;
use super::tables::tables;
use super::{ENTERED, TenantId, TenantModel, Tenants};
use crate::error::{Error, ErrorKind};
use crate::transaction::TransactionOptions;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What else holds data of a tenant, outside its tables: keys in Redis, rows of the outbox, files.
pub struct EraseHook {
    name: String,
    run: Box<dyn Fn(TenantId) -> BoxFuture<'static, Result<u64, BoxError>> + Send + Sync>,
}

impl EraseHook {
    /// `erase` returns how many things it erased. It is run again when an erasure is repeated.
    ///
    /// ```
    /// use maestro_db::EraseHook;
    ///
    /// let keys = EraseHook::new("redis", |tenant| async move {
    ///     println!("erasing the keys of {tenant}");
    ///     Ok(17)
    /// });
    /// # let _ = keys;
    /// ```
    pub fn new<F, Fut>(name: impl Into<String>, erase: F) -> Self
    where
        F: Fn(TenantId) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, BoxError>> + Send + 'static,
    {
        Self {
            name: name.into(),
            run: Box::new(move |tenant| Box::pin(erase(tenant))),
        }
    }
}

impl fmt::Debug for EraseHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EraseHook")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What was erased; also in the audit trail, which stays.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EraseReceipt {
    /// The tenant that was.
    pub tenant: TenantId,
    /// Rows by table, of all runs when the erasure was interrupted and repeated.
    pub tables: Vec<(String, u64)>,
    /// What the hooks reported, by name.
    pub hooks: Vec<(String, u64)>,
    /// The number of its entry in the audit trail.
    pub entry: i64,
}

impl EraseReceipt {
    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|(_, rows)| rows).sum()
    }
}

/// Longest wait for transactions that were begun before the tenant was closed.
const OTHERS: Duration = Duration::from_mins(2);

/// Longest run of one hook.
const HOOK: Duration = Duration::from_mins(10);

impl Tenants {
    /// Erases a tenant: nobody enters any more, its rows are deleted table by table, then what the
    /// hooks erase, at last the tenant itself. Its audit trail stays and ends with the receipt.
    ///
    /// Takes at least as long as a replica may still let the tenant in (five seconds), and waits for
    /// the transactions that are under way, so that none of them leaves a row behind.
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use maestro_db::{EraseHook, TenantId};
    ///
    /// let keys = EraseHook::new("redis", |_tenant| async move { Ok(0) });
    /// let receipt = db.tenants()?.erase(&TenantId::parse("acme")?, &[keys]).await?;
    /// println!("{} rows, and {:?}; entry {}", receipt.rows(), receipt.hooks, receipt.entry);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such tenant; else what stopped it. The tenant stays
    /// closed then, and calling this again goes on.
    ///
    /// # Cancellation
    /// Dropping the future stops between two tables; the tenant stays closed.
    pub async fn erase(&self, id: &TenantId, hooks: &[EraseHook]) -> Result<EraseReceipt, Error> {
        self.close_for_good(id).await?;
        self.wait_for_others().await?;
        self.erase_rows(id).await?;
        for hook in hooks {
            let failed = |error: BoxError| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the hook `{}` could not erase what is of tenant {id}",
                        hook.name
                    ),
                )
                .with_source(error)
            };
            let count = match tokio::time::timeout(HOOK, (hook.run)(id.clone())).await {
                Ok(result) => result.map_err(failed)?,
                Err(late) => return Err(failed(late.into()).of_kind(ErrorKind::Timeout)),
            };
            let mut tx = self.db.begin().await?;
            let detail = serde_json::json!({ "hooks": { hook.name.as_str(): count } });
            note(&mut tx, id, "erased part", &detail).await?;
            tx.commit().await?;
        }
        if self.model == TenantModel::Schemas {
            self.drop_schema(id).await?;
        }
        self.receipt(id).await
    }

    async fn close_for_good(&self, id: &TenantId) -> Result<(), Error> {
        let mut tx = self.db.begin().await?;
        let state: Option<String> = sqlx::query_scalar(
            "with old as (select id, state from maestro.tenants where id = $1 for update) \
             update maestro.tenants t set state = 'erasing', changed_at = now() from old where t.id = old.id returning old.state",
        )
        .bind(id.as_str())
        .fetch_optional(&mut tx)
        .await
        .map_err(|error| Error::during(format!("closing tenant {id} failed"), error))?;
        match state.as_deref() {
            None => {
                tx.rollback().await?;
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("there is no tenant {id}"),
                ));
            }
            Some("erasing") => {}
            Some(_) => note(&mut tx, id, "erasing", &serde_json::json!({})).await?,
        }
        tx.commit().await?;
        self.db.inner().entered.forget(id);
        Ok(())
    }

    /// Until nobody can be inside any more: replicas have forgotten that the tenant may be entered, and
    /// every transaction that was open then has ended.
    async fn wait_for_others(&self) -> Result<(), Error> {
        tokio::time::sleep(ENTERED).await;
        let failed = |error| Error::during("looking for open transactions failed", error);
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
            .fetch_one(&self.db)
            .await
            .map_err(failed)?;
        let started = Instant::now();
        loop {
            let over: bool = sqlx::query_scalar(
                // The replicas' sessions are of the same role, so they can be seen from here.
                "select not exists (select from pg_catalog.pg_stat_activity where datname = current_database() \
                   and usename = session_user and pid <> pg_catalog.pg_backend_pid() and xact_start < $1)",
            )
            .bind(now)
            .fetch_one(&self.db)
            .await
            .map_err(failed)?;
            if over {
                return Ok(());
            }
            if started.elapsed() > OTHERS {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "transactions that may be of the tenant have been open for {OTHERS:?}: end them, then erase again"
                    ),
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn erase_rows(&self, id: &TenantId) -> Result<(), Error> {
        let mut tx = self.inside(id, TransactionOptions::new()).await?;
        let mut found = tables(&mut tx, self.model, id).await?;
        tx.rollback().await?;
        // Those that refer to others first.
        found.reverse();
        for table in found {
            let mut tx = self.inside(id, TransactionOptions::new()).await?;
            // The name is the catalogue's own, quoted by the server.
            let deleted = sqlx::query(AssertSqlSafe(format!("delete from {}", table.name)))
                .execute(&mut tx)
                .await
                .map_err(|error| Error::during(format!("erasing {} failed", table.name), error))?;
            // In the same transaction, so that the receipt counts each row once.
            let rows = [(table.name, deleted.rows_affected())];
            note(&mut tx, id, "erased part", &counts(&rows)).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Sums up what this erasure has noted, and ends it.
    async fn receipt(&self, id: &TenantId) -> Result<EraseReceipt, Error> {
        let mut tx = self.db.begin().await?;
        let failed =
            |error| Error::during(format!("writing the receipt of tenant {id} failed"), error);
        let parts = |kind: &'static str| {
            sqlx::query_as::<_, (String, i64)>(
                "select e.key, sum(e.value::bigint)::bigint from maestro.tenant_audit a, jsonb_each_text(a.detail -> $2) e \
                 where a.tenant = $1 and a.action = 'erased part' and a.number > \
                   (select max(number) from maestro.tenant_audit where tenant = $1 and action = 'erasing') \
                 group by e.key order by e.key",
            )
            .bind(id.as_str())
            .bind(kind)
        };
        let tables = parts("tables").fetch_all(&mut tx).await.map_err(failed)?;
        let hooks = parts("hooks").fetch_all(&mut tx).await.map_err(failed)?;
        for sql in [
            "delete from maestro.tenant_migrations where tenant = $1",
            "delete from maestro.tenants where id = $1",
        ] {
            sqlx::query(sql)
                .bind(id.as_str())
                .execute(&mut tx)
                .await
                .map_err(failed)?;
        }
        let positive = |parts: Vec<(String, i64)>| -> Vec<(String, u64)> {
            parts
                .into_iter()
                .map(|(name, count)| (name, count.unsigned_abs()))
                .collect()
        };
        let (tables, hooks) = (positive(tables), positive(hooks));
        let detail = serde_json::json!({ "tables": counts(&tables)["tables"], "hooks": counts(&hooks)["tables"] });
        let entry: i64 = sqlx::query_scalar(
            "insert into maestro.tenant_audit (tenant, action, detail) values ($1, 'erased', $2) returning number",
        )
        .bind(id.as_str())
        .bind(sqlx::types::Json(detail))
        .fetch_one(&mut tx)
        .await
        .map_err(failed)?;
        tx.commit().await?;
        Ok(EraseReceipt {
            tenant: id.clone(),
            tables,
            hooks,
            entry,
        })
    }
}
