//! Messages whose handlers run in this process: a delivery that comes again meanwhile does not run
//! beside them.
//!
//! A connection that is lost under a running handler makes the broker deliver its message again.
//! The second delivery waits for the first one's end and is only acknowledged if that went well.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

/// The messages in hand of one subscription; a sender where somebody waits for the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashMap<Uuid, Option<watch::Sender<bool>>>>>);

/// Held while a message is in hand. Dropping it without [`succeeded`](Self::succeeded) lets the
/// next delivery try.
#[derive(Debug)]
pub(crate) struct Turn {
    id: Uuid,
    succeeded: bool,
    all: InFlight,
}

impl InFlight {
    /// The turn to handle a message; `None` if another delivery of it has just been handled.
    pub(crate) async fn enter(&self, id: Uuid) -> Option<Turn> {
        loop {
            let mut earlier = match self.0.lock().entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(None);
                    return Some(Turn {
                        id,
                        succeeded: false,
                        all: self.clone(),
                    });
                }
                Entry::Occupied(mut entry) => entry
                    .get_mut()
                    .get_or_insert_with(|| watch::Sender::new(false))
                    .subscribe(),
            };
            // Ends with an error when the turn ended without success.
            if earlier.wait_for(|succeeded| *succeeded).await.is_ok() {
                return None;
            }
        }
    }
}

impl Turn {
    /// The message was handled.
    pub(crate) fn succeeded(&mut self) {
        self.succeeded = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let waiting = self.all.0.lock().remove(&self.id);
        if let Some(Some(waiting)) = waiting
            && self.succeeded
        {
            waiting.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_delivery_waits_and_is_not_handled_when_the_first_succeeded() {
        let all = InFlight::default();
        let id = Uuid::now_v7();
        let mut first = all.enter(id).await.unwrap();
        let second = tokio::spawn({
            let all = all.clone();
            async move { all.enter(id).await.is_none() }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        first.succeeded();
        drop(first);
        assert!(second.await.unwrap());
        assert!(all.enter(id).await.is_some(), "nothing is remembered");
    }

    #[tokio::test]
    async fn a_second_delivery_is_handled_when_the_first_failed() {
        let all = InFlight::default();
        let id = Uuid::now_v7();
        let first = all.enter(id).await.unwrap();
        let second = tokio::spawn({
            let all = all.clone();
            async move { all.enter(id).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(second.await.unwrap());
    }
}
