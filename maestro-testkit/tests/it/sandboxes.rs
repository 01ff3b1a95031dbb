use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt};
use maestro_testkit::{Origin, Sandbox, Stack};
use tokio_postgres::error::SqlState;

use crate::clients::{declare, drain, postgres, publish, rabbitmq, redis, variable, with_path};

#[tokio::test]
async fn fifty_sandboxes_made_at_once_all_work_and_none_sees_another() {
    let stack = Stack::start().await.unwrap();
    let sandboxes = try_join_all((0..50).map(|_| stack.sandbox("orders")))
        .await
        .unwrap();
    // The same names everywhere: whoever reached another sandbox would see its content. A given
    // PostgreSQL may allow a hundred connections only, and other tests have theirs.
    futures_util::stream::iter(sandboxes.iter().map(use_everything))
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
        .unwrap();
    for sandbox in &sandboxes {
        sees_only_its_own(sandbox).await.unwrap();
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn use_everything(sandbox: &Sandbox) -> Result<(), Failure> {
    let id = sandbox.id();
    let migrator = postgres(&variable(sandbox, "MAESTRO_POSTGRES_MIGRATION_URL")).await?;
    migrator
        .batch_execute("CREATE TABLE orders (sandbox text PRIMARY KEY)")
        .await?;
    let service = postgres(&variable(sandbox, "MAESTRO_POSTGRES_URL")).await?;
    service
        .execute("INSERT INTO orders VALUES ($1)", &[&id])
        .await?;

    let mut cache = redis(&variable(sandbox, "MAESTRO_CACHE_URL")).await?;
    let key = format!("{}e:order", variable(sandbox, "MAESTRO_CACHE_PREFIX"));
    redis::cmd("SET")
        .arg(&key)
        .arg(id)
        .exec_async(&mut cache)
        .await?;

    let channel = rabbitmq(&variable(sandbox, "MAESTRO_MESSAGING_URL")).await?;
    declare(&channel, "orders", "orders.audit").await?;
    publish(&channel, "orders.events", id.as_bytes()).await?;
    Ok(())
}

async fn sees_only_its_own(sandbox: &Sandbox) -> Result<(), Failure> {
    let id = sandbox.id();
    let service = postgres(&variable(sandbox, "MAESTRO_POSTGRES_URL")).await?;
    let rows = service.query("SELECT sandbox FROM orders", &[]).await?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, [id]);

    let mut cache = redis(&variable(sandbox, "MAESTRO_CACHE_URL")).await?;
    let key = format!("{}e:order", variable(sandbox, "MAESTRO_CACHE_PREFIX"));
    let found: String = redis::cmd("GET").arg(&key).query_async(&mut cache).await?;
    assert_eq!(found, id);

    let channel = rabbitmq(&variable(sandbox, "MAESTRO_MESSAGING_URL")).await?;
    let found = drain(&channel, "orders.audit").await?;
    assert_eq!(found, [id.as_bytes()]);
    Ok(())
}

#[tokio::test]
async fn postgres_refuses_a_sandbox_every_database_but_its_own() {
    let stack = Stack::start().await.unwrap();
    let a = stack.sandbox("orders").await.unwrap();
    let b = stack.sandbox("orders").await.unwrap();
    let mut databases = vec![b.resources().database()];
    // Nobody closes the common databases of a server that is somebody else's.
    let ours = stack.postgres().unwrap().origin() != Origin::Explicit;
    if ours {
        databases.extend(["postgres", "template1"]);
    }
    for name in ["MAESTRO_POSTGRES_URL", "MAESTRO_POSTGRES_MIGRATION_URL"] {
        let url = variable(&a, name);
        assert!(postgres(&url).await.is_ok());
        for database in &databases {
            let error = postgres(&with_path(&url, database)).await.err();
            let code = error.and_then(|e| e.code().cloned());
            assert_eq!(
                code,
                Some(SqlState::INSUFFICIENT_PRIVILEGE),
                "{name} on {database}"
            );
        }
        let wrong = url.replace(a.resources().passwords().postgres.expose(), "wrong");
        let wrong = wrong.replace(a.resources().passwords().migrator.expose(), "wrong");
        if !ours {
            // It may trust everybody who comes from here.
            continue;
        }
        let code = postgres(&wrong).await.err().and_then(|e| e.code().cloned());
        assert_eq!(code, Some(SqlState::INVALID_PASSWORD), "{name}");
    }
}

#[tokio::test]
async fn postgres_lets_the_service_write_rows_and_only_the_migrator_make_tables() {
    let stack = Stack::start().await.unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let service = postgres(&variable(&sandbox, "MAESTRO_POSTGRES_URL"))
        .await
        .unwrap();
    let error = service.batch_execute("CREATE TABLE t (id int)").await;
    let code = error.unwrap_err().code().cloned();
    assert_eq!(code, Some(SqlState::INSUFFICIENT_PRIVILEGE));
    let migrator = postgres(&variable(&sandbox, "MAESTRO_POSTGRES_MIGRATION_URL"))
        .await
        .unwrap();
    migrator
        .batch_execute("CREATE TABLE t (id int)")
        .await
        .unwrap();
    service
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .unwrap();
}

#[tokio::test]
async fn redis_refuses_a_sandbox_foreign_keys_and_channels_and_everything_server_wide() {
    let stack = Stack::start().await.unwrap();
    let a = stack.sandbox("orders").await.unwrap();
    let b = stack.sandbox("orders").await.unwrap();
    let url = variable(&a, "MAESTRO_CACHE_URL");
    let foreign = format!("{}e:order", b.resources().prefix());
    let mut cache = redis(&url).await.unwrap();
    for command in [
        ["GET", &foreign].as_slice(),
        &["SET", &foreign, "x"],
        &["DEL", &foreign],
        &["PUBLISH", &foreign, "x"],
        &["EVAL", "return redis.call('GET', KEYS[1])", "1", &foreign],
        &["SCAN", "0"],
        &["KEYS", "*"],
        &["FLUSHDB"],
        &["INFO"],
        &["CONFIG", "GET", "*"],
        &["ACL", "LIST"],
    ] {
        let mut refused = redis::cmd(command[0]);
        for argument in &command[1..] {
            refused.arg(argument);
        }
        let error = refused.exec_async(&mut cache).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{command:?}: {error}");
    }
    let mut subscriber = redis::Client::open(url.as_str())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap();
    let error = subscriber.subscribe(&foreign).await.unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"), "{error}");
    let own = format!("{}news", a.resources().prefix());
    subscriber.subscribe(&own).await.unwrap();
}

#[tokio::test]
async fn rabbitmq_refuses_a_sandbox_the_vhost_of_another_and_the_default_one() {
    let stack = Stack::start().await.unwrap();
    let a = stack.sandbox("orders").await.unwrap();
    let b = stack.sandbox("orders").await.unwrap();
    let url = variable(&a, "MAESTRO_MESSAGING_URL");
    assert!(rabbitmq(&url).await.is_ok());
    for vhost in [b.resources().vhost(), "%2F"] {
        let refused = rabbitmq(&with_path(&url, vhost)).await;
        let error = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            error.contains("NOT_ALLOWED") || error.contains("refused"),
            "{vhost}: {error:?}"
        );
    }
}

#[tokio::test]
async fn neighbours_hear_each_others_events_and_cannot_touch_each_others_queues() {
    let stack = Stack::start().await.unwrap();
    let orders = stack.sandbox("orders").await.unwrap();
    let billing = orders.neighbour("billing").await.unwrap();
    assert_eq!(orders.resources().vhost(), billing.resources().vhost());
    let orders_url = variable(&orders, "MAESTRO_MESSAGING_URL");
    let billing_url = variable(&billing, "MAESTRO_MESSAGING_URL");
    let publisher = rabbitmq(&orders_url).await.unwrap();
    declare(&publisher, "orders", "orders.audit").await.unwrap();
    let consumer = rabbitmq(&billing_url).await.unwrap();
    declare(&consumer, "billing", "billing.orders")
        .await
        .unwrap();
    consumer
        .queue_bind(
            "billing.orders".into(),
            "orders.events".into(),
            "#".into(),
            lapin::options::QueueBindOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await
        .unwrap();
    publish(&publisher, "orders.events", b"placed")
        .await
        .unwrap();
    assert_eq!(
        drain(&consumer, "billing.orders").await.unwrap(),
        [b"placed"]
    );

    // A refusal closes the channel: one each.
    let read = drain(&rabbitmq(&orders_url).await.unwrap(), "billing.orders").await;
    assert_access_refused(read);
    let write = publish(
        &rabbitmq(&orders_url).await.unwrap(),
        "billing.events",
        b"x",
    )
    .await;
    assert_access_refused(write);
    // The way around by the default exchange.
    let around = rabbitmq(&orders_url).await.unwrap();
    assert_access_refused(publish(&around, "", b"x").await);
    let configure = rabbitmq(&orders_url).await.unwrap();
    assert_access_refused(declare(&configure, "billing", "billing.orders").await);
    drop(orders);
    // The vhost stays while one of them is left.
    assert!(rabbitmq(&billing_url).await.is_ok());
}

fn assert_access_refused<T: std::fmt::Debug>(result: lapin::Result<T>) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains("ACCESS_REFUSED"), "{error}");
}

#[tokio::test]
async fn a_closed_sandbox_leaves_nothing_on_the_servers() {
    let stack = Stack::start().await.unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    use_everything(&sandbox).await.unwrap();
    let id = format!("%_t{}%", sandbox.id());
    let prefix = sandbox.resources().prefix().to_owned();
    let cache = variable(&sandbox, "MAESTRO_CACHE_URL");
    let number = url::Url::parse(&cache).unwrap().path().to_owned();
    sandbox.close().await.unwrap();

    let admin = postgres(stack.postgres().unwrap().admin_url().expose())
        .await
        .unwrap();
    let left = "SELECT count(*) FROM (SELECT datname FROM pg_database UNION SELECT rolname FROM \
                pg_roles) AS names (name) WHERE name LIKE $1";
    let left: i64 = admin.query_one(left, &[&id]).await.unwrap().get(0);
    assert_eq!(left, 0);

    let url = with_path(stack.redis().unwrap().admin_url().expose(), &number);
    let mut admin = redis(&url).await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}*"))
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(keys, [""; 0]);
    assert!(redis(&cache).await.is_err());
}

#[test]
fn a_sandbox_can_be_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sandbox = runtime
        .block_on(async { Stack::start().await?.sandbox("orders").await })
        .unwrap();
    drop(runtime);
    drop(sandbox);
}
