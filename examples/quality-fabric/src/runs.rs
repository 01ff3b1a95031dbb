//! Quality runs: submit one, read one, take note of its result.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use maestro::cache::{Cache, Region};
use maestro::db::Db;
use maestro::messaging::outbox::{Inbox, Outbox};
use maestro::messaging::{HandlerError, MessageContext, Messaging};
use maestro::{Problem, Service};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::events::{QualityRunCompleted, QualityRunRequested};

/// What a handler needs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Runs {
    db: Db,
    outbox: Outbox,
    inbox: Inbox,
    cached: Region<Run>,
}

#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
pub(crate) struct Run {
    pub(crate) id: Uuid,
    pub(crate) project: String,
    pub(crate) suite: String,
    pub(crate) state: String,
    pub(crate) score: Option<i32>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Submission {
    project: String,
    suite: String,
}

impl Runs {
    pub(crate) fn new(service: &Service<Db, Cache, Messaging>) -> Result<Self, maestro::Error> {
        Ok(Self {
            db: service.db().clone(),
            outbox: service.outbox(),
            inbox: service.inbox(),
            cached: service
                .cache()
                .region("run")
                .ttl(Duration::from_mins(5))
                .stale_for(Duration::from_hours(1))
                .build()?,
        })
    }

    pub(crate) fn routes(self) -> Router {
        Router::new()
            .route("/runs", post(submit))
            .route("/runs/{id}", get(show))
            .with_state(self)
    }

    /// The row and the event are one transaction: either both are there or neither.
    async fn submit(&self, submission: Submission) -> Result<Run, Problem> {
        let run = Run {
            id: Uuid::now_v7(),
            project: submission.project,
            suite: submission.suite,
            state: "requested".to_owned(),
            score: None,
        };
        let mut tx = self.db.begin().await?;
        sqlx::query("insert into quality_runs (id, project, suite) values ($1, $2, $3)")
            .bind(run.id)
            .bind(&run.project)
            .bind(&run.suite)
            .execute(&mut tx)
            .await?;
        let event = QualityRunRequested {
            run_id: run.id,
            project: run.project.clone(),
            suite: run.suite.clone(),
        };
        self.outbox.add(&mut tx, &event).await?;
        tx.commit().await?;
        tracing::info!(run = %run.id, suite = run.suite, "run requested");
        Ok(run)
    }

    async fn find(&self, id: Uuid) -> Result<Option<Arc<Run>>, Problem> {
        let db = self.db.clone();
        let load = move || async move {
            sqlx::query_as(
                "select id, project, suite, state, score from quality_runs where id = $1",
            )
            .bind(id)
            .fetch_optional(&db)
            .await
        };
        Ok(self.cached.entry(id).get_or_load_optional(load).await?)
    }

    /// Handles a result once in effect, however often it is delivered.
    pub(crate) async fn complete(
        &self,
        event: QualityRunCompleted,
        context: MessageContext,
    ) -> Result<(), HandlerError> {
        let mut tx = self.db.begin().await?;
        if self
            .inbox
            .once(&mut tx, context.subscription(), context.message_id())
            .await?
        {
            sqlx::query("update quality_runs set state = 'completed', score = $2, completed_at = now() where id = $1")
                .bind(event.run_id)
                .bind(event.score)
                .execute(&mut tx)
                .await?;
        }
        tx.commit().await?;
        self.cached.remove(event.run_id).await?;
        Ok(())
    }
}

async fn submit(
    State(runs): State<Runs>,
    Json(submission): Json<Submission>,
) -> Result<(StatusCode, Json<Run>), Problem> {
    Ok((StatusCode::ACCEPTED, Json(runs.submit(submission).await?)))
}

async fn show(State(runs): State<Runs>, Path(id): Path<Uuid>) -> Result<Json<Arc<Run>>, Problem> {
    let run = runs
        .find(id)
        .await?
        .ok_or_else(|| Problem::not_found(format!("there is no run {id}")))?;
    Ok(Json(run))
}
