//! A tenant's rows taken out, put back elsewhere, and erased.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maestro_db::{Db, EraseHook, ErrorKind, TenantId, TenantModel};
use maestro_testkit::Sandbox;
use sqlx::migrate::Migrator;

use crate::support::{config, migrator, sandbox};

/// Types whose text is easy to lose something of, tables that refer to each other, generated columns.
const TABLES: &str = "create table customers (TENANT id bigint generated always as identity, name text not null, \
       data jsonb, raw bytea, price numeric, ratio float8, small real, at timestamptz, day date, span interval, tags text[], \
       nested int[][], code char(8), flag boolean, uid uuid, address inet, shout text generated always as (upper(name)) stored, \
       primary key (KEY id)); \
     create table \"odd orders\" (TENANT id bigserial, customer bigint not null, \"odd \"\"name\" text, \
       primary key (KEY id), foreign key (KEY customer) references customers (KEY id)); \
     create table notes (TENANT text text)";

fn tables(model: TenantModel) -> Migrator {
    let sql = match model {
        TenantModel::Schemas => TABLES.replace("TENANT ", "").replace("KEY ", ""),
        _ => format!(
            "{}; select maestro.protect(t) from unnest(array['customers', '\"odd orders\"', 'notes']::regclass[]) t",
            TABLES
                .replace("TENANT ", "tenant text default maestro.tenant(), ")
                .replace("KEY ", "tenant, ")
        ),
    };
    migrator(&[Box::leak(sql.into_boxed_str())])
}

async fn start(model: TenantModel, ids: &[&str]) -> (Sandbox, Db) {
    let sandbox = sandbox().await;
    let db = Db::builder(config(&sandbox, &[]))
        .tenants(model)
        .connect()
        .await
        .unwrap();
    let none = migrator(&[]);
    let tables = tables(model);
    db.migrate(if model == TenantModel::Schemas {
        &none
    } else {
        &tables
    })
    .await
    .unwrap();
    let all = db.tenants().unwrap();
    for id in ids {
        all.create(&tenant(id), id).await.unwrap();
    }
    if model == TenantModel::Schemas {
        let report = all.migrate(&tables).await.unwrap();
        assert_eq!(report.failed, [], "{report}");
    }
    for id in ids {
        fill(&db, id).await;
    }
    (sandbox, db)
}

fn tenant(id: &str) -> TenantId {
    TenantId::parse(id).unwrap()
}

async fn fill(db: &Db, id: &str) {
    let mut tx = db.tenant(tenant(id)).begin().await.unwrap();
    for sql in [
        "insert into customers (name, data, raw, price, ratio, small, at, day, span, tags, nested, code, flag, uid, address) values \
           (E'tab\\t line\\n back\\\\slash \\r \\\\N é ☃', '{\"a\": [1.50, null]}', '\\x00ff0a', 1.500, 0.1::float8 + 0.2::float8, 1e-30, \
            '2026-03-01 12:00:00.123456+05', '-infinity', '1 year 2 mons -3 days 04:05:06.7', '{a,\"b,c\",NULL,\"\"}', '{{1,2},{3,4}}', 'ab', true, \
            '00000000-0000-0000-0000-000000000001', '10.0.0.0/8'), \
           ('', null, '', 'NaN', 'infinity', '-0', 'infinity', null, null, '{}', null, null, false, null, null)",
        "insert into customers (name, price) select 'c' || n, n / 7.0 from generate_series(1, 2500) n",
        "insert into \"odd orders\" (customer, \"odd \"\"name\") select id, case when id % 3 = 0 then null else name end from customers",
        "insert into notes (text) values (E'\\\\.'), ('\\N'), (null), ('same'), ('same')",
    ] {
        sqlx::query(sql).execute(&mut tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

async fn export(db: &Db, id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let summary = db
        .tenants()
        .unwrap()
        .export(&tenant(id), &mut bytes)
        .await
        .unwrap();
    assert_eq!(summary.rows(), 2502 + 2502 + 5);
    bytes
}

async fn there_and_back(model: TenantModel) {
    let (_one, here) = start(model, &["globex", "acme"]).await;
    let (_other, there) = start(model, &["initech"]).await;
    let bytes = export(&here, "acme").await;
    let all = there.tenants().unwrap();
    let unknown = all
        .restore(&tenant("acme"), &mut &bytes[..])
        .await
        .unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    all.create(&tenant("acme"), "Acme").await.unwrap();
    if model == TenantModel::Schemas {
        all.migrate(&tables(model)).await.unwrap();
    }
    // Cut off anywhere, or somebody else's: nothing is stored.
    for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        let error = all
            .restore(&tenant("acme"), &mut &bytes[..cut])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
    }
    let foreign = all
        .restore(&tenant("initech"), &mut &bytes[..])
        .await
        .unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Codec, "{foreign}");

    let summary = all.restore(&tenant("acme"), &mut &bytes[..]).await.unwrap();
    assert_eq!(summary.rows(), 2502 + 2502 + 5);
    assert!(export(&there, "acme").await == bytes, "the bytes differ");
    // Twice is a conflict, and numbers go on behind those that came along.
    let again = all
        .restore(&tenant("acme"), &mut &bytes[..])
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
    let acme = there.tenant(tenant("acme"));
    sqlx::query("insert into customers (name) values ('next')")
        .execute(&acme)
        .await
        .unwrap();
    sqlx::query("insert into \"odd orders\" (customer) select max(id) from customers")
        .execute(&acme)
        .await
        .unwrap();
    let actions: Vec<_> = all
        .audit(&tenant("acme"), 0, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.action)
        .collect();
    assert_eq!(actions, ["created", "restored", "exported"]);
}

#[tokio::test]
async fn a_tenant_in_shared_tables_is_restored_elsewhere_byte_by_byte() {
    there_and_back(TenantModel::Rows).await;
}

#[tokio::test]
async fn a_tenant_in_a_schema_is_restored_elsewhere_byte_by_byte() {
    there_and_back(TenantModel::Schemas).await;
}

async fn erased_while_others_work(model: TenantModel) {
    let (_sandbox, db) = start(model, &["acme", "globex"]).await;
    let all = db.tenants().unwrap();
    // Somebody who was inside before and writes late.
    let mut late = db.tenant(tenant("acme")).begin().await.unwrap();
    sqlx::query("insert into notes (text) values ('late')")
        .execute(&mut late)
        .await
        .unwrap();
    let inside = Arc::new(AtomicBool::new(true));
    let ends = Arc::clone(&inside);
    let late = tokio::spawn(async move {
        // Longer than an erasure waits when nobody is inside.
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        sqlx::query("insert into notes (text) values ('later')")
            .execute(&mut late)
            .await
            .unwrap();
        ends.store(false, Ordering::Release);
        late.commit().await.unwrap();
    });
    let over = Arc::new(AtomicBool::new(false));
    let work = tokio::spawn({
        let (db, over) = (db.clone(), Arc::clone(&over));
        async move {
            let globex = db.tenant(tenant("globex"));
            let mut done = 0_u64;
            while !over.load(Ordering::Relaxed) {
                sqlx::query("insert into notes (text) values ('x')")
                    .execute(&globex)
                    .await
                    .unwrap();
                done += 1;
            }
            done
        }
    });
    let broken = EraseHook::new("redis", |_| async { Err("Redis is away".into()) });
    let error = all.erase(&tenant("acme"), &[broken]).await.unwrap_err();
    assert!(error.to_string().contains("redis"), "{error}");
    assert!(
        !inside.load(Ordering::Acquire),
        "rows were erased while somebody was inside"
    );
    late.await.unwrap();
    // Closed, and kept closed until it goes on.
    let closed = db.tenant(tenant("acme")).begin().await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Isolation);
    let keys = EraseHook::new("redis", |_| async { Ok(17) });
    let receipt = all.erase(&tenant("acme"), &[keys]).await.unwrap();
    // Also what the interrupted run had erased, and what was written late.
    assert_eq!(receipt.rows(), 2502 + 2502 + 7, "{receipt:?}");
    assert_eq!(receipt.hooks, [("redis".to_owned(), 17)]);
    let trail = all
        .audit(&tenant("acme"), receipt.entry - 1, 1)
        .await
        .unwrap();
    assert_eq!(trail[0].action, "erased");
    assert!(trail[0].detail.contains("17"), "{}", trail[0].detail);
    assert!(all.find(&tenant("acme")).await.unwrap().is_none());
    over.store(true, Ordering::Relaxed);
    let done = work.await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from notes")
        .fetch_one(&db.tenant(tenant("globex")))
        .await
        .unwrap();
    assert_eq!(left, i64::try_from(done).unwrap() + 5);
    let gone = all.erase(&tenant("acme"), &[]).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    // The id is free, and its tables are empty.
    all.create(&tenant("acme"), "again").await.unwrap();
    if model == TenantModel::Schemas {
        all.migrate(&tables(model)).await.unwrap();
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from notes")
        .fetch_one(&db.tenant(tenant("acme")))
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_in_shared_tables_is_erased_with_a_receipt_while_others_work() {
    erased_while_others_work(TenantModel::Rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_in_a_schema_is_erased_with_a_receipt_while_others_work() {
    erased_while_others_work(TenantModel::Schemas).await;
}
