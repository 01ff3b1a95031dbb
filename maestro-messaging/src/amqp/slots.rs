//! The publishes in flight on one channel.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use lapin::Confirmation;
use parking_lot::Mutex;

use crate::amqp::attribution::Sequence;

pub(super) type Confirming<'c> =
    Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'c>>;

/// The publishes in flight, polled only when woken. The wakers live as long as the channel: a
/// publish allocates none.
pub(super) struct Slots<'c> {
    all: Vec<Slot<'c>>,
    vacant: Vec<usize>,
    list: Arc<ReadyList>,
}

struct Slot<'c> {
    sequence: Sequence,
    future: Option<Confirming<'c>>,
    flag: Arc<SlotWaker>,
    waker: Waker,
}

/// Slots that were woken, in the order of waking: what the driver completed first comes first.
struct ReadyList {
    ready: Mutex<Vec<usize>>,
    task: AtomicWaker,
}

struct SlotWaker {
    index: usize,
    queued: AtomicBool,
    list: Arc<ReadyList>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.ready.lock().push(self.index);
        }
        self.list.task.wake();
    }
}

impl<'c> Slots<'c> {
    pub(super) fn new(window: usize) -> Self {
        let list = Arc::new(ReadyList {
            ready: Mutex::new(Vec::with_capacity(window)),
            task: AtomicWaker::new(),
        });
        let all = (0..window)
            .map(|index| {
                let flag = Arc::new(SlotWaker {
                    index,
                    queued: AtomicBool::new(false),
                    list: Arc::clone(&list),
                });
                Slot {
                    sequence: 0,
                    future: None,
                    waker: Waker::from(Arc::clone(&flag)),
                    flag,
                }
            })
            .collect();
        Self {
            all,
            vacant: (0..window).rev().collect(),
            list,
        }
    }

    /// Wakes this task when any publish made progress.
    pub(super) fn register(&self, waker: &Waker) {
        self.list.task.register(waker);
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn has_room(&self) -> bool {
        !self.vacant.is_empty()
    }

    pub(super) fn take_ready(&self) -> Vec<usize> {
        std::mem::take(&mut *self.list.ready.lock())
    }

    pub(super) fn start(
        &mut self,
        sequence: Sequence,
        future: Confirming<'c>,
    ) -> Option<(usize, Poll<lapin::Result<Confirmation>>)> {
        let index = self.vacant.pop()?;
        let slot = self.all.get_mut(index)?;
        slot.sequence = sequence;
        slot.future = Some(future);
        Some((index, self.poll(index)))
    }

    pub(super) fn poll(&mut self, index: usize) -> Poll<lapin::Result<Confirmation>> {
        let Some(slot) = self.all.get_mut(index) else {
            return Poll::Pending;
        };
        // Before the poll: a wake during it has to be noted again.
        slot.flag.queued.store(false, Ordering::Release);
        let Some(future) = slot.future.as_mut() else {
            return Poll::Pending;
        };
        let polled = future.as_mut().poll(&mut Context::from_waker(&slot.waker));
        if polled.is_ready() {
            slot.future = None;
        }
        polled
    }

    /// Frees a slot whose publish was answered.
    pub(super) fn free(&mut self, index: usize) -> Option<Sequence> {
        let sequence = self.all.get(index)?.sequence;
        self.vacant.push(index);
        Some(sequence)
    }
}
