//! The audit: questions to the catalogue, each of whose rows is a finding.

use maestro_config::provision::ServiceResources;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::{Provisioner, bounded, good_bye};
use crate::error::{Error, ErrorKind};
use crate::tenant::{Check, Finding, Severity, TENANT_CHECKS};

/// The names every question may use.
const NAMES: &str = "with s as (select $1::text as db, $2::text as owner, $3::text as migrator, $4::text as role), \
    own as (select r.* from pg_catalog.pg_roles r, s where r.rolname in (s.owner, s.migrator, s.role)) ";

pub(super) async fn verify(
    provisioner: &Provisioner,
    resources: &ServiceResources,
) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let mut maintenance = provisioner.admin.open().await?;
    let exists =
        sqlx::query_scalar("select exists (select from pg_catalog.pg_database where datname = $1)")
            .bind(resources.database())
            .fetch_one(&mut maintenance);
    if !bounded("looking for the database", exists).await? {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no database {}: the service was never provisioned",
                resources.database()
            ),
        ));
    }
    for check in ON_THE_SERVER {
        ask(&mut maintenance, resources, check, &mut findings).await?;
    }
    good_bye(maintenance).await;

    let mut inside = provisioner.open(resources.database()).await?;
    for check in IN_THE_DATABASE {
        ask(&mut inside, resources, check, &mut findings).await?;
    }
    let tenants =
        sqlx::query_scalar("select pg_catalog.to_regclass('maestro.tenants') is not null")
            .fetch_one(&mut inside);
    if bounded("looking for tenants", tenants).await? {
        for check in TENANT_CHECKS {
            let rows = sqlx::query_as(check.sql).fetch_all(&mut inside);
            let rows: Vec<(String, String)> = bounded(check.code, rows).await?;
            findings.extend(rows.into_iter().map(|row| check.finding(row)));
        }
    }
    good_bye(inside).await;
    Ok(findings)
}

async fn ask(
    connection: &mut PgConnection,
    resources: &ServiceResources,
    check: &Check,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    // Both halves are constants of this file.
    let query = sqlx::query_as(AssertSqlSafe(format!("{NAMES}{}", check.sql)))
        .bind(resources.database())
        .bind(resources.owner_role())
        .bind(resources.migrator_role())
        .bind(resources.role())
        .fetch_all(connection);
    let rows: Vec<(String, String)> = bounded(check.code, query).await?;
    findings.extend(rows.into_iter().map(|row| check.finding(row)));
    Ok(())
}

const ERROR: Severity = Severity::Error;
const WARNING: Severity = Severity::Warning;

const ON_THE_SERVER: &[Check] = &[
    Check {
        code: "role-missing",
        severity: ERROR,
        message: "does not exist",
        sql: "select quote_ident(name), 'provision the service' from s, unnest(array[s.owner, s.migrator, s.role]) name \
              where not exists (select from pg_catalog.pg_roles r where r.rolname = name)",
    },
    Check {
        code: "database-open-to-public",
        severity: ERROR,
        message: "lets every role of the server connect",
        sql: "select quote_ident(d.datname), format('revoke connect, temporary on database %I from public', d.datname) \
              from pg_catalog.pg_database d, s where d.datname in (s.db, 'postgres', 'template1') and exists ( \
                select from pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a \
                where a.grantee = 0 and a.privilege_type = 'CONNECT')",
    },
    Check {
        code: "temporary-tables-for-public",
        severity: WARNING,
        message: "lets every role that connects fill the disk with temporary tables",
        sql: "select quote_ident(d.datname), format('revoke temporary on database %I from public', d.datname) \
              from pg_catalog.pg_database d, s where d.datname = s.db and exists ( \
                select from pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a \
                where a.grantee = 0 and a.privilege_type = 'TEMPORARY')",
    },
    Check {
        code: "stranger-may-connect",
        severity: ERROR,
        message: "may connect to the service's database and is none of its roles",
        sql: "select quote_ident(r.rolname), format('revoke all on database %I from %I', s.db, r.rolname) \
              from s, pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a, pg_catalog.pg_roles r \
              where d.datname = s.db and a.grantee = r.oid and a.privilege_type in ('CONNECT', 'CREATE') \
                and r.rolname not in (s.owner, s.migrator, s.role, current_user) and not r.rolsuper",
    },
    Check {
        code: "database-owner",
        severity: ERROR,
        message: "is not owned by the service's owner role, and its owner can grant it away",
        sql: "select quote_ident(d.datname), format('alter database %I owner to %I', s.db, s.owner) \
              from s, pg_catalog.pg_database d where d.datname = s.db and pg_catalog.pg_get_userbyid(d.datdba) <> s.owner",
    },
    Check {
        code: "owner-with-login",
        severity: ERROR,
        message: "owns the database and can log in",
        sql: "select quote_ident(r.rolname), format('alter role %I nologin', r.rolname) from own r, s where r.rolname = s.owner and r.rolcanlogin",
    },
    Check {
        code: "role-without-login",
        severity: ERROR,
        message: "cannot log in",
        sql: "select quote_ident(r.rolname), format('alter role %I login', r.rolname) from own r, s where r.rolname <> s.owner and not r.rolcanlogin",
    },
    Check {
        code: "superuser",
        severity: ERROR,
        message: "is a superuser",
        sql: "select quote_ident(rolname), format('alter role %I nosuperuser', rolname) from own where rolsuper",
    },
    Check {
        code: "bypasses-row-security",
        severity: ERROR,
        message: "sees every tenant's rows",
        sql: "select quote_ident(rolname), format('alter role %I nobypassrls', rolname) from own where rolbypassrls",
    },
    Check {
        code: "creates-roles-or-databases",
        severity: ERROR,
        message: "may create roles or databases",
        sql: "select quote_ident(rolname), format('alter role %I nocreatedb nocreaterole', rolname) from own where rolcreatedb or rolcreaterole",
    },
    Check {
        code: "replication",
        severity: ERROR,
        message: "may stream the whole server",
        sql: "select quote_ident(rolname), format('alter role %I noreplication', rolname) from own where rolreplication",
    },
    Check {
        code: "login-is-member",
        severity: ERROR,
        message: "has the rights of another role",
        sql: "select format('%I in %I', m.rolname, g.rolname), format('revoke %I from %I', g.rolname, m.rolname) \
              from s, pg_catalog.pg_auth_members a join pg_catalog.pg_roles m on m.oid = a.member join pg_catalog.pg_roles g on g.oid = a.roleid \
              where m.rolname = s.role or m.rolname = s.migrator and g.rolname <> s.owner or m.rolname = s.owner",
    },
    Check {
        code: "stranger-is-member",
        severity: ERROR,
        message: "has the rights of this service",
        sql: "select format('%I in %I', m.rolname, g.rolname), format('revoke %I from %I', g.rolname, m.rolname) \
              from s, pg_catalog.pg_auth_members a join pg_catalog.pg_roles m on m.oid = a.member join pg_catalog.pg_roles g on g.oid = a.roleid \
              where g.rolname in (s.owner, s.migrator, s.role) and m.rolname not in (s.migrator, current_user) and not m.rolsuper",
    },
    Check {
        code: "migrator-is-not-member",
        severity: ERROR,
        message: "is no member of the owner: migrations fail or leave objects that belong to it",
        sql: "select quote_ident(s.migrator), format('grant %I to %I', s.owner, s.migrator) from s \
              where exists (select from own where rolname = s.migrator) and exists (select from own where rolname = s.owner) \
                and not pg_catalog.pg_has_role(s.migrator, s.owner, 'MEMBER')",
    },
    Check {
        code: "connections-without-limit",
        severity: WARNING,
        message: "may take every connection of the server",
        sql: "select quote_ident(r.rolname), format('alter role %I connection limit 40', r.rolname) from own r where r.rolcanlogin and r.rolconnlimit < 0",
    },
    Check {
        code: "connection-limits-exceed-server",
        severity: WARNING,
        message: "is more than the server has: services will meet `too many connections`",
        sql: "select format('%s connections promised of %s', sum(r.rolconnlimit), current_setting('max_connections')), \
                'lower the connection limits of services, raise max_connections, or put a pooler in between' \
              from pg_catalog.pg_roles r where r.rolcanlogin and r.rolconnlimit > 0 \
              having sum(r.rolconnlimit) > current_setting('max_connections')::bigint \
                - current_setting('superuser_reserved_connections')::bigint",
    },
    Check {
        code: "password-expired",
        severity: ERROR,
        message: "cannot log in any more: its password has expired",
        sql: "select quote_ident(rolname), format('alter role %I valid until ''infinity''', rolname) from own where rolvaliduntil < now()",
    },
    Check {
        code: "setting-missing",
        severity: WARNING,
        message: "is not set for this role in this database",
        sql: "select format('%s of %I', w.name, w.role), format('alter role %I in database %I set %s = %L', w.role, s.db, w.name, w.value) \
              from s, lateral (values \
                (s.role, 'statement_timeout', '30s'), (s.role, 'lock_timeout', '10s'), \
                (s.role, 'idle_in_transaction_session_timeout', '60s'), (s.role, 'client_connection_check_interval', '1s'), \
                (s.migrator, 'statement_timeout', '0'), (s.migrator, 'lock_timeout', '5s'), (s.migrator, 'role', s.owner) \
              ) w (role, name, value) \
              where exists (select from own where rolname = w.role) and not exists ( \
                select from pg_catalog.pg_db_role_setting c join pg_catalog.pg_database d on d.oid = c.setdatabase \
                join pg_catalog.pg_roles r on r.oid = c.setrole, unnest(c.setconfig) o \
                where d.datname = s.db and r.rolname = w.role and split_part(o, '=', 1) = w.name)",
    },
];

const IN_THE_DATABASE: &[Check] = &[
    Check {
        code: "public-creates-objects",
        severity: ERROR,
        message: "lets everybody who connects create objects in it",
        sql: "select quote_ident(n.nspname), format('revoke all on schema %I from public', n.nspname) \
              from s, pg_catalog.pg_namespace n, pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a \
              where a.grantee = 0 and a.privilege_type = 'CREATE' and n.nspname not like 'pg\\_%'",
    },
    Check {
        code: "login-creates-objects",
        severity: ERROR,
        message: "lets the service change its own tables' surroundings",
        sql: "select quote_ident(n.nspname), format('revoke create on schema %I from %I', n.nspname, s.role) \
              from s, own r, pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a \
              where r.rolname = s.role and a.grantee = r.oid and a.privilege_type = 'CREATE' and n.nspname not like 'pg\\_%'",
    },
    Check {
        code: "object-owner",
        severity: ERROR,
        message: "does not belong to the owner role: the next migration cannot change it",
        sql: "select format('%I.%I', n.nspname, c.relname), format('alter table %I.%I owner to %I', n.nspname, c.relname, s.owner) \
              from s, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
              where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' \
                and pg_catalog.pg_get_userbyid(c.relowner) <> s.owner \
                and not exists (select from pg_catalog.pg_depend x where x.objid = c.oid and x.deptype = 'e')",
    },
    Check {
        code: "table-open-to-public",
        severity: ERROR,
        message: "lets everybody who connects read or change it",
        sql: "select format('%I.%I', n.nspname, c.relname), format('revoke all on %I.%I from public', n.nspname, c.relname) \
              from s, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
              where c.relkind in ('r', 'p', 'v', 'm', 'S') and n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' \
                and exists (select from pg_catalog.aclexplode(c.relacl) a where a.grantee = 0)",
    },
    Check {
        code: "table-open-to-stranger",
        severity: ERROR,
        message: "lets a role that is none of the service's read or change it",
        sql: "select distinct format('%I.%I for %I', n.nspname, c.relname, r.rolname), format('revoke all on %I.%I from %I', n.nspname, c.relname, r.rolname) \
              from s, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace, \
                pg_catalog.aclexplode(c.relacl) a join pg_catalog.pg_roles r on r.oid = a.grantee \
              where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' \
                and r.rolname not in (s.owner, s.migrator, s.role, current_user) and not r.rolsuper",
    },
    Check {
        code: "default-privileges-missing",
        severity: ERROR,
        message: "has no right to tables that the next migration makes",
        sql: "select quote_ident(s.role), format('alter default privileges for role %I grant select, insert, update, delete on tables to %I', s.owner, s.role) \
              from s where exists (select from own where rolname = s.role) and not exists ( \
                select from pg_catalog.pg_default_acl d, pg_catalog.aclexplode(d.defaclacl) a join pg_catalog.pg_roles r on r.oid = a.grantee \
                where d.defaclobjtype = 'r' and pg_catalog.pg_get_userbyid(d.defaclrole) = s.owner and r.rolname = s.role and a.privilege_type = 'SELECT')",
    },
    Check {
        code: "reaches-other-databases",
        severity: WARNING,
        message: "can reach other databases or hosts from inside this one",
        sql: "select quote_ident(e.extname), format('drop extension %I', e.extname) from s, pg_catalog.pg_extension e \
              where e.extname in ('dblink', 'postgres_fdw', 'file_fdw', 'adminpack', 'plpython3u', 'plperlu')",
    },
];
