//! Tenants as rows: nobody sees what is another's.

use std::time::Duration;

use maestro_db::{Db, Error, ErrorKind, TenantId, TenantModel, TenantState};
use maestro_testkit::Sandbox;

use crate::support::{config, migrator, sandbox};

pub(crate) const ORDERS: &str = "create table orders (tenant text, id bigint generated always as identity, text text not null, primary key (tenant, id)); \
     select maestro.protect('orders'); \
     create table countries (code text primary key); \
     select maestro.share('countries', 'the same for all')";

pub(crate) async fn tenants(settings: &[(&str, &str)]) -> (Sandbox, Db) {
    let sandbox = sandbox().await;
    let db = Db::builder(config(&sandbox, settings))
        .tenants(TenantModel::Rows)
        .connect()
        .await
        .unwrap();
    db.migrate(&migrator(&[ORDERS])).await.unwrap();
    for id in ["acme", "globex"] {
        db.tenants().unwrap().create(&tenant(id), id).await.unwrap();
    }
    (sandbox, db)
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, sqlx::Error>) -> ErrorKind {
    Error::from(result.unwrap_err()).kind()
}

#[tokio::test]
async fn a_tenant_sees_and_changes_its_own_rows_only() {
    let (_sandbox, db) = tenants(&[]).await;
    let (acme, globex) = (db.tenant(tenant("acme")), db.tenant(tenant("globex")));
    sqlx::query("insert into orders (text) values ('a')")
        .execute(&acme)
        .await
        .unwrap();
    let mut tx = globex.begin().await.unwrap();
    sqlx::query("insert into orders (text) values ('g'), ('h')")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();

    let texts: Vec<String> = sqlx::query_scalar("select text from orders")
        .fetch_all(&acme)
        .await
        .unwrap();
    assert_eq!(texts, ["a"]);
    let changed = sqlx::query("update orders set text = 'mine'")
        .execute(&acme)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 1);
    let deleted = sqlx::query("delete from orders where tenant = 'globex'")
        .execute(&acme)
        .await
        .unwrap();
    assert_eq!(deleted.rows_affected(), 0);
    // Also not by writing another's name into a row.
    let foreign = sqlx::query("insert into orders (tenant, text) values ('globex', 'x')")
        .execute(&acme)
        .await;
    assert_eq!(kind(foreign), ErrorKind::Rejected);
    let moved = sqlx::query("update orders set tenant = 'globex'")
        .execute(&acme)
        .await;
    assert_eq!(kind(moved), ErrorKind::Rejected);
    let count: i64 = sqlx::query_scalar("select count(*) from orders")
        .fetch_one(&globex)
        .await
        .unwrap();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_statement_without_a_tenant_is_an_error_and_not_an_empty_answer() {
    let (_sandbox, db) = tenants(&[("POOL_MAX", "1")]).await;
    let acme = db.tenant(tenant("acme"));
    sqlx::query("insert into orders (text) values ('a')")
        .execute(&acme)
        .await
        .unwrap();
    for sql in [
        "select * from orders",
        "update orders set text = 'x'",
        "delete from orders",
        "insert into orders (text) values ('x')",
    ] {
        assert_eq!(
            kind(sqlx::query(sql).execute(&db).await),
            ErrorKind::Isolation,
            "{sql}"
        );
        let mut tx = db.begin().await.unwrap();
        assert_eq!(
            kind(sqlx::query(sql).execute(&mut tx).await),
            ErrorKind::Isolation,
            "{sql}"
        );
    }
    // Shared tables need none.
    sqlx::query("insert into countries values ('de')")
        .execute(&db)
        .await
        .unwrap();
    let count: i64 = sqlx::query_scalar("select count(*) from countries")
        .fetch_one(&acme)
        .await
        .unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn the_owner_is_held_to_the_policies_too() {
    let (_sandbox, db) = tenants(&[]).await;
    sqlx::query("insert into orders (text) values ('a')")
        .execute(&db.tenant(tenant("acme")))
        .await
        .unwrap();
    let error = db
        .migrate(&migrator(&[
            ORDERS,
            "update orders set text = 'everybody''s'",
        ]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no tenant is set"), "{error}");
}

#[tokio::test]
async fn whose_transaction_it_is_cannot_be_changed_in_it() {
    let (_sandbox, db) = tenants(&[]).await;
    let acme = db.tenant(tenant("acme"));
    for sql in [
        "set local maestro.tenant = 'globex'",
        "select set_config('maestro.tenant', 'globex', true)",
        "select set_config('maestro.tenant', 'globex', false)",
        "set local role postgres",
    ] {
        let mut tx = acme.begin().await.unwrap();
        assert_eq!(
            kind(sqlx::query(sql).execute(&mut tx).await),
            ErrorKind::Isolation,
            "{sql}"
        );
        let whose: String = sqlx::query_scalar("select maestro.tenant()")
            .fetch_one(&mut tx)
            .await
            .unwrap();
        assert_eq!(whose, "acme");
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn what_a_function_set_for_the_session_does_not_outlive_the_transaction() {
    let (sandbox, db) = tenants(&[("POOL_MAX", "1")]).await;
    let with_function = migrator(&[
        ORDERS,
        "create function sneak() returns void language sql as $$ select set_config('maestro.tenant', 'globex', false) $$",
    ]);
    db.migrate(&with_function).await.unwrap();
    let mut tx = db.tenant(tenant("acme")).begin().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    sqlx::query("select sneak()")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let (after, left, name): (i32, Option<String>, String) = sqlx::query_as(
        "select pg_backend_pid(), nullif(current_setting('maestro.tenant', true), ''), current_setting('application_name')",
    )
    .fetch_one(&db)
    .await
    .unwrap();
    assert_eq!((after, left), (pid, None));
    // The session's own settings are still there.
    assert_eq!(name, format!("orders/0.0.0/t{}", sandbox.id()));
}

#[tokio::test]
async fn unknown_and_suspended_tenants_are_not_entered() {
    let (sandbox, db) = tenants(&[]).await;
    let nobody = db.tenant(tenant("nobody")).begin().await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NotFound, "{nobody}");

    let all = db.tenants().unwrap();
    let acme = db.tenant(tenant("acme"));
    acme.begin().await.unwrap().rollback().await.unwrap();
    all.suspend(acme.id()).await.unwrap();
    let suspended = acme.begin().await.unwrap_err();
    assert_eq!(suspended.kind(), ErrorKind::Isolation, "{suspended}");
    assert!(suspended.to_string().contains("suspended"), "{suspended}");
    // Another replica learns of it by itself.
    let other = Db::builder(config(&sandbox, &[]))
        .tenants(TenantModel::Rows)
        .connect()
        .await
        .unwrap();
    other.tenant(tenant("acme")).begin().await.unwrap_err();

    all.resume(acme.id()).await.unwrap();
    acme.begin().await.unwrap().rollback().await.unwrap();
    let missing = all.suspend(&tenant("nobody")).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_suspended_tenant_is_shut_out_of_every_replica_without_being_told() {
    let (sandbox, db) = tenants(&[]).await;
    let other = Db::builder(config(&sandbox, &[]))
        .tenants(TenantModel::Rows)
        .connect()
        .await
        .unwrap();
    let acme = other.tenant(tenant("acme"));
    acme.begin().await.unwrap().rollback().await.unwrap();
    db.tenants().unwrap().suspend(acme.id()).await.unwrap();
    crate::support::eventually("it is shut out", Duration::from_secs(30), || async {
        match acme.begin().await {
            Ok(tx) => {
                tx.rollback().await.unwrap();
                false
            }
            Err(error) => error.kind() == ErrorKind::Isolation,
        }
    })
    .await;
}

#[tokio::test]
async fn tenants_are_created_listed_renamed_and_every_step_is_in_the_trail() {
    let (_sandbox, db) = tenants(&[]).await;
    let all = db.tenants().unwrap();
    let twice = all.create(&tenant("acme"), "again").await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    all.rename(&tenant("acme"), "Acme Ltd").await.unwrap();
    all.suspend(&tenant("acme")).await.unwrap();
    all.record(&tenant("acme"), "signed-in", r#"{"user": "jo"}"#)
        .await
        .unwrap();
    let list = all.list().await.unwrap();
    let list: Vec<_> = list
        .iter()
        .map(|t| (t.id.as_str(), t.name.as_str(), t.state))
        .collect();
    assert_eq!(
        list,
        [
            ("acme", "Acme Ltd", TenantState::Suspended),
            ("globex", "globex", TenantState::Active)
        ]
    );
    let trail = all.audit(&tenant("acme"), 0, 10).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["created", "renamed", "suspended", "signed-in"]);
    assert!(trail[3].detail.contains("jo"));
    assert!(
        trail[0].actor.starts_with(db.config().role()),
        "{:?}",
        trail[0]
    );
    assert_eq!(
        all.audit(&tenant("acme"), trail[2].number, 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn the_trail_can_be_appended_to_and_nothing_else() {
    let (_sandbox, db) = tenants(&[]).await;
    for sql in [
        "update maestro.tenant_audit set action = 'x'",
        "delete from maestro.tenant_audit",
    ] {
        let refused = Error::from(sqlx::query(sql).execute(&db).await.unwrap_err());
        assert_eq!(
            refused.sqlstate().as_deref(),
            Some("42501"),
            "{sql}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_database_without_tenants_says_so() {
    let it = crate::support::database("", &[]).await;
    assert_eq!(it.db.tenants().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(
        it.db
            .tenant(tenant("acme"))
            .begin()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Config
    );
}

#[tokio::test]
async fn the_checker_finds_every_way_past_the_isolation() {
    let (_sandbox, db) = tenants(&[]).await;
    assert_eq!(db.tenants().unwrap().check().await.unwrap(), []);
    let holes = "create table open_table (tenant text); \
         create table not_forced (tenant text); select maestro.protect('not_forced'); alter table not_forced no force row level security; \
         create table no_policy (tenant text); alter table no_policy enable row level security; alter table no_policy force row level security; \
         create table wide_open (tenant text); select maestro.protect('wide_open'); create policy all_of_it on wide_open using (true); \
         create view peek as select * from orders; \
         create view honest with (security_invoker = true) as select * from orders; \
         create materialized view copies as select code from countries; \
         create function as_owner() returns bigint language sql security definer as 'select count(*) from orders'; \
         create table lines (tenant text, order_tenant text, order_id bigint, foreign key (order_tenant, order_id) references orders (tenant, id)); select maestro.protect('lines'); \
         create table good_lines (tenant text, order_id bigint); select maestro.protect('good_lines'); \
         alter table good_lines add foreign key (tenant, order_id) references orders (tenant, id)";
    db.migrate(&migrator(&[ORDERS, holes])).await.unwrap();
    let findings = db.tenants().unwrap().check().await.unwrap();
    let mut found: Vec<_> = findings
        .iter()
        .map(|f| (f.code, f.object.as_str()))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("definer-function", "as_owner()"),
            (
                "foreign-key-without-tenant",
                "lines_order_tenant_order_id_fkey on public.lines"
            ),
            ("materialized-view", "public.copies"),
            ("policy-without-tenant", "all_of_it on public.wide_open"),
            ("row-security-not-forced", "public.not_forced"),
            ("table-without-policy", "public.no_policy"),
            ("table-without-row-security", "public.open_table"),
            ("view-without-security-invoker", "public.peek"),
        ]
    );
    assert!(
        findings
            .iter()
            .any(|f| f.fix.contains("maestro.protect('public.open_table')"))
    );
}
