//! Executes quality runs and keeps the list of suites it knows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use maestro::cache::{Cache, Region};
use maestro::db::Db;
use maestro::messaging::outbox::{Inbox, Outbox};
use maestro::messaging::{HandlerError, MessageContext, Messaging};
use maestro::{Problem, Service};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::events::{QualityRunCompleted, QualityRunRequested};

/// What a handler needs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Executor {
    db: Db,
    outbox: Outbox,
    inbox: Inbox,
    suites: Region<Suite>,
}

/// A suite the conductor knows how to run.
#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
pub(crate) struct Suite {
    /// How many first attempts of each run fail.
    #[serde(default)]
    pub(crate) fails_first: i32,
}

#[derive(Debug, Serialize, sqlx::FromRow)]
struct Execution {
    run_id: Uuid,
    suite: String,
    score: i32,
    attempts: i32,
}

/// The suite failed this time; another attempt may succeed.
#[derive(Debug)]
struct SuiteFailed {
    attempt: u32,
}

impl fmt::Display for SuiteFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the suite failed at attempt {}", self.attempt)
    }
}

impl std::error::Error for SuiteFailed {}

impl Executor {
    pub(crate) fn new(service: &Service<Db, Cache, Messaging>) -> Result<Self, maestro::Error> {
        Ok(Self {
            db: service.db().clone(),
            outbox: service.outbox(),
            inbox: service.inbox(),
            suites: service
                .cache()
                .region("suite")
                .ttl(Duration::from_mins(5))
                .stale_for(Duration::from_hours(1))
                .build()?,
        })
    }

    pub(crate) fn routes(self) -> Router {
        Router::new()
            .route("/suites/{name}", put(define))
            .route("/executions", get(count))
            .route("/executions/{run_id}", get(show))
            .with_state(self)
    }

    /// Runs the suite; the result, its event and the mark "handled" are one transaction.
    pub(crate) async fn execute(
        &self,
        event: QualityRunRequested,
        context: MessageContext,
    ) -> Result<(), HandlerError> {
        // Before the transaction: a load takes a connection too, and handlers that hold one each while
        // they wait for another can use up the pool and wait for themselves.
        let Some(suite) = self.suite(&event.suite).await? else {
            return Err(HandlerError::dead_letter(format!(
                "there is no suite `{}`",
                event.suite
            )));
        };
        let mut tx = self.db.begin().await?;
        if !self
            .inbox
            .once(&mut tx, context.subscription(), context.message_id())
            .await?
        {
            return Ok(tx.rollback().await?);
        }
        let attempt = context.attempt();
        if i64::from(attempt) <= i64::from(suite.fails_first) {
            return Err(SuiteFailed { attempt }.into());
        }
        let score = score(event.run_id);
        sqlx::query(
            "insert into executions (run_id, suite, score, attempts) values ($1, $2, $3, $4)",
        )
        .bind(event.run_id)
        .bind(&event.suite)
        .bind(score)
        .bind(i32::try_from(attempt)?)
        .execute(&mut tx)
        .await?;
        self.outbox
            .add(
                &mut tx,
                &QualityRunCompleted {
                    run_id: event.run_id,
                    score,
                },
            )
            .await?;
        tx.commit().await?;
        tracing::info!(run = %event.run_id, suite = event.suite, attempt, score, "run executed");
        Ok(())
    }

    /// Suites are read for every run and change rarely: through the cache.
    async fn suite(&self, name: &str) -> Result<Option<Arc<Suite>>, maestro::cache::Error> {
        let (db, suite) = (self.db.clone(), name.to_owned());
        let load = || async move {
            sqlx::query_as("select fails_first from suites where name = $1")
                .bind(suite)
                .fetch_optional(&db)
                .await
        };
        self.suites.entry(name).get_or_load_optional(load).await
    }
}

/// A score from 60 to 100 that depends on the run alone, so that a repeated execution agrees.
fn score(run_id: Uuid) -> i32 {
    60 + i32::from(run_id.as_bytes()[15] % 41)
}

async fn define(
    State(executor): State<Executor>,
    Path(name): Path<String>,
    Json(suite): Json<Suite>,
) -> Result<StatusCode, Problem> {
    sqlx::query(
        "insert into suites (name, fails_first) values ($1, $2) on conflict (name) do update set fails_first = excluded.fails_first",
    )
    .bind(&name)
    .bind(suite.fails_first)
    .execute(&executor.db)
    .await?;
    executor.suites.remove(name.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn show(
    State(executor): State<Executor>,
    Path(run_id): Path<Uuid>,
) -> Result<Json<Execution>, Problem> {
    let execution =
        sqlx::query_as("select run_id, suite, score, attempts from executions where run_id = $1")
            .bind(run_id)
            .fetch_optional(&executor.db)
            .await?;
    Ok(Json(execution.ok_or_else(|| {
        Problem::not_found(format!("run {run_id} was not executed"))
    })?))
}

async fn count(State(executor): State<Executor>) -> Result<Json<Value>, Problem> {
    let count: i64 = sqlx::query_scalar("select count(*) from executions")
        .fetch_one(&executor.db)
        .await?;
    Ok(Json(json!({"count": count})))
}
