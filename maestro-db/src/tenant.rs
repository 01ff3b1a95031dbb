//! Tenants: a handle on which every statement runs for one of them.

mod admin;
mod check;
mod erase;
mod export;
mod id;
mod scoped;
mod tables;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use admin::{AuditEntry, TenantRecord, TenantState, Tenants};
pub(crate) use check::{Check, TENANT_CHECKS};
pub use check::{Finding, Severity};
pub use erase::{EraseHook, EraseReceipt};
pub use export::ExportSummary;
pub use id::TenantId;
pub use scoped::TenantDb;

/// How tenants are kept apart in one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TenantModel {
    /// One set of tables, with row-level security on a column `tenant`. For any number of tenants.
    Rows,
    /// A schema for each tenant. For some hundred tenants that must be apart (own indexes, own
    /// `pg_dump`): beyond about two thousand schemas sessions run out of memory.
    Schemas,
}

/// What a transaction for a tenant sends along with `BEGIN`, and with `COMMIT`.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    set: String,
}

impl Scope {
    /// `check`: the server looks whether the tenant exists and may be entered.
    pub(crate) fn new(model: TenantModel, id: &TenantId, check: bool) -> Self {
        let mut set = format!("SET LOCAL maestro.tenant = '{id}'");
        if model == TenantModel::Schemas {
            let schema = id.schema();
            set = format!("{set}; SET LOCAL search_path = \"{schema}\", public");
        }
        if check {
            set.push_str("; SELECT maestro.enter()");
        }
        Self { set }
    }

    pub(crate) fn begin(&self, begin: &str) -> String {
        format!("{begin}; {}", self.set)
    }

    /// What was set for the transaction ends with it; what a function set for the session would
    /// not, so it is taken back in the same message.
    pub(crate) const fn commit() -> &'static str {
        "COMMIT; RESET ALL"
    }
}

/// Tenants that were found to exist a moment ago, so that not every transaction asks.
#[derive(Debug, Default)]
pub(crate) struct Entered(Mutex<HashMap<TenantId, Instant>>);

/// This is how long a replica may still let a suspended tenant in.
const ENTERED: Duration = Duration::from_secs(5);

/// Beyond this many tenants within the time above, each transaction asks again.
const REMEMBERED: usize = 10_000;

impl Entered {
    pub(crate) fn is_fresh(&self, id: &TenantId) -> bool {
        self.0
            .lock()
            .get(id)
            .is_some_and(|at| at.elapsed() < ENTERED)
    }

    pub(crate) fn remember(&self, id: &TenantId) {
        let mut entered = self.0.lock();
        if entered.len() >= REMEMBERED {
            entered.retain(|_, at| at.elapsed() < ENTERED);
        }
        if entered.len() < REMEMBERED {
            entered.insert(id.clone(), Instant::now());
        }
    }

    pub(crate) fn forget(&self, id: &TenantId) {
        self.0.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_part_of_the_message_that_begins_the_transaction() {
        let acme = TenantId::parse("acme").unwrap();
        let rows = Scope::new(TenantModel::Rows, &acme, true);
        assert_eq!(
            rows.begin("BEGIN READ ONLY"),
            "BEGIN READ ONLY; SET LOCAL maestro.tenant = 'acme'; SELECT maestro.enter()"
        );
        let schemas = Scope::new(TenantModel::Schemas, &acme, false);
        assert_eq!(
            schemas.begin("BEGIN"),
            "BEGIN; SET LOCAL maestro.tenant = 'acme'; SET LOCAL search_path = \"tenant_acme\", public"
        );
    }

    #[test]
    fn a_tenant_is_asked_for_again_after_it_was_forgotten() {
        let (entered, acme) = (Entered::default(), TenantId::parse("acme").unwrap());
        assert!(!entered.is_fresh(&acme));
        entered.remember(&acme);
        assert!(entered.is_fresh(&acme));
        entered.forget(&acme);
        assert!(!entered.is_fresh(&acme));
    }
}
