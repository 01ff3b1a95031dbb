//! The service's routes with everything around them.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use maestro_metrics::{Operations, ServerLayer};
use tokio::sync::watch;

use crate::launch::Startup;
use crate::problem::Problem;
use crate::service::Core;

/// The router of the service's listener, and the one of the operational listener where it is apart.
pub(crate) fn assemble(core: &Core, app: Router) -> (Router, Option<(SocketAddr, Router)>) {
    let gated = app.layer(from_fn_with_state(core.launcher.watch(), gate));
    let operations = Operations::new(&core.registry, &core.health);
    match core.config.operations {
        Some(address) => {
            let public = gated.layer(ServerLayer::new(&core.registry));
            (public, Some((address, operations.router())))
        }
        None => (operations.around(gated), None),
    }
}

/// Until the migrations are applied the service's tables may not exist: its routes ask to come back.
async fn gate(
    State(startup): State<watch::Receiver<Startup>>,
    request: Request,
    next: Next,
) -> Response {
    if *startup.borrow() == Startup::Done {
        return next.run(request).await;
    }
    Problem::unavailable("the service is starting", RETRY_AFTER).into_response()
}

/// A start takes seconds once the servers are there.
const RETRY_AFTER: Duration = Duration::from_secs(2);
