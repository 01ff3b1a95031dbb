//! The routes for those who run the service: `/metrics` and `/health*`.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::routing::get;

use super::scrape::Scraper;
use super::server::ServerLayer;
use crate::health::{HealthRegistry, Probe};
use crate::registry::Registry;

/// The operational routes of a service: `/metrics`, `/health/live`, `/health/ready`,
/// `/health/startup` and `/health`.
///
/// ```
/// # use maestro_config::{Environment, Identity};
/// use axum::{Router, routing::get};
/// use maestro_metrics::{HealthRegistry, Operations, Registry};
///
/// # let environment = Environment::from_pairs([
/// #     ("MAESTRO_SERVICE_NAME", "orders"), ("MAESTRO_ENVIRONMENT", "test")]);
/// # let identity: Identity = environment.read()?;
/// let registry = Registry::new(&identity);
/// let health = HealthRegistry::new(&identity, &registry);
/// let routes = Router::new().route("/orders", get(|| async { "none" }));
/// let app: Router = Operations::new(&registry, &health).health_path("/api/health").around(routes);
///
/// // Or by themselves, for a listener that customers do not reach:
/// let operations: Router = Operations::new(&registry, &health).router();
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

    /// A service's routes under a [`ServerLayer`], and the operational ones beside them, which are
    /// not measured: scrapes and probes are no requests of customers.
    ///
    /// # Panics
    /// As `Router::merge` does: if the service has one of the operational paths itself.
    pub fn around<S: Clone + Send + Sync + 'static>(self, routes: Router<S>) -> Router<S> {
        let layer = ServerLayer::new(&self.registry);
        // In this order: of two routers, the fallback of the one merged in is kept, and what matches
        // no route is to be measured.
        self.router().merge(routes.layer(layer))
    }

    /// The operational routes alone, for a listener of their own.
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
