//! A thousand tenants of one service, some of which work all the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use maestro_db::{Db, EraseHook, TenantId, TenantMigrateOptions};
use sqlx::migrate::Migrator;
use tokio::task::JoinSet;

use crate::schemas::{tenant, with_schemas};
use crate::support::{count, migrator, sandbox};

const TENANTS: usize = 1_000;
/// Tenants that are there before anybody works; the others come while they do.
const EARLY: usize = 900;
/// What happens to these is looked at; nobody else writes to them.
const FAILS: usize = 500;
const MOVES: usize = 300;
const LEAVES: usize = 700;

const ORDERS: &str =
    "create table orders (id bigint generated always as identity primary key, text text not null)";

fn id(n: usize) -> TenantId {
    tenant(&format!("t{n:04}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tenants_come_migrate_move_and_leave_while_the_others_work() {
    let (here, there) = (sandbox().await, sandbox().await);
    let db = with_schemas(&here, &[]).await;
    create(&db, 0..EARLY).await;
    let first = migrator(&[ORDERS]);
    assert_eq!(migrate(&db, &first).await, (EARLY, vec![]));

    let work = Work::start(&db);
    create(&db, EARLY..TENANTS).await;
    one_fails_and_is_resumed(&db).await;
    for n in [MOVES, LEAVES] {
        fill(&db, n).await;
    }
    one_moves(&db, &with_schemas(&there, &[]).await).await;
    one_leaves(&db).await;
    let written = work.stop().await;

    assert!(written.values().map(Vec::len).sum::<usize>() > 0);
    at_once(
        (0..TENANTS).filter(|n| *n != LEAVES && *n != MOVES),
        async |n| {
            let mine = written.get(&n).map_or(&[][..], Vec::as_slice);
            assert_eq!(texts(&db, n).await, mine, "of {}", id(n));
        },
    )
    .await;
}

/// Some at a time.
async fn at_once(numbers: impl Iterator<Item = usize>, each: impl AsyncFn(usize)) {
    let work = stream::iter(numbers).for_each_concurrent(6, |n| each(n));
    work.await;
}

async fn create(db: &Db, numbers: std::ops::Range<usize>) {
    let all = db.tenants().unwrap();
    at_once(numbers, async |n| {
        all.create(&id(n), "one of many").await.unwrap();
    })
    .await;
}

/// How many were migrated, and who could not be.
async fn migrate(db: &Db, files: &Migrator) -> (usize, Vec<TenantId>) {
    let options = TenantMigrateOptions::new().sessions(8);
    let report = db
        .tenants()
        .unwrap()
        .migrate_with(files, options)
        .await
        .unwrap();
    let failed = report.failed.into_iter().map(|(id, ..)| id).collect();
    (report.migrated.len(), failed)
}

async fn one_fails_and_is_resumed(db: &Db) {
    let in_the_way = "create table tenant_t0500.extra (id int)";
    db.migrate(&migrator(&[in_the_way])).await.unwrap();
    let second = migrator(&[ORDERS, "create table extra (id int primary key)"]);
    assert_eq!(migrate(db, &second).await, (TENANTS - 1, vec![id(FAILS)]));
    db.migrate(&migrator(&[in_the_way, "drop table tenant_t0500.extra"]))
        .await
        .unwrap();
    assert_eq!(migrate(db, &second).await, (1, vec![]));
    let tables = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
        where n.nspname like 'tenant\\_t%' and c.relname = 'extra' and c.relforcerowsecurity";
    assert_eq!(count(db, tables).await, i64::try_from(TENANTS).unwrap());
    assert_eq!(migrate(db, &second).await, (0, vec![]));
}

const ROWS: usize = 2_000;

async fn fill(db: &Db, n: usize) {
    let sql = "insert into orders (text) select 'order ' || n from generate_series(1, 2000) n";
    sqlx::query(sql).execute(&db.tenant(id(n))).await.unwrap();
}

async fn export(db: &Db, n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = db.tenants().unwrap();
    let summary = all.export(&id(n), &mut bytes).await.unwrap();
    assert_eq!(summary.rows(), ROWS as u64);
    bytes
}

async fn one_moves(here: &Db, there: &Db) {
    let bytes = export(here, MOVES).await;
    let all = there.tenants().unwrap();
    all.create(&id(MOVES), "from elsewhere").await.unwrap();
    let files = migrator(&[ORDERS, "create table extra (id int primary key)"]);
    assert_eq!(migrate(there, &files).await, (1, vec![]));
    all.restore(&id(MOVES), &mut &bytes[..]).await.unwrap();
    assert!(export(there, MOVES).await == bytes, "the bytes differ");
    assert_eq!(texts(there, MOVES).await, texts(here, MOVES).await);
}

async fn one_leaves(db: &Db) {
    let all = db.tenants().unwrap();
    let keys = EraseHook::new("redis", |_| async { Ok(17) });
    let receipt = all.erase(&id(LEAVES), &[keys]).await.unwrap();
    assert_eq!(receipt.rows(), ROWS as u64, "{receipt:?}");
    assert_eq!(receipt.hooks, [("redis".to_owned(), 17)]);
    assert!(all.find(&id(LEAVES)).await.unwrap().is_none());
    assert_eq!(all.list().await.unwrap().len(), TENANTS - 1);
    let schema = "select count(*) from pg_namespace where nspname = 'tenant_t0700'";
    assert_eq!(count(db, schema).await, 0);
}

/// In the order in which they were written.
async fn texts(db: &Db, n: usize) -> Vec<String> {
    sqlx::query_scalar("select text from orders order by id")
        .fetch_all(&db.tenant(id(n)))
        .await
        .unwrap()
}

/// Tasks that write for tenants drawn by lot, and read back at once what they wrote.
struct Work {
    over: Arc<AtomicBool>,
    tasks: JoinSet<HashMap<usize, Vec<String>>>,
}

impl Work {
    fn start(db: &Db) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for task in 0..2 {
            tasks.spawn(work(db.clone(), task, Arc::clone(&over)));
        }
        Self { over, tasks }
    }

    /// What was written, by tenant; fails if a statement of theirs did.
    async fn stop(self) -> HashMap<usize, Vec<String>> {
        self.over.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

/// Each task has tenants of its own, so that it knows the order of their rows.
async fn work(db: Db, task: usize, over: Arc<AtomicBool>) -> HashMap<usize, Vec<String>> {
    let mut dice = fastrand::Rng::with_seed(task as u64);
    let mut written = HashMap::<usize, Vec<String>>::new();
    while !over.load(Ordering::Relaxed) {
        let n = dice.usize(0..EARLY / 2) * 2 + task;
        if n == MOVES || n == LEAVES {
            continue;
        }
        let rows = written.entry(n).or_default();
        let text = format!("{n}: {}", rows.len());
        let mut tx = db.tenant(id(n)).begin().await.unwrap();
        sqlx::query("insert into orders (text) values ($1)")
            .bind(&text)
            .execute(&mut tx)
            .await
            .unwrap();
        rows.push(text);
        let seen: Vec<String> = sqlx::query_scalar("select text from orders order by id")
            .fetch_all(&mut tx)
            .await
            .unwrap();
        assert_eq!(&seen, rows, "of {}", id(n));
        tx.commit().await.unwrap();
        tokio::time::sleep(PACE).await;
    }
    written
}

/// Between two transactions of a task: the others work, and leave the machine to what is tested.
const PACE: Duration = Duration::from_millis(5);
