//! What a statement tells operators, and what it keeps to itself.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::instrument::WithSubscriber as _;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::database;

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
    assert!(!text.contains("canary"), "{text}");
}
