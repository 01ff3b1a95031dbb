//! The events this service listens to and the ones it publishes.

use std::borrow::Cow;

use maestro::messaging::Event;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Quality Fabric wants a run executed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QualityRunRequested {
    pub(crate) run_id: Uuid,
    pub(crate) project: String,
    pub(crate) suite: String,
}

impl Event for QualityRunRequested {
    const TYPE: &'static str = "quality-run.requested.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.run_id.to_string().into())
    }
}

/// A run has a result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QualityRunCompleted {
    pub(crate) run_id: Uuid,
    pub(crate) score: i32,
}

impl Event for QualityRunCompleted {
    const TYPE: &'static str = "quality-run.completed.v1";

    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.run_id.to_string().into())
    }
}
