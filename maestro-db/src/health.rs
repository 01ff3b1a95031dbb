//! One check: does the server answer?

use std::time::Duration;

use maestro_metrics::{Criticality, HealthCheck, HealthStatus};

use crate::client::Db;
use crate::error::ErrorKind;

/// Shorter than the check's own limit, so that the reason is ours and not "no answer".
const PING: Duration = Duration::from_millis(1_500);
const LIMIT: Duration = Duration::from_secs(2);

impl Db {
    /// The check for the service's readiness: one round trip, critical.
    ///
    /// A pool in which every connection is busy is degraded and not unhealthy: taking the replica
    /// out of rotation would only move its load to the others.
    pub fn health_check(&self) -> HealthCheck {
        let db = self.clone();
        HealthCheck::new("postgres", Criticality::Critical, move || {
            let db = db.clone();
            async move {
                match db.ping(PING).await {
                    Ok(()) => HealthStatus::healthy(),
                    Err(error) if error.kind() == ErrorKind::Exhausted => {
                        HealthStatus::degraded(error.to_string())
                    }
                    Err(error) => HealthStatus::unhealthy(error.to_string()),
                }
            }
        })
        .timeout(LIMIT)
    }
}
