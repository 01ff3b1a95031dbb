//! The layer of the `tracing` subscriber: gives every span its context, records the sampled ones, and
//! writes log lines. It is one layer with one filter, because a layer sees only the spans its own
//! filter lets through, and log lines need the ids of the spans.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::RwLock;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context as Seen, Filter, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::{EventFields, SpanFields};
use super::logs::Logs;
use super::redaction::Redaction;
use super::sampling::Ratio;
use crate::context::{self, Context};
use crate::handle::Counter;
use crate::otlp::Queue;
use crate::propagation::{SpanId, TraceContext, TraceId};
use crate::span::{SpanData, SpanEvent, SpanKind, SpanRecord, nearest};

/// What the layer and its filter share.
pub(crate) struct Shared {
    pub(crate) logged: RwLock<Arc<Targets>>,
    /// Absent when nothing is exported: spans then only carry ids.
    pub(crate) traces: Option<Traces>,
    pub(crate) redaction: Redaction,
}

pub(crate) struct Traces {
    pub(crate) queue: Arc<Queue>,
    pub(crate) ratio: Ratio,
    /// Root spans that take longer are exported though not sampled.
    pub(crate) slow: Option<Duration>,
    pub(crate) kept_errors: Counter,
    pub(crate) kept_slow: Counter,
}

impl Shared {
    fn logs(&self, metadata: &Metadata<'_>) -> bool {
        self.logged
            .read()
            .would_enable(metadata.target(), metadata.level())
    }
}

/// Spans and span events below this level are for the debugging of one crate, not for a trace that
/// crosses services.
const TRACED: Level = Level::INFO;

/// Crates that carry the exports and the requests themselves.
const UNTRACED: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "reqwest",
    "rustls",
    "tonic",
    "mio",
];

fn traced(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= TRACED
        && !UNTRACED.iter().any(|crate_name| {
            metadata
                .target()
                .strip_prefix(crate_name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
}

/// Decides before a span costs anything.
#[derive(Clone)]
pub(crate) struct TelemetryFilter(pub(crate) Arc<Shared>);

impl<S> Filter<S> for TelemetryFilter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_span() {
            // Whether its trace is sampled is known only where it is made.
            return if traced(metadata) {
                Interest::sometimes()
            } else {
                Interest::never()
            };
        }
        if self.0.logs(metadata) || (self.0.traces.is_some() && traced(metadata)) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, seen: &Seen<'_, S>) -> bool {
        if !metadata.is_span() {
            return true;
        }
        if !traced(metadata) {
            return false;
        }
        // The first span of a trace in this process is always made: it carries the ids, and is
        // exported if it fails. Those inside it only if they will be exported.
        if context::scope_is_innermost(seen.current_span().id()) {
            return true;
        }
        nearest(seen.lookup_current(), SpanData::records_children).unwrap_or(true)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let logged = self.0.logged.read().iter().map(|(_, level)| level).max();
        let default = self.0.logged.read().default_level();
        let traced = LevelFilter::from_level(TRACED);
        Some(
            traced
                .max(logged.unwrap_or(LevelFilter::OFF))
                .max(default.unwrap_or(LevelFilter::OFF)),
        )
    }
}

pub(crate) struct TelemetryLayer {
    pub(crate) filter: TelemetryFilter,
    pub(crate) logs: Logs,
    /// Whether there is no other layer. Then this one decides for the subscriber, and a span nobody
    /// exports is not made at all; a filter of one layer among several can only look away, the
    /// registry makes the span all the same.
    pub(crate) alone: bool,
}

impl TelemetryLayer {
    fn shared(&self) -> &Shared {
        &self.filter.0
    }

    fn begin(&self, parent: &Context, in_process: bool) -> (Context, bool) {
        let Some(traces) = &self.shared().traces else {
            // Nothing will ever be known of a span of ours: what follows is the caller's child.
            let trace = parent.trace().cloned();
            let trace = trace.unwrap_or_else(|| TraceContext::root(false));
            return (parent.clone().with_trace(trace), false);
        };
        let trace = parent.trace().map_or_else(
            || {
                let id = TraceId::random();
                TraceContext::new(id, SpanId::random(), traces.ratio.samples(id))
            },
            TraceContext::child,
        );
        let recorded = trace.sampled() || !in_process;
        (parent.clone().with_trace(trace), recorded)
    }
}

impl<S> Layer<S> for TelemetryLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.alone {
            Filter::<S>::callsite_enabled(&self.filter, metadata)
        } else {
            Interest::always()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, seen: Seen<'_, S>) -> bool {
        !self.alone || self.filter.enabled(metadata, &seen)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        if self.alone {
            Filter::<S>::max_level_hint(&self.filter)
        } else {
            None
        }
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, seen: Seen<'_, S>) {
        let here = seen.current_span();
        let found = if attributes.is_contextual() {
            match context::innermost_scope(here.id()) {
                Some(context) => Some((context, false)),
                None => nearest(seen.lookup_current(), |data| (data.context.clone(), true))
                    .or_else(|| context::scope().map(|context| (context, false))),
            }
        } else {
            let parent = attributes.parent().and_then(|parent| seen.span(parent));
            nearest(parent, |data| (data.context.clone(), true))
        };
        let (parent, in_process) = found.unwrap_or_default();
        let (context, recorded) = self.begin(&parent, in_process);
        let record = recorded.then(|| {
            let mut record = Box::new(SpanRecord {
                trace: context
                    .trace()
                    .cloned()
                    .unwrap_or_else(|| TraceContext::root(false)),
                parent: parent.trace().map(TraceContext::span_id),
                name: Cow::Borrowed(attributes.metadata().name()),
                kind: SpanKind::Internal,
                began: SystemTime::now(),
                started: Instant::now(),
                nanoseconds: 0,
                attributes: Vec::new(),
                events: Vec::new(),
                links: Vec::new(),
                failed: None,
                dropped_attributes: 0,
                dropped_events: 0,
                correlation: context.correlation().map(|id| Arc::clone(id.shared())),
                tenant: context.shared_tenant().cloned(),
            });
            attributes.record(&mut SpanFields {
                record: &mut record,
                redaction: &self.shared().redaction,
            });
            record
        });
        if let Some(span) = seen.span(id) {
            span.extensions_mut().insert(SpanData { context, record });
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, seen: Seen<'_, S>) {
        if let Some(span) = seen.span(id)
            && let Some(data) = span.extensions_mut().get_mut::<SpanData>()
            && let Some(record) = &mut data.record
        {
            values.record(&mut SpanFields {
                record,
                redaction: &self.shared().redaction,
            });
        }
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, seen: Seen<'_, S>) {
        let linked = nearest(seen.span(follows), |data| data.context.trace().cloned());
        if let Some(Some(linked)) = linked
            && let Some(span) = seen.span(id)
            && let Some(data) = span.extensions_mut().get_mut::<SpanData>()
            && let Some(record) = &mut data.record
            && record.links.len() < LINKS
        {
            record.links.push(linked);
        }
    }

    fn on_event(&self, event: &Event<'_>, seen: Seen<'_, S>) {
        let metadata = event.metadata();
        let here = seen.current_span();
        if self.shared().logs(metadata) {
            let context = context::innermost_scope(here.id())
                .or_else(|| nearest(seen.event_span(event), |data| data.context.clone()))
                .or_else(context::scope)
                .unwrap_or_default();
            self.logs.write(event, &context, &self.shared().redaction);
        }
        if self.shared().traces.is_none() || !traced(metadata) {
            return;
        }
        if let Some(span) = seen.event_span(event)
            && let Some(data) = span.extensions_mut().get_mut::<SpanData>()
            && let Some(record) = &mut data.record
            // Of a trace that is exported only if it fails, only what may be about the failure.
            && (record.trace.sampled() || *metadata.level() <= Level::WARN)
        {
            let mut fields = EventFields {
                message: String::new(),
                attributes: vec![(
                    Cow::Borrowed("level"),
                    crate::span::Value::Text(Cow::Borrowed(metadata.level().as_str())),
                )],
                redaction: &self.shared().redaction,
            };
            event.record(&mut fields);
            if *metadata.level() == Level::ERROR && record.failed.is_none() {
                record.failed = Some(Cow::Owned(fields.message.clone()));
            }
            record.event(SpanEvent {
                name: Cow::Owned(fields.message),
                at: SystemTime::now(),
                attributes: fields.attributes,
            });
        }
    }

    fn on_close(&self, id: Id, seen: Seen<'_, S>) {
        let Some(traces) = &self.shared().traces else {
            return;
        };
        let Some(data) = seen
            .span(&id)
            .and_then(|span| span.extensions_mut().remove::<SpanData>())
        else {
            return;
        };
        let Some(mut record) = data.record else {
            return;
        };
        let took = record.started.elapsed();
        record.nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if !record.trace.sampled() {
            if record.failed.is_some() {
                traces.kept_errors.increment();
            } else if traces.slow.is_some_and(|slow| took > slow) {
                traces.kept_slow.increment();
            } else {
                return;
            }
        }
        traces.queue.push(*record);
    }
}

/// Links of one span.
const LINKS: usize = 32;
