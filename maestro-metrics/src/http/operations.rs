//! The routes for those who run the service: `/metrics` and `/health*`.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::routing::get;

use super::scrape::Scraper;
use crate::health::{HealthRegistry, Probe};
use crate::registry::Registry;

/// The operational routes of a service: `/metrics`, `/health/live`, `/health/ready`,
/// `/health/startup` and `/health`.
///
/// ```
/// # use maestro_config::{Environment, Identity};
/// use axum::{Router, routing::get};
/// use maestro_metrics::{HealthRegistry, Operations, Registry, ServerLayer};
///
/// # let environment = Environment::from_pairs([
/// #     ("MAESTRO_SERVICE_NAME", "orders"), ("MAESTRO_ENVIRONMENT", "test")]);
/// # let identity: Identity = environment.read()?;
/// let registry = Registry::new(&identity);
/// let health = HealthRegistry::new(&identity, &registry);
/// let app: Router = Router::new()
///     .route("/orders", get(|| async { "none" }))
///     .layer(ServerLayer::new(&registry))
///     // Merged after the layer: scrapes and probes are no requests of customers.
///     .merge(Operations::new(&registry, &health).router());
/// # Ok::<(), maestro_config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Operations {
    registry: Registry,
    health: HealthRegistry,
    whole: Vec<String>,
}

impl Operations {
    /// The routes of this registry and this health.
    pub fn new(registry: &Registry, health: &HealthRegistry) -> Self {
        Self {
            registry: registry.clone(),
            health: health.clone(),
            whole: vec!["/health".to_owned()],
        }
    }

    /// Answers the whole health at another path too, `/api/health` for a load balancer that is set
    /// up for it. A path that is there already, or does not begin with `/`, is left out.
    pub fn health_path(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        let taken = FIXED.contains(&path.as_str()) || self.whole.contains(&path);
        if path.starts_with('/') && !taken && !path.contains(['{', '}', '*', ':']) {
            self.whole.push(path);
        }
        self
    }

    /// The routes, to be merged into a router or served on a listener of their own.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        let scraper = Scraper::new(self.registry);
        let mut router = Router::new()
            .route(
                FIXED[0],
                get(
                    |State(scraper): State<Scraper>, headers: HeaderMap| async move {
                        scraper.scrape(&headers).await
                    },
                )
                .with_state(scraper),
            )
            .route(FIXED[1], probe(&self.health, Probe::Live))
            .route(FIXED[2], probe(&self.health, Probe::Ready))
            .route(FIXED[3], probe(&self.health, Probe::Startup));
        for path in &self.whole {
            router = router.route(path, probe(&self.health, Probe::Whole));
        }
        router
    }
}

const FIXED: [&str; 4] = [
    "/metrics",
    "/health/live",
    "/health/ready",
    "/health/startup",
];

fn probe<S: Clone + Send + Sync + 'static>(
    health: &HealthRegistry,
    probe: Probe,
) -> axum::routing::MethodRouter<S> {
    let health = health.clone();
    get(move || {
        let answer = health.answer(probe);
        async move {
            let mut response = Response::new(Body::from(answer.body));
            if !answer.good {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    })
}
