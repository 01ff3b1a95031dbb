//! What a `tracing` span holds for us: the context it gives to what runs inside it, and what will be
//! exported of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tracing::Dispatch;
use tracing_subscriber::Registry;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use crate::context::Context;
use crate::propagation::{SpanId, TraceContext};

/// In the extensions of every span that the telemetry layer has seen.
pub(crate) struct SpanData {
    pub(crate) context: Context,
    /// Absent when nothing will be exported of it.
    pub(crate) record: Option<Box<SpanRecord>>,
}

impl SpanData {
    /// Whether spans inside this one are exported, so that it is worth making them.
    pub(crate) fn records_children(&self) -> bool {
        self.record.is_some() && self.context.trace().is_some_and(TraceContext::sampled)
    }
}

/// A span as it is exported.
#[derive(Clone, Debug)]
pub(crate) struct SpanRecord {
    pub(crate) trace: TraceContext,
    pub(crate) parent: Option<SpanId>,
    pub(crate) name: Cow<'static, str>,
    pub(crate) kind: SpanKind,
    pub(crate) began: SystemTime,
    pub(crate) started: Instant,
    pub(crate) nanoseconds: u64,
    pub(crate) attributes: Vec<(Cow<'static, str>, Value)>,
    pub(crate) events: Vec<SpanEvent>,
    pub(crate) links: Vec<TraceContext>,
    pub(crate) failed: Option<Cow<'static, str>>,
    pub(crate) dropped_attributes: u32,
    pub(crate) dropped_events: u32,
    pub(crate) correlation: Option<Arc<str>>,
    pub(crate) tenant: Option<Arc<str>>,
}

/// Attributes of one span or event; more are counted and dropped, as the specification suggests 128.
const ATTRIBUTES: usize = 64;
/// Events of one span.
const EVENTS: usize = 64;

impl SpanRecord {
    pub(crate) fn attribute(&mut self, key: impl Into<Cow<'static, str>>, value: Value) {
        let key = key.into();
        if let Some(there) = self.attributes.iter_mut().find(|(name, _)| *name == key) {
            there.1 = value;
        } else if self.attributes.len() < ATTRIBUTES {
            self.attributes.push((key, value));
        } else {
            self.dropped_attributes += 1;
        }
    }

    pub(crate) fn event(&mut self, event: SpanEvent) {
        if self.events.len() < EVENTS {
            self.events.push(event);
        } else {
            self.dropped_events += 1;
        }
    }

    /// About what it occupies; the queue is bounded by it.
    pub(crate) fn size(&self) -> usize {
        let attributes = |list: &[(Cow<'static, str>, Value)]| {
            list.iter()
                .map(|(_, value)| 40 + value.size())
                .sum::<usize>()
        };
        let events = self.events.iter();
        200 + attributes(&self.attributes)
            + events
                .map(|event| 64 + attributes(&event.attributes))
                .sum::<usize>()
            + self.failed.as_ref().map_or(0, |text| text.len())
    }
}

/// Something that happened during a span.
#[derive(Clone, Debug)]
pub(crate) struct SpanEvent {
    pub(crate) name: Cow<'static, str>,
    pub(crate) at: SystemTime,
    pub(crate) attributes: Vec<(Cow<'static, str>, Value)>,
}

/// The role of a span in a call; the numbers are those of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    Internal = 1,
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

impl SpanKind {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [
            ("internal", Self::Internal),
            ("server", Self::Server),
            ("client", Self::Client),
            ("producer", Self::Producer),
            ("consumer", Self::Consumer),
        ]
        .into_iter()
        .find_map(|(word, kind)| text.eq_ignore_ascii_case(word).then_some(kind))
    }
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(Cow<'static, str>),
}

impl Value {
    fn size(&self) -> usize {
        match self {
            Self::Text(Cow::Owned(text)) => text.len(),
            _ => 0,
        }
    }
}

/// The context of the current span, or of the nearest one around it that has one.
pub(crate) fn current() -> Option<Context> {
    tracing::dispatcher::get_default(|dispatch| {
        let current = dispatch.current_span();
        let id = current.id()?;
        context_of(dispatch, id)
    })
}

fn context_of(dispatch: &Dispatch, id: &tracing::span::Id) -> Option<Context> {
    let registry = dispatch.downcast_ref::<Registry>()?;
    nearest(registry.span(id), |data| data.context.clone())
}

/// Changes what a span holds; nothing where our layer has not seen it.
#[cfg(feature = "http")]
pub(crate) fn edit<T>(span: &tracing::Span, edit: impl FnOnce(&mut SpanData) -> T) -> Option<T> {
    span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        let mut extensions = span.extensions_mut();
        extensions.get_mut::<SpanData>().map(edit)
    })
    .flatten()
}

/// Reads the data of a span, or of the nearest one around it that has some.
pub(crate) fn nearest<'a, S, T>(
    mut span: Option<SpanRef<'a, S>>,
    read: impl FnOnce(&SpanData) -> T,
) -> Option<T>
where
    S: LookupSpan<'a>,
{
    while let Some(here) = span {
        if let Some(data) = here.extensions().get::<SpanData>() {
            return Some(read(data));
        }
        span = here.parent();
    }
    None
}
