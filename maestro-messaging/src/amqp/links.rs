//! The connections that consume: one, and a further one whenever all channels of the others are taken.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::amqp::link::{self, Link, LinkState, Live, Purpose};
use crate::config::MessagingConfig;

/// Never empty until closed. A further connection stays: the subscriptions of a service do not change
/// much while it runs.
#[derive(Debug)]
pub(crate) struct Links {
    config: Arc<MessagingConfig>,
    first: watch::Receiver<LinkState>,
    /// `None` once closed.
    all: Mutex<Option<Vec<Link>>>,
}

/// A consumer's share of its connection.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) live: Arc<Live>,
    _permit: OwnedSemaphorePermit,
}

impl Links {
    pub(crate) fn start(config: &Arc<MessagingConfig>) -> Self {
        let first = Link::start(config, Purpose::Consume);
        Self {
            config: Arc::clone(config),
            first: first.watch(),
            all: Mutex::new(Some(vec![first])),
        }
    }

    /// The first connection, which declares and counts as well; `None` when the client is closed.
    pub(crate) async fn first(&self) -> Option<Arc<Live>> {
        link::up(&mut self.first.clone()).await
    }

    /// Waits for a connection with room for a consumer; `None` when the client is closed.
    pub(crate) async fn place(&self) -> Option<Place> {
        let mut at = 0;
        loop {
            let live = link::up(&mut self.watch(at)?).await?;
            if let Some(permit) = live.place() {
                return Some(Place {
                    live,
                    _permit: permit,
                });
            }
            at += 1;
        }
    }

    /// The state of each connection.
    pub(crate) fn states(&self) -> Vec<LinkState> {
        match &*self.all.lock() {
            Some(all) => all
                .iter()
                .map(|link| link.watch().borrow().clone())
                .collect(),
            None => vec![LinkState::Closed],
        }
    }

    /// Closes them all.
    pub(crate) async fn close(&self) {
        let all = self.all.lock().take();
        for link in all.into_iter().flatten() {
            link.close().await;
        }
    }

    /// Follows a connection, which is begun if there are none behind it yet.
    fn watch(&self, at: usize) -> Option<watch::Receiver<LinkState>> {
        let mut all = self.all.lock();
        let all = all.as_mut()?;
        if all.len() <= at {
            tracing::info!(
                connections = all.len() + 1,
                "the channels of the broker connection are taken; opening a further one for consumers"
            );
            all.push(Link::start(&self.config, Purpose::Consume));
        }
        all.get(at).map(Link::watch)
    }
}
