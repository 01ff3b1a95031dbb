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
    let public = app
        .layer(from_fn_with_state(core.launcher.watch(), gate))
        .layer(ServerLayer::new(&core.registry));
    let operations = Operations::new(&core.registry, &core.health).router();
    match core.config.operations {
        Some(address) => (public, Some((address, operations))),
        // In this order: of two routers without a fallback of their own axum keeps the layers of the
        // second one's, and unmatched requests are to be measured.
        None => (operations.merge(public), None),
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
