//! PostgreSQL 15 and later: roles, database, privileges, role settings.
//!
//! The work comes as [`Step`]s, to be executed in order by an administrator (a superuser, or a role
//! with CREATEDB and CREATEROLE). A step says in which database it runs and whether it may run
//! inside a transaction. Roles and databases are server-wide: two runs at once fail with `tuple
//! concurrently updated`, so hold [`LOCK_KEY`] with `pg_advisory_lock` on a connection to the
//! maintenance database throughout.
//!
//! - `<db>_owner` cannot log in and owns the database, so that no login can grant anything away.
//! - `<db>_migrator` becomes the owner as it logs in, so everything it creates is the owner's.
//! - `<db>` reads and writes rows; it creates nothing.

use std::fmt;
use std::time::Duration;

use super::quote::{block, identifier, literal};
use super::resources::ServiceResources;
use crate::secret::Secret;

/// The key of the advisory lock under which provisioning runs (`maestro` in ASCII). Advisory locks
/// belong to a database: take it in the maintenance database.
pub const LOCK_KEY: i64 = 0x006d_6165_7374_726f;

/// The database in which a step runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunIn {
    /// Any database the administrator can reach, conventionally `postgres`.
    Maintenance,
    /// This one.
    Database(String),
}

/// Statements that belong together.
#[derive(Clone)]
#[must_use]
pub struct Step {
    run_in: RunIn,
    transactional: bool,
    skip_if: Option<String>,
    sql: Secret<String>,
    title: String,
}

impl Step {
    /// Where to run it.
    pub fn run_in(&self) -> &RunIn {
        &self.run_in
    }

    /// True: several statements, which may run in one transaction (and do when they are sent as one
    /// simple query). False: a single statement that PostgreSQL refuses inside a transaction.
    pub fn is_transactional(&self) -> bool {
        self.transactional
    }

    /// A query to ask first: when it returns a row, the step is done already.
    pub fn skip_if(&self) -> Option<&str> {
        self.skip_if.as_deref()
    }

    /// The statements, separated by `;` and a newline. Holds passwords: never log it.
    pub fn sql(&self) -> &str {
        self.sql.expose()
    }

    /// What it does, for a log line.
    pub fn title(&self) -> &str {
        &self.title
    }

    fn new(run_in: RunIn, title: String, statements: &[String]) -> Self {
        Self {
            run_in,
            transactional: true,
            skip_if: None,
            sql: Secret::new(statements.join(";\n") + ";"),
            title,
        }
    }

    fn alone(mut self) -> Self {
        self.transactional = false;
        self
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step")
            .field("title", &self.title)
            .field("run_in", &self.run_in)
            .field("transactional", &self.transactional)
            .field("skip_if", &self.skip_if)
            .finish_non_exhaustive()
    }
}

/// Once per server: nobody but its administrators connects to `postgres` and `template1`.
/// A server that belongs to somebody else is not ours to close: leave this out there.
pub fn server_steps() -> Vec<Step> {
    let close = block(concat!(
        "  EXECUTE format('GRANT CONNECT ON DATABASE %I TO CURRENT_USER', current_database());\n",
        "  DECLARE name text;\n",
        "  BEGIN\n",
        "    FOR name IN SELECT datname FROM pg_catalog.pg_database\n",
        "        WHERE datname IN ('postgres', 'template1') LOOP\n",
        "      EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', name);\n",
        "    END LOOP;\n",
        "  END;"
    ));
    let title = "close postgres and template1 to services".to_owned();
    vec![Step::new(RunIn::Maintenance, title, &[close])]
}

/// Creates or mends everything of one service: roles, database, privileges, role settings.
pub fn service_steps(resources: &ServiceResources) -> Vec<Step> {
    vec![
        roles(resources),
        create_database(resources, "TEMPLATE template0 ENCODING 'UTF8'"),
        privileges(resources, Vec::new()),
    ]
}

/// As [`service_steps`], with the database cloned from a sealed template
/// ([`seal_template_steps`]): its objects become this service's.
///
/// `FILE_COPY` copies the template's files instead of logging its pages; for the small databases of
/// tests it is the faster of the two strategies.
pub fn clone_steps(resources: &ServiceResources, template: &ServiceResources) -> Vec<Step> {
    let source = format!(
        "TEMPLATE {} STRATEGY FILE_COPY",
        identifier(&template.database)
    );
    let from_owner = identifier(&template.owner_role);
    let from_login = identifier(&template.role);
    let adopt = vec![
        format!(
            "REASSIGN OWNED BY {from_owner} TO {}",
            identifier(&resources.owner_role)
        ),
        // What is left of the template's roles here: default privileges and grants. One statement
        // for each: a default privilege names both, and one statement for two drops it twice and
        // fails (`could not find tuple for default ACL`, 15.18).
        format!("DROP OWNED BY {from_owner}"),
        format!("DROP OWNED BY {from_login}"),
    ];
    vec![
        roles(resources),
        create_database(resources, &source),
        privileges(resources, adopt),
    ]
}

/// Turns a provisioned and migrated database into a template for [`clone_steps`]: owned by the
/// administrator (else handing a clone's objects on would hand on the template itself), and closed
/// to connections, because an open one blocks cloning.
pub fn seal_template_steps(resources: &ServiceResources) -> Vec<Step> {
    let database = identifier(&resources.database);
    let statements = [
        format!("ALTER DATABASE {database} OWNER TO CURRENT_USER"),
        format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false"),
        format!(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = {}",
            literal(&resources.database)
        ),
    ];
    let title = format!("seal {} as a template", resources.database);
    vec![Step::new(RunIn::Maintenance, title, &statements)]
}

/// Removes the database with its data, and the roles. For sandboxes.
pub fn drop_steps(resources: &ServiceResources) -> Vec<Step> {
    let database = format!(
        "DROP DATABASE IF EXISTS {} WITH (FORCE)",
        identifier(&resources.database)
    );
    let roles = format!(
        "DROP ROLE IF EXISTS {}, {}, {}",
        identifier(&resources.role),
        identifier(&resources.migrator_role),
        identifier(&resources.owner_role)
    );
    let name = &resources.database;
    vec![
        Step::new(
            RunIn::Maintenance,
            format!("drop database {name}"),
            &[database],
        )
        .alone(),
        Step::new(
            RunIn::Maintenance,
            format!("drop the roles of {name}"),
            &[roles],
        ),
    ]
}

/// The steps as a script for `psql`, which must be fed by standard input: it holds passwords.
pub fn psql_script(steps: &[Step]) -> Secret<String> {
    let mut script = vec!["\\set ON_ERROR_STOP on".to_owned()];
    let mut current = &RunIn::Maintenance;
    for step in steps {
        if step.run_in != *current {
            let database = match &step.run_in {
                RunIn::Maintenance => "postgres",
                RunIn::Database(name) => name,
            };
            script.push(format!("\\connect {}", identifier(database)));
            current = &step.run_in;
        }
        script.push(match (&step.skip_if, step.transactional) {
            (Some(done), _) => format!(
                "SELECT {} WHERE NOT EXISTS ({done})\n\\gexec",
                literal(step.sql())
            ),
            (None, true) => format!("BEGIN;\n{}\nCOMMIT;", step.sql()),
            (None, false) => step.sql().to_owned(),
        });
    }
    script.push(String::new());
    Secret::new(script.join("\n"))
}

fn roles(resources: &ServiceResources) -> Step {
    let owner = identifier(&resources.owner_role);
    let migrator = identifier(&resources.migrator_role);
    let role = identifier(&resources.role);
    let statements = [
        role_exists(&resources.owner_role),
        role_exists(&resources.migrator_role),
        role_exists(&resources.role),
        format!("ALTER ROLE {owner} NOLOGIN"),
        format!(
            "ALTER ROLE {migrator} LOGIN CONNECTION LIMIT {} PASSWORD {}",
            resources.migrator_connection_limit,
            literal(resources.passwords.migrator.expose())
        ),
        format!(
            "ALTER ROLE {role} LOGIN CONNECTION LIMIT {} PASSWORD {}",
            resources.connection_limit,
            literal(resources.passwords.postgres.expose())
        ),
        memberships(resources),
    ];
    let title = format!("roles of {}", resources.database);
    Step::new(RunIn::Maintenance, title, &statements)
}

/// The migrator is a member of the owner, and the service's login is not. An administrator who is no
/// superuser must be one too, or may not give the owner a database.
fn memberships(resources: &ServiceResources) -> String {
    let owner = identifier(&resources.owner_role);
    let is_member = |role: &str, privilege: &str| {
        let owner = literal(&resources.owner_role);
        format!("pg_catalog.pg_has_role({role}, {owner}, '{privilege}')")
    };
    let migrator = is_member(&literal(&resources.migrator_role), "MEMBER");
    let login = is_member(&literal(&resources.role), "MEMBER");
    let administrator = is_member("current_user", "USAGE");
    block(&format!(
        "  IF NOT {migrator} THEN GRANT {owner} TO {}; END IF;\n  \
           IF {login} THEN REVOKE {owner} FROM {}; END IF;\n  \
           IF NOT {administrator} THEN GRANT {owner} TO CURRENT_USER; END IF;",
        identifier(&resources.migrator_role),
        identifier(&resources.role),
    ))
}

/// Creates a role without rights, or takes away what a service's role must not have. The attributes
/// are altered only where they are wrong, because only a superuser may name them.
fn role_exists(name: &str) -> String {
    let role = identifier(name);
    let text = literal(name);
    block(&format!(
        "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {text}) THEN\n    \
             CREATE ROLE {role} NOLOGIN;\n  \
           END IF;\n  \
           IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {text}\n      \
               AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)) THEN\n    \
             ALTER ROLE {role} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;\n  \
           END IF;"
    ))
}

fn create_database(resources: &ServiceResources, source: &str) -> Step {
    let sql = format!(
        "CREATE DATABASE {} OWNER {} {source}",
        identifier(&resources.database),
        identifier(&resources.owner_role)
    );
    let title = format!("database {}", resources.database);
    Step {
        skip_if: Some(format!(
            "SELECT 1 FROM pg_catalog.pg_database WHERE datname = {}",
            literal(&resources.database)
        )),
        ..Step::new(RunIn::Maintenance, title, &[sql]).alone()
    }
}

fn privileges(resources: &ServiceResources, first: Vec<String>) -> Step {
    let database = identifier(&resources.database);
    let owner = identifier(&resources.owner_role);
    let migrator = identifier(&resources.migrator_role);
    let role = identifier(&resources.role);
    let mut statements = vec![
        // PUBLIC has CONNECT on a new database, a cloned one included; revoking it from single
        // roles would do nothing.
        format!("REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC"),
        format!("ALTER DATABASE {database} OWNER TO {owner}"),
        format!("GRANT CONNECT ON DATABASE {database} TO {role}, {migrator}"),
    ];
    statements.extend(first);
    statements.extend([
        "ALTER SCHEMA public OWNER TO pg_database_owner".to_owned(),
        "REVOKE ALL ON SCHEMA public FROM PUBLIC".to_owned(),
        existing_objects(&role),
    ]);
    for grant in [
        "USAGE ON SCHEMAS",
        "SELECT, INSERT, UPDATE, DELETE ON TABLES",
        "USAGE, SELECT, UPDATE ON SEQUENCES",
        "EXECUTE ON ROUTINES",
        "USAGE ON TYPES",
    ] {
        statements.push(format!(
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT {grant} TO {role}"
        ));
    }
    let mut set = |role: &str, setting: &str, value: &str| {
        statements.push(format!(
            "ALTER ROLE {role} IN DATABASE {database} SET {setting} = {}",
            literal(value)
        ));
    };
    let milliseconds = |duration: Duration| duration.as_millis().to_string();
    set(
        &role,
        "statement_timeout",
        &milliseconds(resources.statement_timeout),
    );
    set(&role, "lock_timeout", &milliseconds(resources.lock_timeout));
    let idle = milliseconds(resources.idle_in_transaction_timeout);
    set(&role, "idle_in_transaction_session_timeout", &idle);
    // A client that went away is noticed within a second: cancelling is closing the connection.
    set(&role, "client_connection_check_interval", "1s");
    // A migration may take its time, but may not queue everybody behind its lock.
    set(&migrator, "statement_timeout", "0");
    set(&migrator, "lock_timeout", "5s");
    set(&migrator, "idle_in_transaction_session_timeout", &idle);
    set(&migrator, "client_connection_check_interval", "1s");
    set(&migrator, "role", &resources.owner_role);
    let title = format!("privileges and settings in {}", resources.database);
    Step::new(
        RunIn::Database(resources.database.clone()),
        title,
        &statements,
    )
}

/// Rows of everything that is there already (a database that was moved here, or a clone) to the
/// login role, in every schema but the system's.
fn existing_objects(role: &str) -> String {
    let grants = [
        "USAGE ON SCHEMA",
        "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA",
        "USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA",
    ]
    .map(|grant| {
        let role = literal(role);
        format!("      EXECUTE format('GRANT {grant} %I TO %s', name, {role});")
    })
    .join("\n");
    block(&format!(
        "  DECLARE name text;\n  \
           BEGIN\n    \
             FOR name IN SELECT nspname FROM pg_catalog.pg_namespace\n        \
                 WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema' LOOP\n\
             {grants}\n    \
             END LOOP;\n  \
           END;"
    ))
}

#[cfg(test)]
mod tests;
