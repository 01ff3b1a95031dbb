//! Bindings to exchanges of services that may not be there yet, and bindings to take away.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::client::Inner;
use crate::consumer::Spec;
use crate::error::ErrorKind;
use crate::topology::Binding;

/// What is still to be bound or unbound on the current connection.
pub(crate) struct Foreign {
    inner: Arc<Inner>,
    spec: Arc<Spec>,
    open: Vec<Binding>,
    retired: Vec<Binding>,
    backoff: Backoff,
    next: Instant,
}

impl Foreign {
    pub(crate) fn new(inner: &Arc<Inner>, spec: &Arc<Spec>) -> Self {
        Self {
            inner: Arc::clone(inner),
            spec: Arc::clone(spec),
            open: spec.topology.foreign.clone(),
            retired: spec.retired.clone(),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
            next: Instant::now(),
        }
    }

    /// What is missing, for the health of the service.
    pub(crate) fn missing(&self) -> Option<String> {
        let first = self.open.first()?;
        Some(format!(
            "waiting for exchange `{}` (is the service that publishes `{}` running?)",
            first.exchange, first.routing_key
        ))
    }

    /// Tries what is open; resolves when something changed, with what is still missing. It takes
    /// several round trips: a caller that has other things to do goes on polling the same future.
    pub(crate) async fn progress(mut self) -> (Self, Option<String>) {
        loop {
            if self.open.is_empty() && self.retired.is_empty() {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(self.next).await;
            let before = self.open.len() + self.retired.len();
            let mut at = 0;
            while let Some(binding) = self.open.get(at) {
                match self.inner.broker.bind_foreign(binding).await {
                    Ok(()) => {
                        self.open.remove(at);
                    }
                    Err(error) => {
                        tracing::debug!(queue = self.spec.queue, error = %error, "a binding has to wait");
                        at += 1;
                    }
                }
            }
            at = 0;
            while let Some(binding) = self.retired.get(at) {
                match self.inner.broker.unbind(binding).await {
                    Ok(()) => {
                        self.retired.remove(at);
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        self.retired.remove(at);
                    }
                    Err(_) => at += 1,
                }
            }
            self.next = Instant::now() + self.backoff.next();
            if self.open.len() + self.retired.len() != before {
                let missing = self.missing();
                return (self, missing);
            }
        }
    }
}
