//! Bodies that are counted as they pass.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

pin_project_lite::pin_project! {
    /// A body of unknown length: counts its bytes, and calls `end` with them once it has been sent
    /// or dropped.
    pub(crate) struct Tracked<F: FnOnce(u64)> {
        #[pin]
        body: Body,
        bytes: u64,
        end: Option<F>,
    }

    impl<F: FnOnce(u64)> PinnedDrop for Tracked<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(end) = this.end.take() {
                end(*this.bytes);
            }
        }
    }
}

impl<F: FnOnce(u64)> Tracked<F> {
    pub(crate) fn new(body: Body, end: F) -> Self {
        Self {
            body,
            bytes: 0,
            end: Some(end),
        }
    }
}

impl<F: FnOnce(u64)> http_body::Body for Tracked<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = std::task::ready!(this.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                *this.bytes += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            }
            // The end, or an error, after which nothing comes.
            _ => {
                if let Some(end) = this.end.take() {
                    end(*this.bytes);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of a request's body: announced, or counted while the handler reads it.
pub(crate) enum RequestSize {
    Known(u64),
    Counted(Arc<AtomicU64>),
}

impl RequestSize {
    /// Wraps a body whose length is not known.
    pub(crate) fn of(body: Body) -> (Self, Body) {
        if let Some(exact) = http_body::Body::size_hint(&body).exact() {
            return (Self::Known(exact), body);
        }
        let counter = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            body,
            counter: Arc::clone(&counter),
        };
        (Self::Counted(counter), Body::new(counted))
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Known(bytes) => *bytes,
            Self::Counted(counter) => counter.load(Ordering::Relaxed),
        }
    }
}

pin_project_lite::pin_project! {
    struct Counted {
        #[pin]
        body: Body,
        counter: Arc<AtomicU64>,
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        let frame = std::task::ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.counter
                .fetch_add(data.remaining() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
