//! Tenants with schemas of their own, and migrations that run for each tenant.

use maestro_db::{Db, Error, ErrorKind, TenantId, TenantMigrateOptions, TenantModel};
use maestro_testkit::Sandbox;

use crate::support::{config, count, migrator, sandbox};

const ORDERS: &str =
    "create table orders (id bigint generated always as identity primary key, text text not null)";

pub(crate) async fn tenants(settings: &[(&str, &str)]) -> (Sandbox, Db) {
    let sandbox = sandbox().await;
    let db = with_schemas(&sandbox, settings).await;
    for id in ["acme", "globex"] {
        db.tenants().unwrap().create(&tenant(id), id).await.unwrap();
    }
    let report = db
        .tenants()
        .unwrap()
        .migrate(&migrator(&[ORDERS]))
        .await
        .unwrap();
    assert_eq!(
        report.migrated,
        [tenant("acme"), tenant("globex")],
        "{report}"
    );
    (sandbox, db)
}

pub(crate) async fn with_schemas(sandbox: &Sandbox, settings: &[(&str, &str)]) -> Db {
    let db = Db::builder(config(sandbox, settings))
        .tenants(TenantModel::Schemas)
        .connect()
        .await
        .unwrap();
    db.migrate(&migrator(&[])).await.unwrap();
    db
}

pub(crate) fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

#[tokio::test]
async fn each_tenant_has_its_own_tables_and_naming_anothers_in_full_shows_nothing() {
    let (sandbox, db) = tenants(&[("POOL_MAX", "1")]).await;
    let (acme, globex) = (db.tenant(tenant("acme")), db.tenant(tenant("globex")));
    for _ in 0..2 {
        sqlx::query("insert into orders (text) values ('a')")
            .execute(&acme)
            .await
            .unwrap();
    }
    sqlx::query("insert into orders (text) values ('g')")
        .execute(&globex)
        .await
        .unwrap();
    let texts = "select text from orders";
    let seen: Vec<String> = sqlx::query_scalar(texts).fetch_all(&acme).await.unwrap();
    assert_eq!(seen, ["a", "a"]);
    let seen: Vec<String> = sqlx::query_scalar(texts).fetch_all(&globex).await.unwrap();
    assert_eq!(seen, ["g"]);

    let foreign: i64 = sqlx::query_scalar("select count(*) from tenant_globex.orders")
        .fetch_one(&acme)
        .await
        .unwrap();
    assert_eq!(foreign, 0);
    let write = sqlx::query("insert into tenant_globex.orders (text) values ('x')")
        .execute(&acme)
        .await;
    assert_eq!(Error::from(write.unwrap_err()).kind(), ErrorKind::Rejected);
    let unscoped = sqlx::query("select text from tenant_acme.orders")
        .fetch_all(&db)
        .await;
    assert_eq!(
        Error::from(unscoped.unwrap_err()).kind(),
        ErrorKind::Isolation
    );

    let all = db.tenants().unwrap();
    assert_eq!(all.check().await.unwrap(), []);
    drop(sandbox);
}

#[tokio::test]
async fn the_checker_finds_a_table_in_a_tenants_schema_that_everybody_sees() {
    let (_sandbox, db) = tenants(&[]).await;
    // Past the SDK: a migration of all tenants that names one in full.
    db.migrate(&migrator(&["create table tenant_acme.open (id int)"]))
        .await
        .unwrap();
    let findings = db.tenants().unwrap().check().await.unwrap();
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["tenant-schema-table-without-policy"]);
    assert_eq!(findings[0].object, "tenant_acme.open");
}

#[tokio::test]
async fn a_failing_tenant_keeps_nobody_and_the_canary_keeps_everybody() {
    let (_sandbox, db) = tenants(&[]).await;
    let all = db.tenants().unwrap();
    let next = || {
        migrator(&[
            ORDERS,
            "alter table orders add column state text; select 1 / (case when maestro.tenant() = 'acme' then 0 else 1 end)",
        ])
    };
    let canary = TenantMigrateOptions::new().canary(tenant("acme"));
    let report = all.migrate_with(&next(), canary).await.unwrap();
    assert_eq!(
        (report.migrated.len(), &report.pending[..]),
        (0, &[tenant("globex")][..]),
        "{report}"
    );
    let plan = all
        .migrate_with(&next(), TenantMigrateOptions::new().dry_run())
        .await
        .unwrap();
    assert_eq!(plan.pending, [tenant("acme"), tenant("globex")]);
    let report = all.migrate(&next()).await.unwrap();
    assert_eq!(report.migrated, [tenant("globex")], "{report}");
    let (id, version, why) = &report.failed[0];
    assert_eq!((id, *version), (&tenant("acme"), 2));
    assert!(why.contains("division by zero"), "{why}");
    // The whole of it was undone, and the reason is in the ledger.
    let columns = "select count(*) from information_schema.columns where table_schema = 'tenant_acme' and column_name = 'state'";
    assert_eq!(count(&db, columns).await, 0);
    let noted = "select count(*) from maestro.tenant_migrations where tenant = 'acme' and version = 2 and error like '%division%'";
    assert_eq!(count(&db, noted).await, 1);
    // A file that changed after it was applied is told from one that is new.
    let changed = migrator(&["create table orders (id bigint primary key, text text, more int)"]);
    let report = all.migrate(&changed).await.unwrap();
    assert_eq!(report.failed.len(), 2);
    assert!(
        report.failed[0].2.contains("not the one that was applied"),
        "{report}"
    );
}

#[tokio::test]
async fn one_query_finds_that_no_tenant_has_anything_pending() {
    let (sandbox, _db) = tenants(&[]).await;
    let registry = maestro_metrics::Registry::detached();
    let db = Db::builder(config(&sandbox, &[]))
        .tenants(TenantModel::Schemas)
        .registry(&registry)
        .connect()
        .await
        .unwrap();
    let statements = || -> u64 {
        let text = registry.text();
        let counts = text
            .lines()
            .filter(|line| line.starts_with("db_client_operation_duration_seconds_count"));
        counts
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    };
    let before = statements();
    let report = db
        .tenants()
        .unwrap()
        .migrate(&migrator(&[ORDERS]))
        .await
        .unwrap();
    assert_eq!((report.migrated, report.pending), (vec![], vec![]));
    assert_eq!(statements() - before, 1);
}

#[tokio::test]
async fn a_tenant_whose_tables_are_older_is_served_with_the_same_statement() {
    let (_sandbox, db) = tenants(&[("POOL_MAX", "1")]).await;
    let (acme, globex) = (db.tenant(tenant("acme")), db.tenant(tenant("globex")));
    let wider = migrator(&[
        ORDERS,
        "do $$ begin if maestro.tenant() = 'acme' then alter table orders add column more int; end if; end $$",
    ]);
    for tenant in [&acme, &globex] {
        sqlx::query("insert into orders (text) values ('x')")
            .execute(tenant)
            .await
            .unwrap();
        sqlx::query("select * from orders")
            .fetch_all(tenant)
            .await
            .unwrap();
    }
    db.tenants().unwrap().migrate(&wider).await.unwrap();
    for _ in 0..5 {
        for (tenant, columns) in [(&acme, 3), (&globex, 2)] {
            let row = sqlx::query("select * from orders")
                .fetch_one(tenant)
                .await
                .unwrap();
            assert_eq!(sqlx::Row::len(&row), columns);
        }
    }
}
