//! What one statement leaves behind for operators: a span, a duration, a line when it was slow.

use std::ops::Deref;
use std::time::{Duration, Instant};

use maestro_metrics::Context;
use tracing::Span;
use tracing::field::Empty;

use crate::error::classify;
use crate::metrics::PoolMetrics;
use crate::statement::Statement;

/// One statement under way. Dropped without an end, it was cancelled.
pub(crate) struct Observation<'m, S: Deref<Target = Statement>> {
    statement: S,
    metrics: &'m PoolMetrics,
    slow: Option<Duration>,
    started: Instant,
    span: Span,
    ended: bool,
}

impl<'m, S: Deref<Target = Statement>> Observation<'m, S> {
    pub(crate) fn begin(statement: S, metrics: &'m PoolMetrics, slow: Option<Duration>) -> Self {
        // The text holds placeholders where the service binds its values, so it is safe to show.
        let span = tracing::info_span!(
            "db.statement",
            otel.name = Empty,
            otel.kind = "client",
            db.system.name = "postgresql",
            db.operation.name = statement.operation,
            db.collection.name = statement.table.as_deref(),
            db.query.text = &*statement.summary,
            db.response.returned_rows = Empty,
            db.response.status_code = Empty,
            error.type = Empty,
        );
        if !span.is_disabled() {
            let operation = statement.operation;
            match statement.table.as_deref() {
                Some(table) => {
                    span.record(
                        "otel.name",
                        tracing::field::display(format_args!("{operation} {table}")),
                    );
                }
                None => {
                    span.record("otel.name", operation);
                }
            }
        }
        Self {
            statement,
            metrics,
            slow,
            started: Instant::now(),
            span,
            ended: false,
        }
    }

    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    pub(crate) fn succeeded(&mut self, rows: u64) {
        self.ended = true;
        let elapsed = self.started.elapsed();
        self.span.record("db.response.returned_rows", rows);
        let duration = self
            .statement
            .duration
            .get_or_init(|| self.metrics.succeeded(&self.statement));
        if self.slow.is_some_and(|slow| elapsed >= slow) {
            // A slow bucket leads to a trace that shows why.
            let context = self.span.in_scope(Context::current);
            duration.observe_traced(elapsed, context.trace());
            self.slow(elapsed, rows);
        } else {
            duration.observe_duration(elapsed);
        }
    }

    pub(crate) fn failed(&mut self, error: &sqlx::Error) {
        let sqlstate = match error {
            sqlx::Error::Database(error) => error.code(),
            _ => None,
        };
        self.fail(
            sqlstate.as_deref().unwrap_or_default(),
            classify(error).as_str(),
        );
    }

    fn fail(&mut self, sqlstate: &str, kind: &'static str) {
        // A copy may be asked for more after it failed.
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let elapsed = self.started.elapsed();
        if !sqlstate.is_empty() {
            self.span.record("db.response.status_code", sqlstate);
        }
        self.span.record("error.type", kind);
        let context = self.span.in_scope(Context::current);
        self.metrics
            .failed(&self.statement, sqlstate, kind)
            .observe_traced(elapsed, context.trace());
        if self.slow.is_some_and(|slow| elapsed >= slow) {
            self.slow(elapsed, 0);
        }
    }

    fn slow(&self, elapsed: Duration, rows: u64) {
        self.metrics.slow.increment();
        tracing::warn!(
            parent: &self.span,
            duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            rows,
            operation = self.statement.operation,
            table = self.statement.table.as_deref(),
            statement = &*self.statement.summary,
            "slow statement"
        );
    }
}

impl<S: Deref<Target = Statement>> Drop for Observation<'_, S> {
    fn drop(&mut self) {
        if !self.ended {
            self.fail("", "cancelled");
        }
    }
}
