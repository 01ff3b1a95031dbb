//! The statements of `maestro_config::provision`, as a server understands them.

use maestro_config::provision::postgres::{self, RunIn, Step};
use maestro_config::provision::{Passwords, ServiceResources};
use maestro_config::{Secret, ServiceName};
use maestro_testkit::{Service, Stack};
use maestro_tests::until;
use tokio_postgres::{Client, NoTls, Row};

use crate::SETTLE;

/// A service under awkward passwords, named after one run of one test only: other clones may use the
/// same server.
fn resources(service: &str) -> ServiceResources {
    let service: ServiceName = service.parse().unwrap();
    let secret = |text: &str| Secret::new(text.to_owned());
    let passwords = Passwords {
        postgres: secret(r#"it's "$maestro$" \ 100% @/:?#"#),
        migrator: secret("m'"),
        cache: secret("c"),
        messaging: secret("r"),
    };
    ServiceResources::conventional(&service, passwords)
        .sandboxed(&unique())
        .unwrap()
}

fn unique() -> String {
    std::iter::repeat_with(|| fastrand::char('a'..='z'))
        .take(8)
        .collect()
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

struct Administrator {
    url: String,
    client: Client,
}

impl Administrator {
    /// Of the PostgreSQL that tests share: roles are server-wide, so each test has names of its own.
    async fn start() -> (Stack, Self) {
        let stack = Stack::builder().only([Service::Postgres]);
        let stack = stack.start().await.unwrap();
        let url = stack.postgres().unwrap().admin_url().expose().clone();
        let client = connect(&url).await;
        (stack, Self { url, client })
    }

    /// As another role, in another database.
    fn url(&self, user: Option<(&str, &str)>, database: &str) -> String {
        let mut url: url::Url = self.url.parse().unwrap();
        url.set_path(database);
        if let Some((user, password)) = user {
            url.set_username(user).unwrap();
            url.set_password(Some(password)).unwrap();
        }
        url.into()
    }

    /// Changes what others of this server may be changing too: PostgreSQL refuses one of two who change
    /// the rights on one database at a time.
    async fn change(&self, sql: &str) {
        until(SETTLE, sql, async || {
            match self.client.batch_execute(sql).await {
                Ok(()) => Ok(Some(())),
                Err(error) if format!("{error:?}").contains("concurrently updated") => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
        .unwrap();
    }

    async fn run(&self, steps: &[Step]) {
        for step in steps {
            if let Some(done) = step.skip_if()
                && self.client.query_opt(done, &[]).await.unwrap().is_some()
            {
                continue;
            }
            let client = match step.run_in() {
                RunIn::Database(name) => &connect(&self.url(None, name)).await,
                _ => &self.client,
            };
            client.batch_execute(step.sql()).await.unwrap();
        }
    }

    /// Everything about the roles and the database that provisioning decides.
    async fn state(&self, resources: &ServiceResources) -> Vec<String> {
        let roles = [
            resources.role(),
            resources.migrator_role(),
            resources.owner_role(),
        ];
        let database = resources.database();
        let text = |row: Row| row.get::<_, String>(0);
        let mut state = Vec::new();
        for query in [
            "SELECT concat_ws(' ', rolname, rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolconnlimit)
               FROM pg_roles WHERE rolname = ANY($1) AND $2::text IS NOT NULL ORDER BY 1",
            "SELECT concat_ws(' ', r.rolname, s.setconfig) FROM pg_db_role_setting s
               JOIN pg_roles r ON r.oid = s.setrole JOIN pg_database d ON d.oid = s.setdatabase
               WHERE r.rolname = ANY($1) AND d.datname = $2 ORDER BY 1",
            "SELECT concat_ws(' ', m.roleid::regrole, m.member::regrole) FROM pg_auth_members m
               WHERE m.roleid::regrole::text = ANY($1) AND $2::text IS NOT NULL ORDER BY 1",
            "SELECT concat_ws(' ', pg_get_userbyid(datdba), datacl) FROM pg_database
               WHERE datname = $2 AND $1::text[] IS NOT NULL",
        ] {
            let rows = self.client.query(query, &[&roles.as_slice(), &database]).await.unwrap();
            state.extend(rows.into_iter().map(text));
        }
        state
    }
}

#[tokio::test]
async fn provisioning_converges_whatever_was_there_before() {
    let (_stack, administrator) = Administrator::start().await;
    let resources = resources("drifting");
    administrator.run(&postgres::drop_steps(&resources)).await;
    administrator
        .run(&postgres::service_steps(&resources))
        .await;
    let state = administrator.state(&resources).await;
    assert_eq!(state.len(), 3 + 2 + 1 + 1, "{state:#?}");

    administrator
        .run(&postgres::service_steps(&resources))
        .await;
    assert_eq!(
        administrator.state(&resources).await,
        state,
        "again, nothing changes"
    );

    let (role, owner, database) = (
        resources.role(),
        resources.owner_role(),
        resources.database(),
    );
    let drift = format!(
        "ALTER ROLE {role} SUPERUSER CREATEDB CONNECTION LIMIT 7; GRANT {owner} TO {role};
         ALTER ROLE {owner} LOGIN; ALTER DATABASE {database} OWNER TO CURRENT_USER;
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO PUBLIC;
         ALTER ROLE {role} IN DATABASE {database} SET statement_timeout = 0"
    );
    administrator.client.batch_execute(&drift).await.unwrap();
    assert_ne!(administrator.state(&resources).await, state);
    administrator
        .run(&postgres::service_steps(&resources))
        .await;
    assert_eq!(
        administrator.state(&resources).await,
        state,
        "drift is mended"
    );

    administrator.run(&postgres::drop_steps(&resources)).await;
    assert!(administrator.state(&resources).await.is_empty());
    administrator.run(&postgres::drop_steps(&resources)).await;
}

#[tokio::test]
async fn awkward_passwords_log_in_and_what_the_migrator_makes_is_the_owners() {
    let (stack, administrator) = Administrator::start().await;
    let resources = resources("awkward");
    administrator
        .run(&postgres::service_steps(&resources))
        .await;
    let authority = stack.postgres().unwrap().authority();
    let migrator = connect(resources.postgres_migration_url(&authority).expose()).await;
    migrator
        .batch_execute("CREATE SCHEMA own; CREATE TABLE own.things (id bigserial); CREATE TYPE own.kind AS ENUM ('a')")
        .await
        .unwrap();
    let owner = "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relname = 'things'";
    let owner: String = migrator.query_one(owner, &[]).await.unwrap().get(0);
    assert_eq!(owner, resources.owner_role());

    let service = connect(resources.postgres_url(&authority).expose()).await;
    let insert = "INSERT INTO own.things DEFAULT VALUES RETURNING id";
    let id: i64 = service.query_one(insert, &[]).await.unwrap().get(0);
    assert_eq!(id, 1);
    let settings = "SELECT concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
        current_setting('idle_in_transaction_session_timeout'), current_setting('client_connection_check_interval'))";
    let settings: String = service.query_one(settings, &[]).await.unwrap().get(0);
    assert_eq!(settings, "30s 10s 1min 1s");
    drop((migrator, service));
    administrator.run(&postgres::drop_steps(&resources)).await;
}

#[tokio::test]
async fn an_administrator_without_superuser_rights_provisions_too() {
    let (stack, superuser) = Administrator::start().await;
    let name = format!("lesser_admin_{}", unique());
    let create = format!("CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD 'lesser'");
    superuser.client.batch_execute(&create).await.unwrap();
    superuser
        .change(&format!("GRANT CONNECT ON DATABASE postgres TO {name}"))
        .await;
    let url = superuser.url(Some((name.as_str(), "lesser")), "postgres");
    let client = connect(&url).await;
    let lesser = Administrator { url, client };
    let resources = resources("lesser");
    lesser.run(&postgres::service_steps(&resources)).await;
    lesser.run(&postgres::service_steps(&resources)).await;
    let authority = stack.postgres().unwrap().authority();
    drop(connect(resources.postgres_url(&authority).expose()).await);
    // A lesser administrator may not end sessions of other roles, and this one ends a moment later.
    until(SETTLE, "the end of the service's session", async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
        let database = resources.database();
        let open: i64 = superuser.client.query_one(open, &[&database]).await?.get(0);
        Ok((open == 0).then_some(()))
    })
    .await
    .unwrap();
    lesser.run(&postgres::drop_steps(&resources)).await;
    drop(lesser);
    superuser
        .change(&format!("DROP OWNED BY {name}; DROP ROLE {name}"))
        .await;
}
