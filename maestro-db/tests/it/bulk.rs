//! Many rows at once.

use maestro_db::{BulkInsert, ErrorKind};

use crate::support::{count, database};

const READINGS: &str =
    "create table readings (id bigint primary key, sensor text, value double precision not null)";

#[tokio::test]
async fn arrays_become_rows_on_the_pool_and_in_transactions() {
    let it = database(READINGS, &[]).await;
    let portion = |from: i64| {
        let ids: Vec<i64> = (from..from + 1_000).collect();
        let sensors: Vec<Option<String>> = ids
            .iter()
            .map(|id| (id % 2 == 0).then(|| format!("s'{id}")))
            .collect();
        let values: Vec<f64> = ids.iter().map(|id| *id as f64 / 2.0).collect();
        BulkInsert::into("public.readings")
            .column("id", ids)
            .column("sensor", sensors)
            .column("value", values)
    };
    assert_eq!(portion(0).execute(&it.db).await.unwrap(), 1_000);
    let mut tx = it.db.begin().await.unwrap();
    assert_eq!(portion(1_000).execute(&mut tx).await.unwrap(), 1_000);
    tx.commit().await.unwrap();
    assert_eq!(
        count(&it.db, "select count(*) from readings where sensor is null").await,
        1_000
    );
    assert_eq!(count(&it.db, "select count(*) from readings where value = id / 2.0 and (sensor is null or sensor = 's''' || id)").await, 2_000);

    let twice = portion(0).execute(&it.db).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    let again = portion(1_500)
        .on_conflict("(id) do nothing")
        .execute(&it.db)
        .await
        .unwrap();
    assert_eq!(again, 500);
}

#[tokio::test]
async fn columns_of_different_length_are_refused_and_no_rows_are_no_statement() {
    let it = database(READINGS, &[]).await;
    let uneven = BulkInsert::into("readings")
        .column("id", vec![1_i64, 2])
        .column("value", vec![1.0]);
    let error = uneven.execute(&it.db).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.to_string().contains("`value`"), "{error}");
    let none = BulkInsert::into("nowhere").column("id", Vec::<i64>::new());
    assert_eq!(none.execute(&it.db).await.unwrap(), 0);
}

#[tokio::test]
async fn copied_rows_are_stored_by_the_commit() {
    let it = database(READINGS, &[("POOL_MAX", "1")]).await;
    let mut tx = it.db.begin().await.unwrap();
    let mut copy = tx
        .copy_in("readings", &["id", "sensor", "value"])
        .await
        .unwrap();
    for id in 0..20_000_i64 {
        copy.row(&(id, (id % 2 == 0).then_some("even"), id as f64))
            .await
            .unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), 20_000);
    // The transaction goes on.
    let inside: i64 = sqlx::query_scalar("select count(sensor) from readings")
        .fetch_one(&mut tx)
        .await
        .unwrap();
    assert_eq!(inside, 10_000);
    tx.commit().await.unwrap();
    assert_eq!(
        count(&it.db, "select count(*) from readings where value = id").await,
        20_000
    );
}

#[tokio::test]
async fn a_copy_that_fails_or_is_dropped_stores_nothing() {
    let it = database(READINGS, &[("POOL_MAX", "2")]).await;
    let mut tx = it.db.begin().await.unwrap();
    let mut copy = tx.copy_in("readings", &["id", "value"]).await.unwrap();
    copy.row(&(1_i64, 1.0)).await.unwrap();
    copy.row(&(1_i64, 2.0)).await.unwrap();
    assert_eq!(copy.finish().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(tx.commit().await.unwrap_err().kind(), ErrorKind::Aborted);

    let mut tx = it.db.begin().await.unwrap();
    let mut copy = tx.copy_in("readings", &["id", "value"]).await.unwrap();
    for id in 0..10_000_i64 {
        copy.row(&(id, 1.0)).await.unwrap();
    }
    drop(copy);
    assert_eq!(tx.commit().await.unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(count(&it.db, "select count(*) from readings").await, 0);
}

#[tokio::test]
async fn a_copy_of_other_types_than_the_columns_is_refused() {
    let it = database(READINGS, &[]).await;
    let mut tx = it.db.begin().await.unwrap();
    let mut copy = tx.copy_in("readings", &["id", "value"]).await.unwrap();
    // Eight bytes each, and something else.
    let error = copy.row(&(1.0_f64, 1_i64)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    drop(copy);
    drop(tx);
    let mut tx = it.db.begin().await.unwrap();
    let missing = tx.copy_in("readings", &["nothing"]).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Rejected);
}

#[tokio::test]
async fn a_tenants_table_takes_arrays_and_refuses_a_copy() {
    let (_sandbox, db) = crate::tenants::tenants(&[]).await;
    let acme = db.tenant(maestro_db::TenantId::parse("acme").unwrap());
    let texts = vec!["a", "b", "c"];
    assert_eq!(
        BulkInsert::into("orders")
            .column("text", texts)
            .execute(&acme)
            .await
            .unwrap(),
        3
    );
    let mut tx = acme.begin().await.unwrap();
    let refused = tx.copy_in("orders", &["text"]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Rejected);
    assert!(
        refused.to_string().contains("row-level security"),
        "{refused}"
    );
}
