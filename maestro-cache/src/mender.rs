//! Sends the invalidations that the server missed, as soon as it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::journal::{Deferred, Journal};
use crate::key::{Key, Keyspace};
use crate::server::Server;

/// Invalidations in one command: short enough that the server is not held up.
const BATCH: usize = 200;
/// How often it is looked whether the server is back, while there is something to send.
const PAUSE: Duration = Duration::from_millis(100);
/// Tombstones sent late outlive the longest load any region may allow (10 min).
const TOMBSTONE: Duration = Duration::from_mins(11);

/// Runs until `stop`.
pub(crate) async fn run(
    server: Server,
    keys: Keyspace,
    journal: Arc<Journal>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = journal.added.notified() => {}
        }
        while journal.len() > 0 {
            if !server.link.is_up() || !send(&server, &keys, &journal).await {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }
}

/// Sends one batch; false when the server did not take it.
async fn send(server: &Server, keys: &Keyspace, journal: &Journal) -> bool {
    let batch = journal.batch(BATCH);
    let mut entries: Vec<Key> = Vec::new();
    let mut markers: Vec<(Key, bool)> = Vec::new();
    for (what, _) in &batch {
        match what {
            Deferred::Entry { region, id } => entries.push(keys.entry(region, id)),
            Deferred::Tag(_) => markers.extend(what.marker().map(|m| (keys.marker(m), false))),
            _ => markers.extend(what.marker().map(|m| (keys.marker(m), true))),
        }
    }
    let sent = async {
        if !markers.is_empty() {
            server.mark(&markers).await?;
        }
        if !entries.is_empty() {
            server.remove(&entries, TOMBSTONE).await?;
        }
        Ok::<(), crate::error::Error>(())
    };
    match sent.await {
        Ok(()) => {
            journal.settle(&batch);
            if journal.len() == 0 {
                tracing::info!("invalidations that Redis had missed were sent");
            }
            true
        }
        Err(error) => {
            tracing::debug!(%error, "invalidations that Redis missed are still to be sent");
            false
        }
    }
}
