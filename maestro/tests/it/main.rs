//! A service booted in this process, on real servers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "what a test expects is its message when it fails"
)]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use maestro::cache::Cache;
use maestro::db::Db;
use maestro::messaging::Messaging;
use maestro::{DrainReport, Error, ErrorKind, Problem, Service};
use maestro_config::Environment;
use maestro_testkit::{Sandbox, Stack};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest wait for anything, on a busy machine.
const SOON: Duration = Duration::from_mins(1);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);

type Full = Service<Db, Cache, Messaging>;

async fn sandbox() -> Sandbox {
    Stack::start()
        .await
        .expect("servers")
        .sandbox("orders")
        .await
        .expect("a sandbox")
}

fn environment(sandbox: &Sandbox, extra: &[(&str, &str)]) -> Environment {
    let mut pairs = sandbox.environment();
    pairs.extend(
        extra
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    Environment::from_pairs(pairs)
}

/// A service that runs in a task.
struct Running {
    service: Full,
    address: SocketAddr,
    task: JoinHandle<Result<DrainReport, Error>>,
}

async fn run(service: Full, app: Router) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(service.clone().serve_on(listener, app));
    Running {
        service,
        address,
        task,
    }
}

impl Running {
    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.address))
            .await
            .expect("an answer");
        (answer.status(), answer.text().await.expect("a body"))
    }

    async fn until(&self, path: &str, status: StatusCode) -> String {
        let looking = async {
            loop {
                let (found, body) = self.get(path).await;
                if found == status {
                    return body;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(SOON, looking)
            .await
            .unwrap_or_else(|_| panic!("{path} never answered {status}"))
    }

    async fn stop(self) -> Result<DrainReport, Error> {
        self.service.stop();
        tokio::time::timeout(SOON, self.task)
            .await
            .expect("it stops")
            .expect("it does not panic")
    }
}

fn app(db: Db) -> Router {
    let now = move || async move {
        let now: String = sqlx::query_scalar("select now()::text")
            .fetch_one(&db)
            .await?;
        Ok::<_, Problem>(now)
    };
    Router::new()
        .route("/now", get(now))
        .route("/panic", get(async || -> String { panic!("a bug") }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_serves_its_routes_beside_health_and_metrics_and_stops_clean() {
    let sandbox = sandbox().await;
    let builder = Service::builder().environment(environment(&sandbox, &[]));
    let service = builder
        .db()
        .cache()
        .messaging()
        .start()
        .await
        .expect("it boots");
    let running = run(service.clone(), app(service.db().clone())).await;
    running.until("/health/ready", StatusCode::OK).await;

    assert_eq!(running.get("/now").await.0, StatusCode::OK);
    assert_eq!(
        running.get("/panic").await.0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(running.get("/nothing/here").await.0, StatusCode::NOT_FOUND);
    let healthy = async {
        loop {
            let body = running.get("/health").await.1;
            let health: Value = serde_json::from_str(&body).expect("JSON");
            // Broker and cache may be connecting still, and a check may time out on a busy machine.
            if health["status"] == "healthy" {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(SOON, healthy)
        .await
        .expect("everything is healthy in the end");
    let metrics = running.get("/metrics").await.1;
    for expected in [
        "http_server_request_duration_seconds_count{",
        "http_route=\"/now\"",
        "http_route=\"_unmatched\"",
        "db_client_operation_duration_seconds_count{",
        "service=\"orders\"",
        "maestro_build_info{",
    ] {
        assert!(metrics.contains(expected), "no {expected} in {metrics}");
    }
    let report = running.stop().await.expect("clean");
    let names: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"http"));
    assert_eq!(names.last(), Some(&"telemetry"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_its_database_is_live_not_ready_and_asks_callers_to_come_back() {
    let sandbox = sandbox().await;
    let environment = environment(&sandbox, &[]);
    sandbox.postgres_link().cut().await.expect("cut");
    let builder = Service::builder()
        .environment(environment)
        .db()
        .migrations(sqlx::migrate!("tests/migrations"));
    let service = builder
        .cache()
        .messaging()
        .start()
        .await
        .expect("it boots without its database");
    let running = run(service.clone(), app(service.db().clone())).await;
    running.until("/health/live", StatusCode::OK).await;
    assert_eq!(
        running.get("/health/ready").await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let (status, body) = running.get("/now").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("the service is starting"), "{body}");

    sandbox.postgres_link().restore().await.expect("restored");
    running.until("/now", StatusCode::OK).await;
    running.until("/health/ready", StatusCode::OK).await;
    let tables: i64 =
        sqlx::query_scalar("select count(*) from pg_tables where tablename = 'widgets'")
            .fetch_one(service.db())
            .await
            .expect("a count");
    assert_eq!(
        tables, 1,
        "the migration was applied before the first request"
    );
    running.stop().await.expect("clean");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_ends_the_service_with_the_reason() {
    let sandbox = sandbox().await;
    let builder = Service::builder()
        .environment(environment(&sandbox, &[]))
        .db();
    let builder = builder.migrations(sqlx::migrate!("tests/broken-migrations"));
    let service = builder.cache().messaging().start().await.expect("it boots");
    let running = run(service.clone(), app(service.db().clone())).await;
    let error = tokio::time::timeout(SOON, running.task)
        .await
        .expect("it ends")
        .expect("no panic")
        .expect_err("an error");
    assert_eq!(error.kind(), ErrorKind::Migration);
    assert!(format!("{error:?}").contains("no_such_table"), "{error:?}");
}

#[tokio::test]
async fn every_problem_of_every_crate_is_in_one_report() {
    let wrong = [
        ("MAESTRO_SERVICE_NAME", "Orders!"),
        ("MAESTRO_ENVIRONMENT", "prod"),
        ("MAESTRO_HTTP_LISTEN", "8000"),
        ("MAESTRO_POSTGRES_POOL_MAX", "many"),
        ("MAESTRO_CACHE_DEFAULT_TTL", "5"),
        ("MAESTRO_MESSAGING_RETRY_DELAYS", "1s,soon"),
        ("MAESTRO_TRACING_SAMPLE_RATIO", "110%"),
    ];
    let builder = Service::builder().environment(Environment::from_pairs(wrong));
    let error = builder
        .db()
        .cache()
        .messaging()
        .start()
        .await
        .expect_err("it must not boot");
    assert_eq!(error.kind(), ErrorKind::Config);
    let report = error.to_string();
    let missing = [
        "MAESTRO_POSTGRES_URL",
        "MAESTRO_CACHE_URL",
        "MAESTRO_MESSAGING_URL",
    ];
    for name in wrong.iter().map(|(name, _)| *name).chain(missing) {
        assert!(report.contains(name), "{name} is not in: {report}");
    }
    assert_eq!(
        report.matches("MAESTRO_SERVICE_NAME (").count(),
        1,
        "named once: {report}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operational_routes_can_have_a_listener_of_their_own() {
    let sandbox = sandbox().await;
    // Of loopback addresses that nobody else uses, and no port that the kernel gives to others.
    let part = || fastrand::u8(1..255);
    let own = format!("127.{}.{}.{}:9100", part(), part(), part());
    let environment = environment(&sandbox, &[("MAESTRO_METRICS_LISTEN", own.as_str())]);
    let service = Service::builder()
        .environment(environment)
        .db()
        .cache()
        .messaging()
        .start()
        .await
        .expect("it boots");
    let mut running = run(service.clone(), app(service.db().clone())).await;
    running.until("/now", StatusCode::OK).await;
    assert_eq!(running.get("/metrics").await.0, StatusCode::NOT_FOUND);
    let public = std::mem::replace(&mut running.address, own.parse().expect("an address"));
    assert_eq!(running.get("/metrics").await.0, StatusCode::OK);
    running.until("/health/ready", StatusCode::OK).await;
    running.address = public;
    running.stop().await.expect("clean");
}
