//! The handle on a running consumer.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::attendance::Attendance;
use crate::consumer::{ConsumerTask, Spec};

/// How a consumer is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsumerState {
    /// Not consuming yet.
    Starting,
    /// Consuming everything it subscribed to.
    Consuming,
    /// Consuming, but not all of it, or slowly; why.
    Degraded(String),
    /// Not consuming, and trying to; why.
    Interrupted(String),
    /// Drained or closed.
    Stopped,
}

/// A handle on a running subscription. Dropping it changes nothing: the consumer belongs to the
/// client and runs until it is drained or the client is closed.
///
/// ```no_run
/// # async fn example(consumer: maestro_messaging::Consumer) {
/// use maestro_messaging::ConsumerState;
///
/// match consumer.state() {
///     ConsumerState::Degraded(why) | ConsumerState::Interrupted(why) => {
///         println!("{}: {why}", consumer.queue());
///     }
///     state => println!("{}: {state:?}", consumer.queue()),
/// }
/// let drained = consumer.drain().await; // this one alone; the client's others go on
/// println!("{} handed back, {} abandoned", drained.handed_back, drained.abandoned);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Consumer {
    pub(crate) queue: Arc<str>,
    pub(crate) dead_letter_queue: Arc<str>,
    pub(crate) attendance: Attendance,
    pub(crate) state: watch::Receiver<ConsumerState>,
    pub(crate) drain: CancellationToken,
    pub(crate) done: watch::Receiver<Option<Drained>>,
}

/// What a drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Deliveries that were not started and went back to the queue.
    pub handed_back: u64,
    /// Handlers that did not finish in time; their messages go back to the queue, their effects may
    /// be half-done.
    pub abandoned: u64,
}

impl Consumer {
    /// The queue's name.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// How it is now.
    pub fn state(&self) -> ConsumerState {
        self.state.borrow().clone()
    }

    /// Waits until it consumes everything it subscribed to, or is stopped. A service does not need
    /// it; a test does.
    pub async fn ready(&self) {
        let mut state = self.state.clone();
        let settled = |state: &ConsumerState| {
            matches!(state, ConsumerState::Consuming | ConsumerState::Stopped)
        };
        // An error means that the task is gone, which is stopped too.
        let _ = state.wait_for(settled).await;
    }

    /// Stops receiving, finishes the handlers in flight, hands the rest back, and ends; bounded by
    /// `MAESTRO_MESSAGING_DRAIN_TIMEOUT`. Dropping the future does not stop the drain.
    pub async fn drain(&self) -> Drained {
        self.drain.cancel();
        let mut done = self.done.clone();
        match done.wait_for(Option::is_some).await {
            Ok(drained) => drained.unwrap_or_default(),
            Err(_) => Drained::default(),
        }
    }

    /// From the moment at which [`drain`](Self::drain) returns, when the task itself may have a few
    /// instructions left.
    pub(crate) fn has_ended(&self) -> bool {
        // An error means that the task is gone.
        self.done.has_changed().is_err() || self.done.borrow().is_some()
    }
}

/// Runs a consumer's task and gives its handle.
pub(crate) fn spawn(
    spec: &Spec,
    task: impl FnOnce(watch::Sender<ConsumerState>, CancellationToken) -> ConsumerTask,
) -> (Consumer, JoinHandle<()>) {
    let (state, watching) = watch::channel(ConsumerState::Starting);
    let (finished, done) = watch::channel(None);
    let drain = CancellationToken::new();
    let task = task(state, drain.clone());
    let handle = tokio::spawn(async move {
        let drained = task.run().await;
        finished.send_replace(Some(drained));
    });
    let consumer = Consumer {
        queue: spec.queue.as_str().into(),
        dead_letter_queue: spec.dead_letter_queue.as_str().into(),
        attendance: spec.attendance.clone(),
        state: watching,
        drain,
        done,
    };
    (consumer, handle)
}
