//! A tower layer over limiters: 429 with the headers that tell a caller when to come back.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use crate::gcra::{Quota, Verdict};
use crate::limiter::Limiter;

/// Refuses requests of callers that send too many.
///
/// Rules are looked at in their order, and one that finds no caller in a request does not apply to
/// it. Every answer carries `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset` and
/// `RateLimit-Policy` of the rule with the least left; a refusal is a 429 with `Retry-After` and a
/// problem document (RFC 9457).
///
/// ```no_run
/// # fn layers(cache: &maestro_cache::Cache) -> maestro_cache::ThrottleLayer<()> {
/// use maestro_cache::{Quota, ThrottleLayer};
///
/// ThrottleLayer::new()
///     .limit(cache.limiter("user", Quota::per_hour(1_000)), |request| {
///         let user = request.headers().get("x-user-id")?;
///         Some(user.to_str().ok()?.to_owned())
///     })
///     // Only for those who were not counted as a user.
///     .or_limit(cache.limiter("address", Quota::per_minute(100)), |request| {
///         request.extensions().get::<std::net::IpAddr>().map(ToString::to_string)
///     })
/// # }
/// ```
#[must_use]
pub struct ThrottleLayer<B> {
    rules: Arc<Vec<Rule<B>>>,
}

struct Rule<B> {
    limiter: Limiter,
    caller: Caller<B>,
    /// Applies only where no rule before it did.
    otherwise: bool,
}

type Caller<B> = Arc<dyn Fn(&Request<B>) -> Option<String> + Send + Sync>;

impl<B> Clone for Rule<B> {
    fn clone(&self) -> Self {
        Self {
            limiter: self.limiter.clone(),
            caller: Arc::clone(&self.caller),
            otherwise: self.otherwise,
        }
    }
}

impl<B> Clone for ThrottleLayer<B> {
    fn clone(&self) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
        }
    }
}

impl<B> fmt::Debug for ThrottleLayer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limiters = self.rules.iter().map(|rule| &rule.limiter);
        f.debug_list().entries(limiters).finish()
    }
}

impl<B> Default for ThrottleLayer<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> ThrottleLayer<B> {
    /// A layer that refuses nothing yet.
    pub fn new() -> Self {
        Self {
            rules: Arc::default(),
        }
    }

    /// Limits whom `caller` finds in a request: a user, a tenant.
    pub fn limit(
        self,
        limiter: Limiter,
        caller: impl Fn(&Request<B>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.with(limiter, Arc::new(caller), false)
    }

    /// Limits whom `caller` finds, where none of the rules before applied: the address of those who
    /// are not known by name, so that users behind one address do not take from each other.
    pub fn or_limit(
        self,
        limiter: Limiter,
        caller: impl Fn(&Request<B>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.with(limiter, Arc::new(caller), true)
    }

    fn with(self, limiter: Limiter, caller: Caller<B>, otherwise: bool) -> Self {
        let mut rules = Arc::unwrap_or_clone(self.rules);
        rules.push(Rule {
            limiter,
            caller,
            otherwise,
        });
        Self {
            rules: Arc::new(rules),
        }
    }
}

impl<S, B> Layer<S> for ThrottleLayer<B> {
    type Service = Throttle<S, B>;

    fn layer(&self, inner: S) -> Throttle<S, B> {
        Throttle {
            inner,
            rules: Arc::clone(&self.rules),
        }
    }
}

/// The service of [`ThrottleLayer`].
pub struct Throttle<S, B> {
    inner: S,
    rules: Arc<Vec<Rule<B>>>,
}

impl<S: Clone, B> Clone for Throttle<S, B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            rules: Arc::clone(&self.rules),
        }
    }
}

impl<S: fmt::Debug, B> fmt::Debug for Throttle<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Throttle<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: From<String> + Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The clone is not known to be ready; what was polled is what must be called.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        // Callers are found before the first await: a request's body need not be shared between threads.
        let mut callers = Vec::new();
        for rule in self.rules.iter() {
            if rule.otherwise && !callers.is_empty() {
                continue;
            }
            if let Some(caller) = (rule.caller)(&request) {
                callers.push((rule.limiter.clone(), caller));
            }
        }
        Box::pin(async move {
            let mut tightest: Option<(Quota, Verdict)> = None;
            for (limiter, caller) in callers {
                let verdict = match limiter.check(&caller).await {
                    Ok(verdict) => verdict,
                    Err(error) => {
                        // The limiter means nothing, or the caller chose an id too long to be one.
                        tracing::warn!(limiter = limiter.name(), %error, "a request was refused");
                        return Ok(refused(None));
                    }
                };
                let quota = limiter.quota();
                if !verdict.allowed {
                    return Ok(refused(Some((quota, verdict))));
                }
                if tightest.is_none_or(|(_, known)| verdict.remaining < known.remaining) {
                    tightest = Some((quota, verdict));
                }
            }
            let mut response = inner.call(request).await?;
            if let Some((quota, verdict)) = tightest {
                describe(response.headers_mut(), quota, verdict);
            }
            Ok(response)
        })
    }
}

fn refused<R: From<String>>(verdict: Option<(Quota, Verdict)>) -> Response<R> {
    let body = r#"{"type":"about:blank","title":"Too Many Requests","status":429}"#;
    let mut response = Response::new(R::from(body.to_owned()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some((quota, verdict)) = verdict {
        describe(headers, quota, verdict);
        // Sooner than that it would be refused again.
        headers.insert(RETRY_AFTER, seconds(verdict.retry_after).max(1).into());
    }
    response
}

fn describe(headers: &mut HeaderMap, quota: Quota, verdict: Verdict) {
    headers.insert(LIMIT, verdict.limit.into());
    headers.insert(REMAINING, verdict.remaining.into());
    headers.insert(RESET, seconds(verdict.reset_after).into());
    let policy = format!("{};w={}", quota.count(), seconds(quota.period()).max(1));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(POLICY, policy);
    }
}

/// Whole seconds, rounded up: a caller that waits that long is not refused again.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
