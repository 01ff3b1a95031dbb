//! `&Db` as an executor.

use futures_util::TryStreamExt as _;
use maestro_db::{Error, ErrorKind};
use sqlx::{Column as _, Executor as _, Row as _, Statement as _};

use crate::support::{count, database, migrator};

const NOTES: &str = "create table notes (id bigint generated always as identity primary key, text text not null unique)";

#[tokio::test]
async fn rows_are_written_and_read_back() {
    let it = database(NOTES, &[]).await;
    let done = sqlx::query("insert into notes (text) values ($1), ($2)")
        .bind("one")
        .bind("two")
        .execute(&it.db)
        .await
        .unwrap();
    assert_eq!(done.rows_affected(), 2);
    let texts: Vec<(String,)> = sqlx::query_as("select text from notes order by id")
        .fetch_all(&it.db)
        .await
        .unwrap();
    assert_eq!(texts, [("one".to_owned(),), ("two".to_owned(),)]);
    let none = sqlx::query("select 1 from notes where id = -1")
        .fetch_optional(&it.db)
        .await;
    assert!(none.unwrap().is_none());
    let missing = sqlx::query("select 1 from notes where id = -1")
        .fetch_one(&it.db)
        .await;
    assert_eq!(
        Error::from(missing.unwrap_err()).kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_stream_gives_every_row_and_its_connection_back() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let mut rows = sqlx::query("select n from generate_series(1, 10000) n").fetch(&it.db);
    let mut sum = 0_i64;
    while let Some(row) = rows.try_next().await.unwrap() {
        sum += i64::from(row.get::<i32, _>(0));
    }
    assert_eq!(sum, 50_005_000);
    drop(rows);
    assert_eq!(count(&it.db, "select 1::bigint").await, 1);
    assert_eq!(it.db.pool_report().total(), 1);
}

#[tokio::test]
async fn several_statements_in_one_text_run_as_one_transaction() {
    let it = database(NOTES, &[]).await;
    let failed = sqlx::raw_sql("insert into notes (text) values ('a'); select 1/0")
        .execute(&it.db)
        .await;
    assert!(failed.is_err());
    assert_eq!(count(&it.db, "select count(*) from notes").await, 0);
    sqlx::raw_sql("insert into notes (text) values ('a'); insert into notes (text) values ('b')")
        .execute(&it.db)
        .await
        .unwrap();
    assert_eq!(count(&it.db, "select count(*) from notes").await, 2);
}

#[tokio::test]
async fn a_statement_can_be_prepared_and_described() {
    let it = database(NOTES, &[]).await;
    let statement = (&it.db)
        .prepare(sqlx::SqlSafeStr::into_sql_str(
            "select id, text from notes where id = $1",
        ))
        .await
        .unwrap();
    let names: Vec<_> = statement
        .columns()
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    assert_eq!(names, ["id", "text"]);
    let rows = statement
        .query()
        .bind(1_i64)
        .fetch_all(&it.db)
        .await
        .unwrap();
    assert!(rows.is_empty());
}

#[tokio::test]
async fn statements_that_would_leak_into_the_next_user_are_refused_before_they_are_sent() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    for sql in [
        "begin",
        "set search_path = elsewhere",
        "set local search_path = elsewhere",
        "select set_config('search_path', 'elsewhere', false)",
        "select pg_advisory_lock(1)",
        "listen news",
    ] {
        let refused = Error::from(sqlx::query(sql).execute(&it.db).await.unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::Rejected, "{sql}: {refused}");
        assert!(refused.to_string().contains(sql), "{sql}: {refused}");
        let refused = sqlx::raw_sql(sql).execute(&it.db).await.unwrap_err();
        assert_eq!(Error::from(refused).kind(), ErrorKind::Rejected, "{sql}");
    }
    // Nothing was sent, so nothing was opened again either.
    assert_eq!(
        count(
            &it.db,
            "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"
        )
        .await,
        0
    );
}

#[tokio::test]
async fn a_failed_statement_says_what_the_caller_does_next_and_keeps_its_connection() {
    let it = database(NOTES, &[("POOL_MAX", "1")]).await;
    let pid = count(&it.db, "select pg_backend_pid()::bigint").await;
    sqlx::query("insert into notes (text) values ('a')")
        .execute(&it.db)
        .await
        .unwrap();

    let twice = sqlx::query("insert into notes (text) values ('a')")
        .execute(&it.db)
        .await;
    let twice = Error::from(twice.unwrap_err());
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    assert_eq!(twice.constraint(), Some("notes_text_key"));
    assert_eq!(twice.sqlstate().as_deref(), Some("23505"));

    let wrong = sqlx::query("select nonsense")
        .execute(&it.db)
        .await
        .unwrap_err();
    assert_eq!(Error::from(wrong).kind(), ErrorKind::Rejected);
    let ddl = sqlx::query("create table mine (id int)")
        .execute(&it.db)
        .await
        .unwrap_err();
    assert_eq!(Error::from(ddl).sqlstate().as_deref(), Some("42501"));
    let codec = sqlx::query_scalar::<_, i64>("select 'text'")
        .fetch_one(&it.db)
        .await
        .unwrap_err();
    assert_eq!(Error::from(codec).kind(), ErrorKind::Codec);

    assert_eq!(count(&it.db, "select pg_backend_pid()::bigint").await, pid);
}

#[tokio::test]
async fn a_plan_that_a_migration_made_stale_is_made_anew_without_an_error() {
    let it = database(
        "create table wide (id int); insert into wide values (1)",
        &[("POOL_MAX", "1")],
    )
    .await;
    // A second pool, whose connection learns nothing of the migration.
    let other = maestro_db::Db::connect(it.db.config().clone())
        .await
        .unwrap();
    let columns = async |db: &maestro_db::Db| {
        sqlx::query("select * from wide")
            .fetch_one(db)
            .await
            .map(|row| row.columns().len())
    };
    assert_eq!(columns(&other).await.unwrap(), 1);
    let both = migrator(&[
        "create table wide (id int); insert into wide values (1)",
        "alter table wide add column more text",
    ]);
    it.db.migrate(&both).await.unwrap();
    assert_eq!(columns(&other).await.unwrap(), 2);

    // In a transaction the whole is run again.
    let mut tx = other.begin().await.unwrap();
    sqlx::query("select * from wide")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let three = migrator(&[
        "create table wide (id int); insert into wide values (1)",
        "alter table wide add column more text",
        "alter table wide add column most text",
    ]);
    it.db.migrate(&three).await.unwrap();
    let columns = other
        .retry(|| async {
            let mut tx = other.begin().await?;
            let row = sqlx::query("select * from wide").fetch_one(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, Error>(row.columns().len())
        })
        .await;
    assert_eq!(columns.unwrap(), 3);
}

#[tokio::test]
async fn a_session_says_who_it_is_and_has_the_limits_of_its_settings() {
    let it = database("", &[("STATEMENT_TIMEOUT", "7s"), ("LOCK_TIMEOUT", "3s")]).await;
    let settings: Vec<(String,)> = sqlx::query_as(
        "select current_setting(name) from unnest(array['application_name', 'statement_timeout', \
         'lock_timeout', 'idle_in_transaction_session_timeout', 'client_connection_check_interval']) name",
    )
    .fetch_all(&it.db)
    .await
    .unwrap();
    let settings: Vec<_> = settings.iter().map(|(value,)| value.as_str()).collect();
    let instance = format!("orders/0.0.0/t{}", it.sandbox.id());
    assert_eq!(settings, [instance.as_str(), "7s", "3s", "1min", "1s"]);
}
