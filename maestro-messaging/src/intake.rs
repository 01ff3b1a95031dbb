//! Which deliveries are handled now, and together: one by one, in order of their keys, or in
//! batches. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::chains::Chains;
use crate::headers;
use crate::transport::Incoming;

/// How a subscription handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handling {
    Each,
    Ordered,
    Batch { size: usize, wait: Duration },
}

/// Deliveries that wait to be handled.
pub(crate) struct Intake {
    waiting: Waiting,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each subscription, and no other place for it"
)]
enum Waiting {
    /// At most one: the rest waits where it is.
    Each(Option<Incoming>),
    Ordered {
        chains: Chains<Incoming>,
        next: i64,
    },
    Batch {
        held: Vec<Incoming>,
        size: usize,
        wait: Duration,
        since: Option<Instant>,
    },
}

/// What one handler is given.
pub(crate) enum Job {
    One(Incoming),
    /// The next of its key begins when this has been settled.
    InOrder(Incoming, Option<String>),
    Batch(Vec<Incoming>),
}

impl Intake {
    pub(crate) fn new(handling: Handling) -> Self {
        let waiting = match handling {
            Handling::Each => Waiting::Each(None),
            Handling::Ordered => Waiting::Ordered {
                chains: Chains::new(),
                next: 0,
            },
            Handling::Batch { size, wait } => Waiting::Batch {
                held: Vec::with_capacity(size),
                size,
                wait,
                since: None,
            },
        };
        Self { waiting }
    }

    pub(crate) fn wants_more(&self) -> bool {
        match &self.waiting {
            Waiting::Each(held) => held.is_none(),
            // Bounded by the prefetch.
            Waiting::Ordered { .. } => true,
            Waiting::Batch { held, size, .. } => held.len() < *size,
        }
    }

    pub(crate) fn add(&mut self, incoming: Incoming, now: Instant) {
        match &mut self.waiting {
            Waiting::Each(held) => *held = Some(incoming),
            Waiting::Ordered { chains, next } => {
                let key = incoming
                    .properties
                    .headers()
                    .as_ref()
                    .and_then(|table| headers::text(table, headers::KEY));
                chains.add(*next, 0, key, incoming);
                *next += 1;
            }
            Waiting::Batch { held, since, .. } => {
                since.get_or_insert(now);
                held.push(incoming);
            }
        }
    }

    /// Whether deliveries wait here.
    pub(crate) fn holds_any(&self) -> bool {
        match &self.waiting {
            Waiting::Each(held) => held.is_some(),
            Waiting::Ordered { chains, .. } => chains.len() > 0,
            Waiting::Batch { held, .. } => !held.is_empty(),
        }
    }

    pub(crate) fn is_ready(&self, now: Instant) -> bool {
        match &self.waiting {
            Waiting::Each(held) => held.is_some(),
            Waiting::Ordered { chains, .. } => chains.is_ready(),
            Waiting::Batch { held, size, .. } => {
                held.len() >= *size || self.due().is_some_and(|due| due <= now)
            }
        }
    }

    /// When a batch that is not full is handled nevertheless.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.waiting {
            Waiting::Batch { since, wait, .. } => since.map(|since| since + *wait),
            _ => None,
        }
    }

    pub(crate) fn take(&mut self) -> Option<Job> {
        match &mut self.waiting {
            Waiting::Each(held) => held.take().map(Job::One),
            Waiting::Ordered { chains, .. } => {
                let item = chains.next(|_| true)?;
                chains.forget(&[item.id]);
                Some(Job::InOrder(item.row, item.key))
            }
            Waiting::Batch { held, since, .. } => {
                *since = None;
                (!held.is_empty()).then(|| Job::Batch(std::mem::take(held)))
            }
        }
    }

    /// A job in order was settled.
    pub(crate) fn done(&mut self, key: Option<&str>) {
        if let Waiting::Ordered { chains, .. } = &mut self.waiting {
            chains.sent(key);
        }
    }

    /// Takes what was not begun.
    pub(crate) fn give_back(&mut self) -> Vec<Incoming> {
        match &mut self.waiting {
            Waiting::Each(held) => held.take().into_iter().collect(),
            Waiting::Ordered { chains, .. } => chains
                .take_waiting()
                .into_iter()
                .map(|item| item.row)
                .collect(),
            Waiting::Batch { held, .. } => std::mem::take(held),
        }
    }
}
