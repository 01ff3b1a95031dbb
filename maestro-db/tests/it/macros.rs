//! sqlx's checked macros in a crate that uses this one.
//!
//! Their descriptions of the queries are in `.sqlx`, so no database is needed to compile them. To
//! write them anew: `DATABASE_URL=… SQLX_OFFLINE_DIR=maestro-db/.sqlx cargo check --tests`.

use futures_util::TryStreamExt as _;

use crate::support::database;

struct Number {
    n: i32,
    text: Option<String>,
}

#[tokio::test]
async fn checked_macros_compile_and_run_on_the_pool_and_in_transactions() {
    let it = database("", &[]).await;
    let rows = sqlx::query!(
        r#"select n as "n!", 'number ' || n as text from generate_series(1, $1::int) n"#,
        3
    )
    .fetch_all(&it.db)
    .await
    .unwrap();
    let numbers: Vec<_> = rows.iter().map(|row| row.n).collect();
    assert_eq!(numbers, [1, 2, 3]);

    let mut tx = it.db.begin().await.unwrap();
    let all: Vec<Number> = sqlx::query_as!(
        Number,
        r#"select n as "n!", 'number ' || n as text from generate_series(1, $1::int) n"#,
        2
    )
    .fetch(&mut tx)
    .try_collect()
    .await
    .unwrap();
    assert_eq!(all[1].n, 2);
    assert_eq!(all[1].text.as_deref(), Some("number 2"));
    let sum = sqlx::query_scalar!(
        r#"select sum(n) as "sum!" from generate_series(1, $1::int) n"#,
        4
    )
    .fetch_one(&mut tx)
    .await
    .unwrap();
    assert_eq!(sum, 10);
    tx.commit().await.unwrap();
}
