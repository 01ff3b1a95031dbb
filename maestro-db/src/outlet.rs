//! A stream written as an async block that hands out items.
//!
//! The stream of a statement owns its connection and borrows from it at once, which no combinator
//! can say; an async block can.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use parking_lot::Mutex;

/// Where the block puts its items.
pub(crate) struct Outlet<T>(Arc<Mutex<Option<T>>>);

impl<T> Outlet<T> {
    /// Hands one item out; goes on when the consumer asks for the next.
    ///
    /// Never waits for anything but the consumer, and is polled only by it.
    pub(crate) async fn put(&self, item: T) {
        *self.0.lock() = Some(item);
        let mut handed_out = false;
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut handed_out, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// A stream of the items that `work` puts into the outlet, and of its error.
pub(crate) fn stream<'e, T, E, F>(work: impl FnOnce(Outlet<T>) -> F) -> BoxStream<'e, Result<T, E>>
where
    T: Send + 'e,
    E: 'e,
    F: Future<Output = Result<(), E>> + Send + 'e,
{
    let place = Arc::new(Mutex::new(None));
    let work = work(Outlet(Arc::clone(&place)));
    Box::pin(Items {
        place,
        work: Some(Box::pin(work)),
    })
}

struct Items<'e, T, E> {
    place: Arc<Mutex<Option<T>>>,
    /// `None` once it has ended: it must not be polled again, and what it owns is free.
    work: Option<BoxFuture<'e, Result<(), E>>>,
}

impl<T, E> Stream for Items<'_, T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T, E>>> {
        let Some(work) = &mut self.work else {
            return Poll::Ready(None);
        };
        match work.as_mut().poll(cx) {
            Poll::Pending => match self.place.lock().take() {
                Some(item) => Poll::Ready(Some(Ok(item))),
                None => Poll::Pending,
            },
            Poll::Ready(end) => {
                self.work = None;
                Poll::Ready(end.err().map(Err))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn items_come_in_order_and_the_error_comes_last() {
        let items = stream(|outlet| async move {
            for n in 0..3 {
                outlet.put(n).await;
                tokio::task::yield_now().await;
            }
            Err("end")
        });
        let items: Vec<_> = items.collect().await;
        assert_eq!(items, [Ok(0), Ok(1), Ok(2), Err("end")]);
    }

    #[tokio::test]
    async fn what_the_block_owns_is_free_when_the_stream_has_ended() {
        let owned = Arc::new(());
        let kept = Arc::clone(&owned);
        let mut items = stream::<u8, (), _>(|outlet| async move {
            outlet.put(1).await;
            drop(kept);
            Ok(())
        });
        assert_eq!(items.next().await, Some(Ok(1)));
        assert_eq!(Arc::strong_count(&owned), 2);
        assert_eq!(items.next().await, None);
        assert_eq!(Arc::strong_count(&owned), 1);
        assert_eq!(items.next().await, None);
    }
}
