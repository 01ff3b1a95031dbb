//! Provisioning, and an audit that finds what was changed since.

use maestro_config::provision::{Passwords, ServiceResources};
use maestro_config::{Environment, Secret};
use maestro_db::{Db, ErrorKind, Provisioner, TenantModel};
use maestro_testkit::{Service, Stack};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::migrator;

fn passwords() -> Passwords {
    let random = || Secret::new(format!("p'{:016x}\\", fastrand::u64(..)));
    Passwords {
        postgres: random(),
        migrator: random(),
        cache: random(),
        messaging: random(),
    }
}

fn resources(service: &str) -> ServiceResources {
    ServiceResources::conventional(&service.parse().unwrap(), passwords()).with_connection_limit(20)
}

/// A server of this test's own: the audit looks at all of it.
struct Place {
    stack: Stack,
    provisioner: Provisioner,
    resources: ServiceResources,
    db: Db,
}

impl Place {
    async fn new() -> Self {
        let stack = Stack::builder()
            .only([Service::Postgres])
            .dedicated()
            .await
            .unwrap();
        let provisioner = Provisioner::new(&stack.postgres().unwrap().admin_url()).unwrap();
        let resources = resources("orders");
        provisioner.close_server().await.unwrap();
        provisioner.provision(&resources).await.unwrap();
        provisioner
            .provision(&self::resources("billing"))
            .await
            .unwrap();
        let server = stack.postgres().unwrap().authority();
        let pairs = [
            ("MAESTRO_SERVICE_NAME", "orders".to_owned()),
            ("MAESTRO_ENVIRONMENT", "test".to_owned()),
            // A busy machine has time.
            ("MAESTRO_POSTGRES_ACQUIRE_TIMEOUT", "30s".to_owned()),
            ("MAESTRO_POSTGRES_CONNECT_TIMEOUT", "30s".to_owned()),
            (
                "MAESTRO_POSTGRES_URL",
                resources.postgres_url(&server).expose().clone(),
            ),
            (
                "MAESTRO_POSTGRES_MIGRATION_URL",
                resources.postgres_migration_url(&server).expose().clone(),
            ),
        ];
        let config = Environment::from_pairs(pairs).read().unwrap();
        let db = Db::builder(config)
            .tenants(TenantModel::Rows)
            .connect()
            .await
            .unwrap();
        db.migrate(&migrator(&[TABLES])).await.unwrap();
        Self {
            stack,
            provisioner,
            resources,
            db,
        }
    }

    async fn administrator(&self, database: &str) -> PgConnection {
        let url = self.stack.postgres().unwrap().admin_url();
        let mut url: url::Url = url.expose().parse().unwrap();
        url.set_path(database);
        PgConnection::connect(url.as_str()).await.unwrap()
    }

    async fn codes(&self) -> Vec<&'static str> {
        let findings = self.provisioner.verify(&self.resources).await.unwrap();
        let mut codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

const TABLES: &str = "create table orders (tenant text, id bigint primary key); select maestro.protect('orders'); \
     create view open_orders with (security_invoker = true) as select * from orders";

#[tokio::test]
async fn provisioning_again_changes_nothing_and_the_audit_is_clean() {
    let place = Place::new().await;
    assert_eq!(
        place.provisioner.verify(&place.resources).await.unwrap(),
        []
    );
    place.provisioner.provision(&place.resources).await.unwrap();
    place.provisioner.close_server().await.unwrap();
    assert_eq!(
        place.provisioner.verify(&place.resources).await.unwrap(),
        []
    );
    sqlx::query("select 1").execute(&place.db).await.unwrap();
}

#[tokio::test]
async fn provisioners_at_work_at_once_wait_for_each_other() {
    let place = Place::new().await;
    let (provisioner, resources) = (&place.provisioner, &place.resources);
    let runs = (0..6).map(|_| provisioner.provision(resources));
    for run in futures_util::future::join_all(runs).await {
        run.unwrap();
    }
    assert_eq!(provisioner.verify(resources).await.unwrap(), []);
}

#[tokio::test]
async fn a_service_that_was_never_provisioned_is_not_found_and_a_removed_one_is_gone() {
    let place = Place::new().await;
    let missing = place
        .provisioner
        .verify(&resources("nobody"))
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let temporary = resources("temporary");
    place.provisioner.provision(&temporary).await.unwrap();
    assert_eq!(place.provisioner.verify(&temporary).await.unwrap(), []);
    place.provisioner.remove(&temporary).await.unwrap();
    assert_eq!(
        place
            .provisioner
            .verify(&temporary)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotFound
    );
}

/// Where it is planted, how, under which name it is found.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "postgres",
        "grant connect on database orders to public",
        "database-open-to-public",
    ),
    (
        "postgres",
        "grant connect on database postgres to public",
        "database-open-to-public",
    ),
    (
        "postgres",
        "grant connect on database template1 to public",
        "database-open-to-public",
    ),
    (
        "postgres",
        "grant temporary on database orders to public",
        "temporary-tables-for-public",
    ),
    (
        "postgres",
        "grant connect on database orders to billing",
        "stranger-may-connect",
    ),
    (
        "postgres",
        "alter database orders owner to orders",
        "database-owner",
    ),
    (
        "postgres",
        "alter role orders_owner login",
        "owner-with-login",
    ),
    (
        "postgres",
        "alter role orders nologin",
        "role-without-login",
    ),
    ("postgres", "alter role orders superuser", "superuser"),
    (
        "postgres",
        "alter role orders_migrator bypassrls",
        "bypasses-row-security",
    ),
    (
        "postgres",
        "alter role orders createdb",
        "creates-roles-or-databases",
    ),
    (
        "postgres",
        "alter role orders_owner createrole",
        "creates-roles-or-databases",
    ),
    ("postgres", "alter role orders replication", "replication"),
    (
        "postgres",
        "grant orders_owner to orders",
        "login-is-member",
    ),
    ("postgres", "grant billing to orders", "login-is-member"),
    ("postgres", "grant orders to billing", "stranger-is-member"),
    (
        "postgres",
        "grant orders_owner to billing",
        "stranger-is-member",
    ),
    (
        "postgres",
        "revoke orders_owner from orders_migrator",
        "migrator-is-not-member",
    ),
    (
        "postgres",
        "alter role orders connection limit -1",
        "connections-without-limit",
    ),
    (
        "postgres",
        "alter role orders valid until '2001-01-01'",
        "password-expired",
    ),
    (
        "postgres",
        "alter role orders in database orders reset statement_timeout",
        "setting-missing",
    ),
    (
        "postgres",
        "alter role orders_migrator in database orders reset role",
        "setting-missing",
    ),
    (
        "orders",
        "grant create on schema public to public",
        "public-creates-objects",
    ),
    (
        "orders",
        "grant create on schema public to orders",
        "login-creates-objects",
    ),
    (
        "orders",
        "alter table orders owner to orders_migrator",
        "object-owner",
    ),
    (
        "orders",
        "grant select on orders to public",
        "table-open-to-public",
    ),
    (
        "orders",
        "grant select on orders to billing",
        "table-open-to-stranger",
    ),
    (
        "orders",
        "alter default privileges for role orders_owner revoke select, insert, update, delete on tables from orders",
        "default-privileges-missing",
    ),
    (
        "orders",
        "alter table orders disable row level security",
        "table-without-row-security",
    ),
    (
        "orders",
        "alter table orders no force row level security",
        "row-security-not-forced",
    ),
    (
        "orders",
        "drop policy maestro_tenant on orders",
        "table-without-policy",
    ),
    (
        "orders",
        "create policy everybody on orders using (true)",
        "policy-without-tenant",
    ),
    (
        "orders",
        "alter view open_orders reset (security_invoker)",
        "view-without-security-invoker",
    ),
    (
        "orders",
        "create materialized view kept as select 1 as one; alter materialized view kept owner to orders_owner",
        "materialized-view",
    ),
    (
        "orders",
        "create schema tenant_acme authorization orders_owner; create table tenant_acme.open (id int); \
         alter table tenant_acme.open owner to orders_owner",
        "tenant-schema-table-without-policy",
    ),
];

/// Each fault is planted alone, found under its name, mended by the statement the audit gives, and
/// not found any more.
#[tokio::test]
async fn the_audit_finds_each_planted_fault_and_says_how_to_mend_it() {
    let place = Place::new().await;
    for (database, plant, code) in FAULTS {
        let mut administrator = place.administrator(database).await;
        sqlx::raw_sql(AssertSqlSafe(*plant))
            .execute(&mut administrator)
            .await
            .expect(plant);
        let findings = place.provisioner.verify(&place.resources).await.unwrap();
        let found: Vec<_> = findings
            .iter()
            .filter(|finding| finding.code == *code)
            .collect();
        assert!(
            !found.is_empty(),
            "`{plant}` was not found as {code}: {findings:?}"
        );
        for finding in &findings {
            sqlx::raw_sql(AssertSqlSafe(finding.fix.clone()))
                .execute(&mut administrator)
                .await
                .unwrap_or_else(|error| {
                    panic!("`{plant}`: the fix `{}` failed: {error}", finding.fix)
                });
        }
        assert_eq!(place.codes().await, [""; 0], "`{plant}` is still there");
        administrator.close().await.unwrap();
    }
    assert!(FAULTS.len() >= 20);
}

#[tokio::test]
async fn more_connections_promised_than_there_are_is_a_warning() {
    let place = Place::new().await;
    let mut administrator = place.administrator("postgres").await;
    sqlx::raw_sql("alter role billing connection limit 5000")
        .execute(&mut administrator)
        .await
        .unwrap();
    assert_eq!(place.codes().await, ["connection-limits-exceed-server"]);
}
