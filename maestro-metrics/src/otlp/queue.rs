//! Spans on their way to the exporter: bounded in number and in bytes, never waited for.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::handle::Counter;
use crate::metrics::{SPANS_DROPPED, SPANS_EXPORTED, SPANS_QUEUED};
use crate::registry::Registry;
use crate::span::SpanRecord;

/// Why a recorded span reached no collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The queue was full: the collector is slower than the service, or away.
    QueueFull,
    /// No answer, or one that asks to try again, after all attempts.
    Unreachable,
    /// The collector said no to the batch.
    Refused,
    /// The collector took the batch but not this span.
    Rejected,
    /// Still undelivered when the service ended.
    Shutdown,
}

impl DropReason {
    /// The word in labels.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
        }
    }

    pub(crate) const ALL: [Self; 5] = [
        Self::QueueFull,
        Self::Unreachable,
        Self::Refused,
        Self::Rejected,
        Self::Shutdown,
    ];
}

#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    /// Told when there is a batch, so that the exporter does not wait for its timer.
    pub(crate) ready: Notify,
    capacity: usize,
    exported: Counter,
    dropped: [Counter; DropReason::ALL.len()],
}

#[derive(Debug, Default)]
struct Waiting {
    spans: Vec<SpanRecord>,
    bytes: usize,
    closed: bool,
    /// Taken by the exporter, which has not said yet what became of them.
    taken: u64,
    /// The exporter was given up: all that it had taken is counted as lost, whatever it says later.
    abandoned: bool,
}

/// Spans of one request.
pub(crate) const BATCH: usize = 512;
/// Memory the queue may take, whatever its length: spans can have long attributes.
const BYTES: usize = 32 << 20;

impl Queue {
    pub(crate) fn new(capacity: usize, registry: &Registry) -> std::sync::Arc<Self> {
        let dropped = registry.family(&SPANS_DROPPED);
        let queue = std::sync::Arc::new(Self {
            waiting: Mutex::new(Waiting::default()),
            ready: Notify::new(),
            capacity,
            exported: registry.metric(&SPANS_EXPORTED),
            dropped: DropReason::ALL.map(|reason| dropped.with([reason.as_str()])),
        });
        let weak = std::sync::Arc::downgrade(&queue);
        registry.observe(&SPANS_QUEUED, [], move || {
            weak.upgrade()
                .map(|queue| queue.waiting.lock().spans.len() as f64)
        });
        queue
    }

    /// Takes a span, or drops and counts it.
    pub(crate) fn push(&self, span: SpanRecord) {
        let size = span.size();
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            drop(waiting);
            return self.dropped(DropReason::Shutdown, 1);
        }
        if waiting.spans.len() >= self.capacity || waiting.bytes + size > BYTES {
            drop(waiting);
            return self.dropped(DropReason::QueueFull, 1);
        }
        waiting.bytes += size;
        waiting.spans.push(span);
        let batch = waiting.spans.len() == BATCH.min(self.capacity);
        drop(waiting);
        if batch {
            self.ready.notify_one();
        }
    }

    /// Everything that waits, for the exporter, which then says what became of it.
    pub(crate) fn take(&self) -> Vec<SpanRecord> {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        waiting.taken += waiting.spans.len() as u64;
        std::mem::take(&mut waiting.spans)
    }

    /// Everything that waits; what comes later is dropped as too late.
    pub(crate) fn close(&self) -> Vec<SpanRecord> {
        self.waiting.lock().closed = true;
        self.take()
    }

    /// Gives the exporter up: what waits and what it has taken is lost.
    pub(crate) fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.abandoned = true;
        let lost = waiting.spans.len() as u64 + std::mem::take(&mut waiting.taken);
        waiting.spans.clear();
        drop(waiting);
        self.dropped(DropReason::Shutdown, lost);
    }

    /// Of the spans that were taken, so many were delivered.
    pub(crate) fn exported(&self, spans: u64) {
        self.settle(spans, || self.exported.add(spans));
    }

    /// Of the spans that were taken, so many are lost.
    pub(crate) fn lost(&self, reason: DropReason, spans: u64) {
        self.settle(spans, || self.dropped(reason, spans));
    }

    /// Counts what was taken, unless it has been counted as lost already.
    fn settle(&self, spans: u64, count: impl FnOnce()) {
        let mut waiting = self.waiting.lock();
        if !waiting.abandoned {
            waiting.taken = waiting.taken.saturating_sub(spans);
            // Inside the lock, so that whoever gives the exporter up sees it counted.
            count();
        }
    }

    fn dropped(&self, reason: DropReason, spans: u64) {
        self.dropped[reason as usize].add(spans);
    }

    /// Spans exported so far, and dropped by reason.
    pub(crate) fn totals(&self) -> (u64, [u64; DropReason::ALL.len()]) {
        let dropped = std::array::from_fn(|i| self.dropped[i].value());
        (self.exported.value(), dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::record;
    use super::*;

    #[test]
    fn what_an_exporter_that_was_given_up_had_taken_is_lost_once() {
        let queue = Queue::new(10, &Registry::detached());
        for _ in 0..5 {
            queue.push(record());
        }
        let taken = queue.take().len() as u64;
        queue.exported(2);
        queue.push(record());
        queue.abandon();
        queue.push(record());
        let lost = |queue: &Queue| queue.totals().1[DropReason::Shutdown as usize];
        assert_eq!((taken, lost(&queue)), (5, 3 + 1 + 1));
        // It says so too late.
        queue.exported(1);
        queue.lost(DropReason::Refused, 2);
        let (exported, dropped) = queue.totals();
        assert_eq!((exported, dropped.iter().sum::<u64>()), (2, 5));
    }
}
