//! What a statement tells operators, and what it keeps to itself.

use std::io::Write;
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt as _;
use maestro_db::Db;
use tracing::instrument::WithSubscriber as _;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::{config, database};

/// Everything that was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_statement_is_a_span_without_its_values_and_a_line_when_it_was_slow() {
    let it = database("create table notes (text text)", &[("SLOW_QUERY", "200ms")]).await;
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    async {
        sqlx::query("insert into notes values ($1)")
            .bind("canary")
            .execute(&it.db)
            .await
            .unwrap();
        sqlx::query("select text from notes")
            .fetch_all(&it.db)
            .await
            .unwrap();
        sqlx::query("select pg_sleep($1)")
            .bind(0.3)
            .execute(&it.db)
            .await
            .unwrap();
        let mut tx = it.db.begin().await.unwrap();
        let mut copy = tx.copy_in("notes", &["text"]).await.unwrap();
        for text in ["canary", "canary"] {
            copy.row(&(text,)).await.unwrap();
        }
        copy.finish().await.unwrap();
        tx.commit().await.unwrap();
    }
    .with_subscriber(subscriber)
    .await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line = |parts: &[&str]| {
        let found = text
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?} is not in\n{text}");
    };
    line(&[
        "db.operation.name=\"INSERT\"",
        "db.collection.name=\"notes\"",
        "insert into notes values ($1)",
        "close",
    ]);
    line(&["select text from notes", "db.response.returned_rows=1"]);
    line(&["WARN", "slow statement", "select pg_sleep($1)"]);
    line(&[
        "COPY \\\"notes\\\" ",
        "db.response.returned_rows=2",
        "close",
    ]);
    assert!(!text.contains("canary"), "{text}");
}

/// The text of the statement that asks for it, as the server has it.
pub(crate) const OWN_TEXT: &str = "select query from pg_stat_activity where pid = pg_backend_pid()";
pub(crate) const TAGS: &str = "/*service='orders',version='0.0.0'*/";

#[tokio::test]
async fn a_service_that_wants_it_is_named_in_every_statement_and_each_is_prepared_once() {
    let (sandbox, plain) = crate::tenants::tenants(&[]).await;
    let own: String = sqlx::query_scalar(OWN_TEXT)
        .fetch_one(&plain)
        .await
        .unwrap();
    assert_eq!(own, OWN_TEXT, "a comment that nobody asked for");

    let settings = [("STATEMENT_TAGS", "service"), ("POOL_MAX", "1")];
    let db = Db::builder(config(&sandbox, &settings))
        .tenants(maestro_db::TenantModel::Rows)
        .connect()
        .await
        .unwrap();
    let own = || sqlx::query_scalar::<_, String>(OWN_TEXT);
    let tagged = format!("{OWN_TEXT} {TAGS}");
    let acme = db.tenant(maestro_db::TenantId::parse("acme").unwrap());
    for _ in 0..10 {
        assert_eq!(own().fetch_one(&db).await.unwrap(), tagged);
        assert_eq!(own().fetch_one(&db.read()).await.unwrap(), tagged);
        assert_eq!(own().fetch_one(&acme).await.unwrap(), tagged);
        let mut rows = own().fetch(&db);
        assert_eq!(rows.try_next().await.unwrap().unwrap(), tagged);
        assert!(rows.try_next().await.unwrap().is_none());
        drop(rows);
        let mut tx = db.begin().await.unwrap();
        assert_eq!(own().fetch_one(&mut tx).await.unwrap(), tagged);
        tx.commit().await.unwrap();
    }
    let prepared: Vec<String> = sqlx::query_scalar(
        "select statement from pg_prepared_statements where statement like '%pg_stat_activity%'",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let (own, itself): (Vec<_>, Vec<_>) =
        prepared.iter().partition(|text| text.starts_with(OWN_TEXT));
    assert_eq!(own, [&tagged]);
    assert_eq!(itself.len(), 1, "{itself:?}");
    // Several statements in one text, and one that ends in a comment.
    let row = sqlx::raw_sql(
        "select 1; select query from pg_stat_activity where pid = pg_backend_pid() -- me",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let text: String = sqlx::Row::get(&row[1], 0);
    assert!(text.ends_with(&format!("-- me\n{TAGS}")), "{text}");
}

#[tokio::test]
async fn a_copy_that_fails_is_measured_with_its_reason_and_one_that_is_dropped_as_cancelled() {
    let sandbox = crate::support::sandbox().await;
    let registry = maestro_metrics::Registry::detached();
    let db = Db::builder(config(&sandbox, &[]))
        .registry(&registry)
        .connect()
        .await
        .unwrap();
    db.migrate(&crate::support::migrator(&[
        "create table notes (id int primary key)",
    ]))
    .await
    .unwrap();
    let mut tx = db.begin().await.unwrap();
    let mut copy = tx.copy_in("notes", &["id"]).await.unwrap();
    for id in [1, 1] {
        copy.row(&(id,)).await.unwrap();
    }
    copy.finish().await.unwrap_err();
    drop(tx);
    let mut tx = db.begin().await.unwrap();
    drop(tx.copy_in("notes", &["id"]).await.unwrap());
    drop(tx);
    let text = registry.text();
    for outcome in [
        "db_response_status_code=\"23505\",error_type=\"conflict\"",
        "db_response_status_code=\"\",error_type=\"cancelled\"",
    ] {
        let counted = text.lines().any(|line| {
            line.starts_with("db_client_operation_duration_seconds_count")
                && line.contains("db_operation_name=\"COPY\"")
                && line.contains(outcome)
                && line.ends_with(" 1")
        });
        assert!(counted, "{outcome} is not in\n{text}");
    }
}
