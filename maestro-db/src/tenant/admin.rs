//! Tenants from the outside: create, list, suspend, rename; the audit trail; the checker.

use sqlx::types::Json;
use sqlx::types::chrono::{DateTime, Utc};

use super::check::{Check, Finding, TENANT_CHECKS};
use super::{TenantId, TenantModel};
use crate::client::Db;
use crate::error::{Error, ErrorKind};
use crate::transaction::Transaction;

/// The tenants of a database; see [`Db::tenants`].
///
/// ```no_run
/// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
/// use maestro_db::{TenantId, TenantState};
///
/// let tenants = db.tenants()?;
/// for tenant in tenants.list().await? {
///     println!("{} ({}), since {}", tenant.id, tenant.name, tenant.created_at);
/// }
///
/// let acme = TenantId::parse("acme")?;
/// tenants.rename(&acme, "Acme Holding").await?;
/// tenants.suspend(&acme).await?; // the invoice is overdue
/// if let Some(tenant) = tenants.find(&acme).await? {
///     assert_eq!(tenant.state, TenantState::Suspended);
/// }
/// tenants.resume(&acme).await?; // it is paid
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tenants {
    pub(crate) db: Db,
    pub(crate) model: TenantModel,
}

/// Whether a tenant may be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TenantState {
    /// It may.
    Active,
    /// Its data are kept, and nobody enters.
    Suspended,
    /// Its data are being erased, or erasing them was interrupted.
    Erasing,
}

/// One tenant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TenantRecord {
    /// Its id.
    pub id: TenantId,
    /// Its name, for people.
    pub name: String,
    /// Whether it may be entered.
    pub state: TenantState,
    /// Since when it exists.
    pub created_at: DateTime<Utc>,
}

/// One line of the audit trail.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number; later ones are higher.
    pub number: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The tenant it is about.
    pub tenant: String,
    /// What was done: `created`, `suspended`, `exported`, or a word of the service's.
    pub action: String,
    /// The role and the instance that did it.
    pub actor: String,
    /// More about it, as JSON.
    pub detail: String,
}

impl Db {
    /// The tenants of this database.
    ///
    /// ```no_run
    /// # async fn example(config: maestro_db::DbConfig) -> Result<(), maestro_db::Error> {
    /// use maestro_db::{Db, TenantId, TenantModel};
    ///
    /// let db = Db::builder(config).tenants(TenantModel::Rows).connect().await?;
    /// let acme = TenantId::parse("acme")?;
    /// db.tenants()?.create(&acme, "Acme Ltd").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when no model was chosen.
    pub fn tenants(&self) -> Result<Tenants, Error> {
        match self.inner().tenants {
            Some(model) => Ok(Tenants {
                db: self.clone(),
                model,
            }),
            None => Err(Error::new(
                ErrorKind::Config,
                "this database has no tenants: choose a model with `Db::builder(config).tenants(…)`",
            )),
        }
    }
}

impl Tenants {
    /// Makes a tenant. Where tenants have schemas, its own comes with the next
    /// [`migrate`](Self::migrate).
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when there is one of this id.
    pub async fn create(&self, id: &TenantId, name: &str) -> Result<(), Error> {
        let mut tx = self.db.begin().await?;
        sqlx::query("insert into maestro.tenants (id, name) values ($1, $2)")
            .bind(id.as_str())
            .bind(name)
            .execute(&mut tx)
            .await
            .map_err(|error| Error::during(format!("creating tenant {id} failed"), error))?;
        note(&mut tx, id, "created", &serde_json::json!({ "name": name })).await?;
        tx.commit().await
    }

    /// All tenants, in the order of their ids.
    pub async fn list(&self) -> Result<Vec<TenantRecord>, Error> {
        let rows: Vec<Row> =
            sqlx::query_as("select id, name, state, created_at from maestro.tenants order by id")
                .fetch_all(&self.db)
                .await
                .map_err(|error| Error::during("listing tenants failed", error))?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// One tenant; `None` when there is no such tenant.
    pub async fn find(&self, id: &TenantId) -> Result<Option<TenantRecord>, Error> {
        let row: Option<Row> =
            sqlx::query_as("select id, name, state, created_at from maestro.tenants where id = $1")
                .bind(id.as_str())
                .fetch_optional(&self.db)
                .await
                .map_err(|error| Error::during(format!("looking for tenant {id} failed"), error))?;
        row.map(TryInto::try_into).transpose()
    }

    /// Lets nobody in any more, within five seconds on every replica. The data stay.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such tenant; [`ErrorKind::Rejected`] when it is
    /// being erased.
    pub async fn suspend(&self, id: &TenantId) -> Result<(), Error> {
        self.change(id, "suspended", "update maestro.tenants set state = 'suspended', changed_at = now() where id = $1 and state <> 'erasing'", None).await
    }

    /// Lets a suspended tenant in again.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub async fn resume(&self, id: &TenantId) -> Result<(), Error> {
        self.change(id, "resumed", "update maestro.tenants set state = 'active', changed_at = now() where id = $1 and state <> 'erasing'", None).await
    }

    /// Gives a tenant another name for people. Its id stays: it is in every row.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub async fn rename(&self, id: &TenantId, name: &str) -> Result<(), Error> {
        self.change(id, "renamed", "update maestro.tenants set name = $2, changed_at = now() where id = $1 and state <> 'erasing'", Some(name)).await
    }

    async fn change(
        &self,
        id: &TenantId,
        action: &'static str,
        sql: &'static str,
        name: Option<&str>,
    ) -> Result<(), Error> {
        let mut tx = self.db.begin().await?;
        let mut query = sqlx::query(sql).bind(id.as_str());
        if let Some(name) = name {
            query = query.bind(name);
        }
        let changed = query
            .execute(&mut tx)
            .await
            .map_err(|error| Error::during(format!("tenant {id} could not be {action}"), error))?;
        if changed.rows_affected() == 0 {
            tx.rollback().await?;
            return Err(match self.find(id).await? {
                None => Error::new(ErrorKind::NotFound, format!("there is no tenant {id}")),
                Some(_) => Error::new(
                    ErrorKind::Rejected,
                    format!("tenant {id} is being erased and cannot be {action}"),
                ),
            });
        }
        note(&mut tx, id, action, &serde_json::json!({ "name": name })).await?;
        tx.commit().await?;
        self.db.inner().entered.forget(id);
        Ok(())
    }

    /// Appends to a tenant's audit trail what a service wants to be found there later: a sign-in, a
    /// change of rights. `detail` is JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] when `detail` is not JSON or `action` is empty.
    pub async fn record(&self, id: &TenantId, action: &str, detail: &str) -> Result<(), Error> {
        sqlx::query(
            "insert into maestro.tenant_audit (tenant, action, detail) values ($1, $2, $3::jsonb)",
        )
        .bind(id.as_str())
        .bind(action)
        .bind(detail)
        .execute(&self.db)
        .await
        .map_err(|error| {
            Error::during(format!("recording `{action}` of tenant {id} failed"), error)
        })?;
        Ok(())
    }

    /// A tenant's audit trail, the oldest first, of at most `limit` entries after number `after`
    /// (0 for the beginning).
    ///
    /// ```no_run
    /// # async fn example(db: maestro_db::Db) -> Result<(), maestro_db::Error> {
    /// use maestro_db::TenantId;
    ///
    /// let acme = TenantId::parse("acme")?;
    /// let tenants = db.tenants()?;
    /// tenants.record(&acme, "signed in", r#"{"user": "ada"}"#).await?;
    ///
    /// let mut seen = 0;
    /// loop {
    ///     let page = tenants.audit(&acme, seen, 100).await?;
    ///     let Some(last) = page.last() else { break };
    ///     seen = last.number;
    ///     for entry in &page {
    ///         println!("{} {} by {}: {}", entry.at, entry.action, entry.actor, entry.detail);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn audit(
        &self,
        id: &TenantId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, Error> {
        let rows: Vec<(i64, DateTime<Utc>, String, String, String, String)> = sqlx::query_as(
            "select number, at, tenant, action, actor, detail::text from maestro.tenant_audit \
             where tenant = $1 and number > $2 order by number limit $3",
        )
        .bind(id.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.db)
        .await
        .map_err(|error| {
            Error::during(
                format!("reading the audit trail of tenant {id} failed"),
                error,
            )
        })?;
        Ok(rows
            .into_iter()
            .map(|(number, at, tenant, action, actor, detail)| AuditEntry {
                number,
                at,
                tenant,
                action,
                actor,
                detail,
            })
            .collect())
    }

    /// Looks for ways past the isolation of tenants: tables without a policy, views that read with
    /// their owner's rights, roles that bypass policies. Empty is good.
    ///
    /// Run it in a test of the service after its migrations, and by the operator's doctor.
    pub async fn check(&self) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        for check in TENANT_CHECKS {
            let rows: Vec<(String, String)> = sqlx::query_as(check.sql)
                .fetch_all(&self.db)
                .await
                .map_err(|error| {
                Error::during(format!("the check `{}` failed", check.code), error)
            })?;
            findings.extend(rows.into_iter().map(|row| check.finding(row)));
        }
        Ok(findings)
    }
}

impl Check {
    pub(crate) fn finding(&self, (object, fix): (String, String)) -> Finding {
        let Self {
            code,
            severity,
            message,
            sql: _,
        } = *self;
        Finding {
            code,
            severity,
            object,
            message,
            fix,
        }
    }
}

/// Appends to the audit trail within the transaction of what it tells of.
pub(super) async fn note(
    tx: &mut Transaction,
    id: &TenantId,
    action: &'static str,
    detail: &serde_json::Value,
) -> Result<(), Error> {
    sqlx::query("insert into maestro.tenant_audit (tenant, action, detail) values ($1, $2, $3)")
        .bind(id.as_str())
        .bind(action)
        .bind(Json(detail))
        .execute(tx)
        .await
        .map_err(|error| {
            Error::during(format!("recording `{action}` of tenant {id} failed"), error)
        })?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    state: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for TenantRecord {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            id: TenantId::parse(&row.id)?,
            name: row.name,
            state: match row.state.as_str() {
                "active" => TenantState::Active,
                "suspended" => TenantState::Suspended,
                _ => TenantState::Erasing,
            },
            created_at: row.created_at,
        })
    }
}
