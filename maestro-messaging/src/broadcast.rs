//! Fan-out to whoever listens in this process, by key: for server-sent events and the like.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use parking_lot::Mutex;

/// Hands values to the local subscribers of their key, and to nobody else.
///
/// Every subscriber has a buffer of its own. One that does not keep up loses values and is told how
/// many; it slows down neither the sender nor other subscribers. Nothing is kept for those who come
/// later, and nothing remains of those who go. Clones are the same broadcast.
///
/// It knows only what is sent in this process: a subscription's queue is shared by all replicas, so
/// an event reaches the listeners of the replica that handles it.
///
/// ```
/// use maestro_messaging::{Broadcast, Lag, Missed};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let runs = Broadcast::<u64, &str>::new(64, Lag::DropOldest);
/// let mut run_7 = runs.subscribe(7);
/// assert_eq!(runs.send(&7, "started"), 1);      // usually in the handler of an event
/// assert_eq!(runs.send(&8, "started"), 0);      // nobody listens to 8
/// assert_eq!(runs.keys(), 1);                   // and nothing is kept for it
/// assert_eq!(run_7.recv().await, Some(Ok("started")));
/// # }
/// ```
pub struct Broadcast<K, T> {
    shared: Arc<Shared<K, T>>,
}

/// What becomes of a subscriber whose buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lag {
    /// It loses the oldest values, is told how many, and goes on: for states, where the newest
    /// counts.
    #[default]
    DropOldest,
    /// It gets what its buffer holds, is told that it missed the rest, and its stream ends: for
    /// sequences, which it then loads anew.
    Disconnect,
}

/// So many values were lost to this subscriber at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} values were missed: the subscriber did not keep up")]
pub struct Missed(pub u64);

struct Shared<K, T> {
    capacity: usize,
    lag: Lag,
    subscribers: Mutex<HashMap<K, Vec<SharedBuffer<T>>>>,
}

type SharedBuffer<T> = Arc<Mutex<Buffer<T>>>;

struct Buffer<T> {
    values: VecDeque<T>,
    /// Lost before the first value of the buffer, or, when cut off, after the last.
    missed: u64,
    cut_off: bool,
    /// The broadcast is gone: what is here is all.
    ended: bool,
    waker: Option<Waker>,
}

impl<K: Eq + Hash + Clone, T: Clone> Broadcast<K, T> {
    /// A broadcast whose subscribers buffer at most so many values, at least one.
    #[must_use]
    pub fn new(capacity: usize, lag: Lag) -> Self {
        Self {
            shared: Arc::new(Shared {
                capacity: capacity.max(1),
                lag,
                subscribers: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Hands a value to every subscriber of the key; returns how many there are. Never waits.
    pub fn send(&self, key: &K, value: T) -> usize {
        let subscribers = self.shared.subscribers.lock();
        let Some(subscribers) = subscribers.get(key) else {
            return 0;
        };
        for buffer in subscribers {
            let mut buffer = buffer.lock();
            buffer.push(value.clone(), self.shared.capacity, self.shared.lag);
        }
        subscribers.len()
    }

    /// Listens to a key from here on, until it is dropped.
    #[must_use]
    pub fn subscribe(&self, key: K) -> Subscriber<K, T> {
        let buffer = Arc::new(Mutex::new(Buffer {
            values: VecDeque::new(),
            missed: 0,
            cut_off: false,
            ended: false,
            waker: None,
        }));
        let mut subscribers = self.shared.subscribers.lock();
        subscribers
            .entry(key.clone())
            .or_default()
            .push(Arc::clone(&buffer));
        drop(subscribers);
        Subscriber {
            key,
            buffer,
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Keys that somebody listens to.
    pub fn keys(&self) -> usize {
        self.shared.subscribers.lock().len()
    }
}

impl<K, T> Clone for Broadcast<K, T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K, T> fmt::Debug for Broadcast<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broadcast")
            .field("capacity", &self.shared.capacity)
            .field("lag", &self.shared.lag)
            .field("keys", &self.shared.subscribers.lock().len())
            .finish_non_exhaustive()
    }
}

impl<T> Buffer<T> {
    fn push(&mut self, value: T, capacity: usize, lag: Lag) {
        if self.cut_off {
            self.missed += 1;
            return;
        }
        if self.values.len() >= capacity {
            self.missed += 1;
            match lag {
                Lag::DropOldest => drop(self.values.pop_front()),
                Lag::Disconnect => {
                    self.cut_off = true;
                    return;
                }
            }
        }
        self.values.push_back(value);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn next(&mut self) -> Poll<Option<Result<T, Missed>>> {
        if !self.cut_off && self.missed > 0 {
            return Poll::Ready(Some(Err(Missed(std::mem::take(&mut self.missed)))));
        }
        if let Some(value) = self.values.pop_front() {
            return Poll::Ready(Some(Ok(value)));
        }
        if self.cut_off && self.missed > 0 {
            return Poll::Ready(Some(Err(Missed(std::mem::take(&mut self.missed)))));
        }
        if self.cut_off || self.ended {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl<K, T> Drop for Shared<K, T> {
    fn drop(&mut self) {
        for buffer in self.subscribers.get_mut().values().flatten() {
            let mut buffer = buffer.lock();
            buffer.ended = true;
            if let Some(waker) = buffer.waker.take() {
                waker.wake();
            }
        }
    }
}

/// One listener of one key; a [`Stream`] of its values. Dropping it ends it.
pub struct Subscriber<K: Eq + Hash, T> {
    key: K,
    buffer: SharedBuffer<T>,
    shared: std::sync::Weak<Shared<K, T>>,
}

impl<K: Eq + Hash, T> Subscriber<K, T> {
    /// The next value, or how many were missed at this place; `None` when the broadcast is gone or
    /// this subscriber was disconnected. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Result<T, Missed>> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Option<Result<T, Missed>>> {
        let mut buffer = self.buffer.lock();
        let next = buffer.next();
        if next.is_pending() {
            buffer.waker = Some(cx.waker().clone());
        }
        next
    }
}

impl<K: Eq + Hash, T> Stream for Subscriber<K, T> {
    type Item = Result<T, Missed>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(cx)
    }
}

impl<K: Eq + Hash, T> Drop for Subscriber<K, T> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut subscribers = shared.subscribers.lock();
        if let Some(of_key) = subscribers.get_mut(&self.key) {
            of_key.retain(|buffer| !Arc::ptr_eq(buffer, &self.buffer));
            if of_key.is_empty() {
                subscribers.remove(&self.key);
            }
        }
        // Before the upgraded reference, which may be the last one and locks again.
        drop(subscribers);
    }
}

impl<K: Eq + Hash + fmt::Debug, T> fmt::Debug for Subscriber<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};

    #[tokio::test]
    async fn a_subscriber_sees_its_key_alone_and_only_what_comes_after_it() {
        let broadcast = Broadcast::new(8, Lag::DropOldest);
        assert_eq!(broadcast.send(&"a", 0), 0);
        let mut one = broadcast.subscribe("a");
        let mut other = broadcast.subscribe("b");
        assert_eq!(broadcast.send(&"a", 1), 1);
        assert_eq!(broadcast.send(&"b", 2), 1);
        assert_eq!(one.next().await, Some(Ok(1)));
        assert_eq!(other.recv().await, Some(Ok(2)));
        assert_eq!(one.recv().now_or_never(), None);
    }

    #[tokio::test]
    async fn one_that_does_not_keep_up_is_told_how_much_it_missed_and_goes_on() {
        let broadcast = Broadcast::new(3, Lag::DropOldest);
        let mut slow = broadcast.subscribe(1);
        for value in 0..10 {
            broadcast.send(&1, value);
        }
        assert_eq!(slow.recv().await, Some(Err(Missed(7))));
        for value in 7..10 {
            assert_eq!(slow.recv().await, Some(Ok(value)));
        }
        broadcast.send(&1, 10);
        assert_eq!(slow.recv().await, Some(Ok(10)));
    }

    #[tokio::test]
    async fn one_that_is_disconnected_gets_what_it_had_then_the_gap_then_the_end() {
        let broadcast = Broadcast::new(2, Lag::Disconnect);
        let mut slow = broadcast.subscribe(1);
        for value in 0..5 {
            broadcast.send(&1, value);
        }
        let seen: Vec<_> = std::iter::from_fn(|| slow.recv().now_or_never().unwrap()).collect();
        assert_eq!(seen, [Ok(0), Ok(1), Err(Missed(3))]);
    }

    #[tokio::test]
    async fn nothing_remains_of_those_who_go() {
        let broadcast = Broadcast::<_, u8>::new(2, Lag::DropOldest);
        let one = broadcast.subscribe(1);
        let another = broadcast.subscribe(1);
        drop(one);
        assert_eq!((broadcast.keys(), broadcast.send(&1, 0)), (1, 1));
        drop(another);
        assert_eq!((broadcast.keys(), broadcast.send(&1, 0)), (0, 0));
        let mut left = broadcast.subscribe(2);
        let waiting = tokio::spawn(async move { left.recv().await });
        tokio::task::yield_now().await;
        drop(broadcast);
        assert_eq!(waiting.await.unwrap(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_waiting_subscriber_is_woken_by_every_sender() {
        let broadcast = Broadcast::new(100_000, Lag::Disconnect);
        let mut subscriber = broadcast.subscribe(7);
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let broadcast = broadcast.clone();
            senders.spawn(async move {
                for value in 0..1_000 {
                    broadcast.send(&7, value);
                    tokio::task::yield_now().await;
                }
            });
        }
        let mut sum = 0_u64;
        for _ in 0..8_000 {
            sum += subscriber.recv().await.unwrap().unwrap();
        }
        assert_eq!(sum, 8 * (999 * 1_000 / 2));
        senders.join_all().await;
    }
}
