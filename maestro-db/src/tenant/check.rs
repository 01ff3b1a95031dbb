//! What is wrong with a database's isolation, found in its catalogue.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Severity {
    /// Isolation or limits are weaker than they should be.
    Warning,
    /// Somebody can reach what is not theirs.
    Error,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A word for programs: `table-without-policy`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The role, table, view or database it is about.
    pub object: String,
    /// What is wrong with it.
    pub message: &'static str,
    /// A statement that mends it, or what to do; empty when it depends.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{word} {}: {} {}", self.code, self.object, self.message)?;
        if !self.fix.is_empty() {
            write!(f, "\n    fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// A question to the catalogue: each row is a finding, with the object and a fix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) code: &'static str,
    pub(crate) severity: Severity,
    pub(crate) message: &'static str,
    pub(crate) sql: &'static str,
}

/// Tables of the service: not the system's, not ours, not marked as shared, not bookkeeping.
///
/// A macro, because the checks are constants and Rust concatenates only literals there.
macro_rules! tenant_tables {
    () => {
        "with tables as ( \
           select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relrowsecurity, c.relforcerowsecurity, c.relkind \
           from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
           where c.relkind in ('r', 'p') and not c.relispartition \
             and n.nspname not like 'pg\\_%' and n.nspname not in ('information_schema', 'maestro') \
             and n.nspname not like 'tenant\\_%' \
             and c.relname <> '_sqlx_migrations' \
             and not exists (select from maestro.shared_tables s where s.name = format('%I.%I', n.nspname, c.relname)) \
         ) "
    };
}

/// What to ask in a database with tenants.
pub(crate) const TENANT_CHECKS: &[Check] = &[
    Check {
        code: "table-without-row-security",
        severity: Severity::Error,
        message: "shows every tenant's rows to everybody",
        sql: concat!(
            tenant_tables!(),
            "select name, format('select maestro.protect(%L)  -- or maestro.share(%L, ''why'')', name, name) \
                 from tables where not relrowsecurity"
        ),
    },
    Check {
        code: "row-security-not-forced",
        severity: Severity::Error,
        message: "shows every tenant's rows to its owner, and so to migrations",
        sql: concat!(
            tenant_tables!(),
            "select name, format('alter table %s force row level security', name) \
                 from tables where relrowsecurity and not relforcerowsecurity"
        ),
    },
    Check {
        code: "table-without-policy",
        severity: Severity::Error,
        message: "has row security and no policy: nobody sees a row",
        sql: concat!(
            tenant_tables!(),
            "select name, format('select maestro.protect(%L)', name) from tables t \
                 where relrowsecurity and not exists (select from pg_catalog.pg_policy p where p.polrelid = t.oid)"
        ),
    },
    Check {
        code: "policy-without-tenant",
        severity: Severity::Error,
        message: "lets rows through without asking for the tenant",
        sql: concat!(
            tenant_tables!(),
            "select format('%s on %s', quote_ident(p.polname), t.name), format('drop policy %I on %s', p.polname, t.name) \
                 from tables t join pg_catalog.pg_policy p on p.polrelid = t.oid \
                 where t.relrowsecurity and p.polpermissive and ( \
                   coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'maestro.tenant()') not like '%maestro.tenant()%' \
                   or coalesce(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid), 'maestro.tenant()') not like '%maestro.tenant()%')"
        ),
    },
    Check {
        code: "tenant-schema-table-without-policy",
        severity: Severity::Error,
        message: "is in a tenant's schema and shows its rows to every other tenant",
        sql: "select format('%I.%I', n.nspname, c.relname), \
                    format('select maestro.protect_schema(%L, %L)', n.nspname, substr(n.nspname, 8)) \
                  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                  where c.relkind in ('r', 'p') and n.nspname like 'tenant\\_%' \
                    and not (c.relrowsecurity and c.relforcerowsecurity and exists ( \
                      select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'maestro_tenant' \
                        and pg_catalog.pg_get_expr(p.polqual, p.polrelid) like '%maestro.tenant()%'))",
    },
    Check {
        code: "view-without-security-invoker",
        severity: Severity::Error,
        message: "reads its tables with the rights of the view's owner, past their policies",
        sql: "select format('%I.%I', n.nspname, c.relname), format('alter view %I.%I set (security_invoker = true)', n.nspname, c.relname) \
                  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                  where c.relkind = 'v' and n.nspname not like 'pg\\_%' and n.nspname not in ('information_schema', 'maestro') \
                    and not coalesce((select option_value::boolean from pg_catalog.pg_options_to_table(c.reloptions) where option_name = 'security_invoker'), false)",
    },
    Check {
        code: "materialized-view",
        severity: Severity::Error,
        message: "keeps rows of all tenants and cannot have a policy",
        sql: "select format('%I.%I', n.nspname, c.relname), format('drop materialized view %I.%I', n.nspname, c.relname) \
                  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                  where c.relkind = 'm' and n.nspname not like 'pg\\_%' \
                    and not exists (select from maestro.shared_tables s where s.name = format('%I.%I', n.nspname, c.relname))",
    },
    Check {
        code: "role-bypasses-row-security",
        severity: Severity::Error,
        message: "may connect here and sees every tenant's rows",
        sql: "select quote_ident(r.rolname), format('alter role %I nobypassrls', r.rolname) from pg_catalog.pg_roles r \
                  where r.rolbypassrls and not r.rolsuper and r.rolcanlogin \
                    and pg_catalog.has_database_privilege(r.oid, current_database(), 'CONNECT')",
    },
    Check {
        code: "definer-function",
        severity: Severity::Warning,
        message: "runs with the rights of its owner whoever calls it",
        sql: "select p.oid::pg_catalog.regprocedure::text, format('alter function %s security invoker', p.oid::pg_catalog.regprocedure) \
                  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
                  where p.prosecdef and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'",
    },
    Check {
        code: "foreign-key-without-tenant",
        severity: Severity::Warning,
        message: "can refer to another tenant's row, because the check of a foreign key sees all rows: add the tenant to it",
        sql: concat!(
            tenant_tables!(),
            "select format('%s on %s', quote_ident(k.conname), t.name), '' \
                 from pg_catalog.pg_constraint k join tables t on t.oid = k.conrelid join tables parent on parent.oid = k.confrelid \
                 where k.contype = 'f' and t.relrowsecurity and parent.relrowsecurity \
                   and not exists (select from pg_catalog.pg_attribute a where a.attrelid = k.conrelid and a.attnum = any (k.conkey) \
                     and pg_catalog.pg_get_expr((select d.adbin from pg_catalog.pg_attrdef d where d.adrelid = a.attrelid and d.adnum = a.attnum), a.attrelid) = 'maestro.tenant()')"
        ),
    },
];
