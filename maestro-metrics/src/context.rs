//! What identifies the work in hand, wherever it runs: trace, correlation id, tenant, baggage.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tracing::Span;
use tracing::span::Id;

use crate::propagation::TraceContext;
use crate::span;

/// The header with the caller's span.
pub const TRACEPARENT: &str = "traceparent";
/// The header with vendors' additions to [`TRACEPARENT`].
pub const TRACESTATE: &str = "tracestate";
/// The header with values that travel along the trace.
pub const BAGGAGE: &str = "baggage";
/// The header with the correlation id.
pub const CORRELATION_ID: &str = "x-correlation-id";
/// The header with the tenant.
pub const TENANT_ID: &str = "x-tenant-id";

/// An id that stays the same over everything one outer request set in motion: requests, messages,
/// log lines. Up to 128 visible ASCII characters.
///
/// ```
/// use maestro_metrics::CorrelationId;
///
/// assert_eq!(CorrelationId::parse("order-17").unwrap().as_str(), "order-17");
/// assert!(CorrelationId::parse("two words").is_none());
/// assert_ne!(CorrelationId::random(), CorrelationId::random());
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CorrelationId(Arc<str>);

impl CorrelationId {
    /// A new one (UUID version 7, so that they sort by time).
    pub fn random() -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        Self((&*uuid::Uuid::now_v7().hyphenated().encode_lower(&mut buffer)).into())
    }

    /// One from outside; `None` unless it is 1 to 128 visible ASCII characters, so that it can be
    /// written into headers and logs as it is.
    pub fn parse(text: &str) -> Option<Self> {
        visible(text).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What identifies the work in hand. It crosses processes in headers, and tasks by [`scope`] or by
/// a `tracing` span.
///
/// A consumer of messages:
/// ```
/// use maestro_metrics::Context;
/// use tracing::{Instrument, info_span};
///
/// # async fn handle() {}
/// # async fn consume(headers: std::collections::HashMap<String, String>) {
/// let context = Context::extract(|name| headers.get(name));
/// let span = context.span(|| info_span!("orders.place process", otel.kind = "consumer"));
/// context.scope(handle()).instrument(span).await;
/// # }
/// ```
/// And a publisher:
/// ```
/// use maestro_metrics::Context;
///
/// let mut headers = Vec::new();
/// Context::current().inject(|name, value| headers.push((name, value.to_owned())));
/// ```
/// And who starts something by himself, a nightly job for a tenant:
/// ```
/// use maestro_metrics::Context;
///
/// # async fn bill() {}
/// # async fn nightly() {
/// let context = Context::new().or_new_correlation().with_tenant("acme");
/// assert_eq!(context.tenant(), Some("acme"));
/// context.scope(bill()).await;
/// # }
/// ```
/// And who looks at what came, or calls something that is no future:
/// ```
/// use maestro_metrics::{Context, CorrelationId, TraceContext};
///
/// let headers = std::collections::HashMap::from([("baggage", "plan=gold")]);
/// let context = Context::extract(|name| headers.get(name));
/// assert_eq!(context.baggage("plan"), Some("gold"));
///
/// let context = context
///     .with_trace(TraceContext::root(true))
///     .with_correlation(CorrelationId::parse("order-17").unwrap());
/// assert!(context.trace().is_some_and(TraceContext::sampled));
/// context.sync_scope(|| assert_eq!(Context::current().correlation(), context.correlation()));
/// ```
///
/// [`scope`]: Context::scope
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    trace: Option<TraceContext>,
    correlation: Option<CorrelationId>,
    tenant: Option<Arc<str>>,
    baggage: Option<Arc<str>>,
}

impl Context {
    /// A context that says nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The context of the work that is running: of the current `tracing` span where traces are
    /// recorded, else of the innermost [`scope`](Self::scope); empty outside both.
    ///
    /// A task spawned by `tokio::spawn` has neither: wrap its future in `scope`, or in
    /// `tracing::Instrument::in_current_span`.
    pub fn current() -> Self {
        SCOPE
            .try_with(|scoped| {
                let here = Span::current().id();
                // A scope entered since the current span was is the inner one of the two.
                if here == scoped.within {
                    return scoped.context.clone();
                }
                match span::current() {
                    Some(context) => context,
                    None => scoped.context.clone(),
                }
            })
            .unwrap_or_else(|_| span::current().unwrap_or_default())
    }

    /// Reads the headers [`TRACEPARENT`], [`TRACESTATE`], [`BAGGAGE`], [`CORRELATION_ID`] and
    /// [`TENANT_ID`]; names are asked for in lower case. What is absent or malformed is left out.
    pub fn extract<S: AsRef<str>>(header: impl Fn(&'static str) -> Option<S>) -> Self {
        let state = header(TRACESTATE);
        Self {
            trace: header(TRACEPARENT).and_then(|parent| {
                TraceContext::parse(parent.as_ref(), state.as_ref().map(AsRef::as_ref))
            }),
            correlation: header(CORRELATION_ID).and_then(|id| CorrelationId::parse(id.as_ref())),
            tenant: header(TENANT_ID).and_then(|tenant| carried(tenant.as_ref(), visible)),
            baggage: header(BAGGAGE).and_then(|baggage| carried(baggage.as_ref(), is_baggage)),
        }
    }

    /// Calls `header` with the name and value of every header this context needs.
    pub fn inject(&self, mut header: impl FnMut(&'static str, &str)) {
        if let Some(trace) = &self.trace {
            header(TRACEPARENT, &trace.traceparent());
            if let Some(state) = trace.tracestate() {
                header(TRACESTATE, state);
            }
        }
        if let Some(baggage) = &self.baggage {
            header(BAGGAGE, baggage);
        }
        if let Some(correlation) = &self.correlation {
            header(CORRELATION_ID, correlation.as_str());
        }
        if let Some(tenant) = &self.tenant {
            header(TENANT_ID, tenant);
        }
    }

    /// Runs a future in this context. Dropping the future drops the scope with it.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        SCOPE.scope(self.scoped(), future)
    }

    /// Runs a function in this context.
    pub fn sync_scope<T>(&self, run: impl FnOnce() -> T) -> T {
        SCOPE.sync_scope(self.scoped(), run)
    }

    /// Makes a span whose parent is this context's trace. `make` is `|| info_span!(…)`; the span is
    /// disabled when its trace is not sampled, and its id then comes from
    /// [`scope`](Self::scope).
    pub fn span(&self, make: impl FnOnce() -> Span) -> Span {
        self.sync_scope(make)
    }

    /// With another span as the parent of what follows.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// With a correlation id.
    #[must_use]
    pub fn with_correlation(mut self, id: CorrelationId) -> Self {
        self.correlation = Some(id);
        self
    }

    /// With a new correlation id unless there is one.
    #[must_use]
    pub fn or_new_correlation(mut self) -> Self {
        self.correlation.get_or_insert_with(CorrelationId::random);
        self
    }

    /// With a tenant; left as it is unless the name is 1 to 128 visible ASCII characters.
    #[must_use]
    pub fn with_tenant(mut self, tenant: &str) -> Self {
        if let Some(tenant) = carried(tenant, visible) {
            self.tenant = Some(tenant);
        }
        self
    }

    /// The span the work runs in, or that caused it.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// The correlation id.
    pub fn correlation(&self) -> Option<&CorrelationId> {
        self.correlation.as_ref()
    }

    /// The tenant the work is for.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    #[cfg(feature = "otlp")]
    pub(crate) fn shared_tenant(&self) -> Option<&Arc<str>> {
        self.tenant.as_ref()
    }

    /// The value of one baggage entry, as written in the header (percent-encoded where the sender
    /// encoded it).
    pub fn baggage(&self, key: &str) -> Option<&str> {
        self.baggage.as_deref()?.split(',').find_map(|member| {
            let (name, value) = member.split(';').next()?.split_once('=')?;
            (name.trim() == key).then(|| value.trim())
        })
    }

    fn scoped(&self) -> Scoped {
        Scoped {
            context: self.clone(),
            within: Span::current().id(),
        }
    }
}

struct Scoped {
    context: Context,
    /// The span that was current when the scope was made.
    within: Option<Id>,
}

/// The context of the innermost scope, wherever the current span stands.
#[cfg(feature = "otlp")]
pub(crate) fn scope() -> Option<Context> {
    SCOPE.try_with(|scoped| scoped.context.clone()).ok()
}

/// The context of the innermost scope, if it was made inside the span `here` or outside all spans.
#[cfg(feature = "otlp")]
pub(crate) fn innermost_scope(here: Option<&Id>) -> Option<Context> {
    SCOPE
        .try_with(|scoped| (scoped.within.as_ref() == here).then(|| scoped.context.clone()))
        .ok()
        .flatten()
}

/// Whether [`innermost_scope`] would find one.
#[cfg(feature = "otlp")]
pub(crate) fn scope_is_innermost(here: Option<&Id>) -> bool {
    SCOPE
        .try_with(|scoped| scoped.within.as_ref() == here)
        .unwrap_or(false)
}

tokio::task_local! {
    static SCOPE: Scoped;
}

/// Longest correlation id and tenant.
const ID_LENGTH: usize = 128;
/// Longest baggage; the W3C recommendation asks to carry at least this much.
const BAGGAGE_LENGTH: usize = 8_192;

fn visible(text: &str) -> bool {
    (1..=ID_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_baggage(text: &str) -> bool {
    (1..=BAGGAGE_LENGTH).contains(&text.len())
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && text.split(',').all(|member| member.contains('='))
}

fn carried(text: &str, valid: impl Fn(&str) -> bool) -> Option<Arc<str>> {
    valid(text).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn every_header_survives_a_hop() {
        let headers = [
            (TRACEPARENT, PARENT),
            (TRACESTATE, "a=1"),
            (BAGGAGE, "plan=gold;p=1, region=eu"),
            (CORRELATION_ID, "order-17"),
            (TENANT_ID, "acme"),
        ];
        let find = |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        let context = Context::extract(find);
        assert_eq!(context.baggage("plan"), Some("gold"));
        assert_eq!(context.baggage("region"), Some("eu"));
        let mut sent = Vec::new();
        context.inject(|name, value| sent.push((name, value.to_owned())));
        for (name, value) in headers {
            assert!(sent.contains(&(name, value.to_owned())), "{name}");
        }
    }

    #[test]
    fn ids_that_could_break_a_log_line_are_left_out() {
        let long = "x".repeat(129);
        for bad in ["", "a b", "a\nb", "é", "\u{7f}", &long] {
            assert_eq!(CorrelationId::parse(bad), None, "{bad:?}");
            assert_eq!(Context::new().with_tenant(bad).tenant(), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_scope_reaches_the_futures_inside_it_and_no_others() {
        let context = Context::new().with_tenant("acme").or_new_correlation();
        let inside = context
            .scope(async {
                tokio::task::yield_now().await;
                Context::current()
            })
            .await;
        assert_eq!(inside, context);
        assert_eq!(Context::current(), Context::new());
    }
}
