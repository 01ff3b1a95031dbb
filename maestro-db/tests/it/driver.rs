//! What sqlx's own PostgreSQL tests ask of its pool, asked of the executors of this crate: types,
//! streams, notifications, COPY.

use std::collections::HashMap;
use std::fmt::Debug;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use futures_util::{StreamExt as _, TryStreamExt as _};
use maestro_db::{Db, Event, TenantDb, TenantId, Transaction};
use sqlx::postgres::types::{Oid, PgInterval, PgRange};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::types::{Json, Uuid};
use sqlx::{AssertSqlSafe, Decode, Either, Encode, Executor as _, Row as _, Type};

use crate::support::{database, migrator};

/// Every way to run a statement.
struct Ways {
    db: Db,
    tenant: TenantDb,
    tx: Transaction,
}

impl Ways {
    async fn new() -> (maestro_testkit::Sandbox, Self) {
        let (sandbox, db) = crate::tenants::tenants(&[]).await;
        let tenant = db.tenant(TenantId::parse("acme").unwrap());
        let tx = db.begin().await.unwrap();
        (sandbox, Self { db, tenant, tx })
    }

    /// The value is the literal to the server, and the literal is the value to us; both ways twice, so
    /// that the second time finds its statement and its type known.
    async fn is<T>(&mut self, literal: &str, sql_type: &str, value: T)
    where
        T: Type<Postgres> + PartialEq + Debug + Clone + Send + Sync + Unpin + 'static,
        T: for<'q> Encode<'q, Postgres> + for<'r> Decode<'r, Postgres>,
    {
        let sql = format!(
            "select $1 is not distinct from ({literal})::{sql_type}, ({literal})::{sql_type}, $1"
        );
        let check = |row: PgRow, way: &str| {
            assert!(
                row.get::<bool, _>(0),
                "{way}: {value:?} is not {literal}::{sql_type}"
            );
            assert_eq!(row.get::<T, _>(1), value, "{way}");
            assert_eq!(row.get::<T, _>(2), value, "{way}");
        };
        for _ in 0..2 {
            let query = || sqlx::query(AssertSqlSafe(sql.clone())).bind(value.clone());
            check(query().fetch_one(&self.db).await.unwrap(), "db");
            check(query().fetch_one(&self.db.read()).await.unwrap(), "read");
            check(query().fetch_one(&self.tenant).await.unwrap(), "tenant");
            check(
                query().fetch_one(&mut self.tx).await.unwrap(),
                "transaction",
            );
            let mut rows = query().fetch(&self.db);
            check(rows.try_next().await.unwrap().unwrap(), "stream");
            assert!(rows.try_next().await.unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn every_type_goes_there_and_back_on_every_executor() {
    let (_sandbox, mut ways) = Ways::new().await;
    ways.is("true", "bool", true).await;
    ways.is("-32768", "int2", i16::MIN).await;
    ways.is("2147483647", "int4", i32::MAX).await;
    ways.is("(-9223372036854775808)", "int8", i64::MIN).await;
    ways.is("0.1", "float4", 0.1_f32).await;
    ways.is("'infinity'", "float8", f64::INFINITY).await;
    ways.is("(0.1::float8 + 0.2)", "float8", 0.1 + 0.2).await;
    ways.is(
        "'gr\u{fc}n \u{2603}'",
        "text",
        "gr\u{fc}n \u{2603}".to_owned(),
    )
    .await;
    ways.is("''", "varchar", String::new()).await;
    ways.is("'\\x00ff10'", "bytea", vec![0_u8, 255, 16]).await;
    ways.is("null", "int4", None::<i32>).await;
    ways.is("7", "oid", Oid(7)).await;
    let uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    ways.is("'12345678-9abc-def0-1234-56789abcdef0'", "uuid", uuid)
        .await;
    let day = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
    let time = NaiveTime::from_hms_micro_opt(23, 59, 59, 999_999).unwrap();
    ways.is("'2024-02-29'", "date", day).await;
    ways.is("'23:59:59.999999'", "time", time).await;
    ways.is(
        "'2024-02-29 23:59:59.999999'",
        "timestamp",
        NaiveDateTime::new(day, time),
    )
    .await;
    let moment: DateTime<Utc> = NaiveDateTime::new(day, time).and_utc();
    ways.is("'2024-03-01 00:59:59.999999+01'", "timestamptz", moment)
        .await;
    let interval = PgInterval {
        months: -13,
        days: 2,
        microseconds: 3_000_001,
    };
    ways.is(
        "'-1 year -1 mon 2 days 00:00:03.000001'",
        "interval",
        interval,
    )
    .await;
    let json = Json(HashMap::from([("a".to_owned(), vec![1, 2])]));
    ways.is("'{\"a\": [1, 2]}'", "jsonb", json).await;
    ways.is("'{1,-2}'", "int8[]", vec![1_i64, -2]).await;
    ways.is(
        "'{a,NULL,\"b,c\"}'",
        "text[]",
        vec![Some("a".to_owned()), None, Some("b,c".to_owned())],
    )
    .await;
    ways.is("'{}'", "uuid[]", Vec::<Uuid>::new()).await;
    ways.is("'[1,5)'", "int4range", PgRange::from(1..5)).await;
    ways.tx.commit().await.unwrap();
}

#[derive(Clone, Copy, Debug, PartialEq, Type)]
#[sqlx(type_name = "mood", rename_all = "lowercase")]
enum Mood {
    Glad,
    Sad,
}

#[derive(Clone, Debug, PartialEq, Type)]
#[sqlx(type_name = "place")]
struct Place {
    name: String,
    number: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Type)]
#[sqlx(transparent)]
struct Number(i64);

#[tokio::test]
async fn types_of_the_service_are_found_on_whichever_connection() {
    let (sandbox, mut ways) = Ways::new().await;
    let types = "create type mood as enum ('glad', 'sad'); create type place as (name text, number int4); \
                 create domain positive as int8 check (value > 0)";
    let db = Db::connect(crate::support::config(&sandbox, &[]))
        .await
        .unwrap();
    db.migrate(&migrator(&[crate::tenants::ORDERS, types]))
        .await
        .unwrap();
    ways.is("'sad'", "mood", Mood::Sad).await;
    ways.is("'{glad,sad}'", "mood[]", vec![Mood::Glad, Mood::Sad])
        .await;
    let place = Place {
        name: "home, \"sweet\"".to_owned(),
        number: None,
    };
    ways.is("row('home, \"sweet\"', null)", "place", place)
        .await;
    ways.is("7", "int8", Number(7)).await;
    let refused = sqlx::query("select ($1::int8)::positive")
        .bind(-1_i64)
        .execute(&ways.db)
        .await;
    assert_eq!(
        refused
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .code()
            .as_deref(),
        Some("23514")
    );
    ways.tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_text_of_several_statements_gives_the_results_of_each_in_order() {
    let it = database("create table notes (id int)", &[("POOL_MAX", "1")]).await;
    let text =
        "insert into notes values (1), (2); select id from notes order by id; delete from notes";
    let results: Vec<_> = sqlx::raw_sql(text)
        .fetch_many(&it.db)
        .try_collect()
        .await
        .unwrap();
    let shown: Vec<_> = results
        .iter()
        .map(|result| match result {
            Either::Left(done) => format!("{} affected", done.rows_affected()),
            Either::Right(row) => format!("row {}", row.get::<i32, _>(0)),
        })
        .collect();
    assert_eq!(
        shown,
        ["2 affected", "row 1", "row 2", "2 affected", "2 affected"]
    );
}

#[tokio::test]
async fn streams_end_with_their_error_and_their_connection_is_used_again() {
    let it = database("", &[("POOL_MAX", "1")]).await;
    let pid = "select pg_backend_pid()";
    let before: i32 = sqlx::query_scalar(pid).fetch_one(&it.db).await.unwrap();
    let results: Vec<_> =
        sqlx::query_scalar::<_, i32>("select 10 / (5 - n) from generate_series(1, 9) n")
            .fetch(&it.db)
            .collect()
            .await;
    let (last, rows) = results.split_last().unwrap();
    assert_eq!(
        rows.iter()
            .map(|row| *row.as_ref().unwrap())
            .collect::<Vec<_>>(),
        [2, 3, 5, 10]
    );
    assert_eq!(
        last.as_ref()
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .code()
            .as_deref(),
        Some("22012")
    );
    let after: i32 = sqlx::query_scalar(pid).fetch_one(&it.db).await.unwrap();
    assert_eq!(before, after);
    // Two streams at once take two connections, and one has to wait for the other.
    let wide = database("", &[("POOL_MAX", "2")]).await;
    let numbers = "select n from generate_series(1, 1000) n";
    let mut one = sqlx::query_scalar::<_, i32>(numbers).fetch(&wide.db);
    let mut other = sqlx::query_scalar::<_, i32>(numbers).fetch(&wide.db);
    for n in 1..=1000 {
        assert_eq!(
            (
                one.try_next().await.unwrap(),
                other.try_next().await.unwrap()
            ),
            (Some(n), Some(n))
        );
    }
    // A stream that is not asked for anything sends nothing.
    drop(sqlx::query("select 1 / 0").fetch(&wide.db));
}

#[tokio::test]
async fn a_prepared_statement_describes_itself_and_runs_anywhere() {
    let it = database("create table notes (id int not null, text text)", &[]).await;
    let description = (&it.db)
        .describe(sqlx::SqlSafeStr::into_sql_str(
            "select id, text from notes where id = $1",
        ))
        .await
        .unwrap();
    assert_eq!(
        (
            description.columns().len(),
            description.nullable(0),
            description.nullable(1)
        ),
        (2, Some(false), Some(true))
    );
    let statement = (&it.db)
        .prepare(sqlx::SqlSafeStr::into_sql_str("select $1::int4 + 1"))
        .await
        .unwrap();
    let mut tx = it.db.begin().await.unwrap();
    for n in 0..3 {
        let query = || sqlx::Statement::query_scalar::<i32>(&statement).bind(n);
        assert_eq!(query().fetch_one(&it.db).await.unwrap(), n + 1);
        assert_eq!(query().fetch_one(&mut tx).await.unwrap(), n + 1);
    }
}

#[tokio::test]
async fn notifications_come_in_order_from_several_channels_and_not_from_what_was_rolled_back() {
    let it = database("", &[]).await;
    let mut listener = it.db.listen(&["one", "two Words"]).await.unwrap();
    let notify = "select pg_notify($1, $2)";
    let mut undone = it.db.begin().await.unwrap();
    sqlx::query(notify)
        .bind("one")
        .bind("undone")
        .execute(&mut undone)
        .await
        .unwrap();
    undone.rollback().await.unwrap();
    let long = "x".repeat(7_999);
    let sent = [
        ("one", "a"),
        ("two Words", ""),
        ("one", long.as_str()),
        ("two Words", "\u{2603}"),
    ];
    for (channel, payload) in sent {
        sqlx::query(notify)
            .bind(channel)
            .bind(payload)
            .execute(&it.db)
            .await
            .unwrap();
    }
    for (channel, payload) in sent {
        let event = tokio::time::timeout(std::time::Duration::from_secs(30), listener.next()).await;
        let Some(Event::Notification(news)) = event.unwrap() else {
            panic!("something else than a notification");
        };
        assert_eq!(
            (news.channel.as_str(), news.payload.as_str()),
            (channel, payload)
        );
    }
}

#[tokio::test]
async fn rows_are_copied_out_on_the_transactions_own_connection() {
    let it = database(
        "create table notes (id int, text text)",
        &[("POOL_MAX", "1")],
    )
    .await;
    let mut tx = it.db.begin().await.unwrap();
    let mut copy = tx.copy_in("notes", &["id", "text"]).await.unwrap();
    for id in 0..3 {
        copy.row(&(id, (id != 1).then_some("text"))).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 3);
    let raw = tx.connection().unwrap();
    let portions: Vec<_> = raw
        .copy_out_raw("copy notes to stdout")
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8(portions.concat()).unwrap(),
        "0\ttext\n1\t\\N\n2\ttext\n"
    );
    tx.commit().await.unwrap();
    assert_eq!(
        crate::support::count(&it.db, "select count(*) from notes").await,
        3
    );
}
