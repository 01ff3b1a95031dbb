//! The connection that brings invalidations: one for the process, with a heartbeat that renews the
//! lease on what is served from memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::clock::{GLANCE, nanos};
use crate::coherence::Coherence;
use crate::config::CacheConfig;
use crate::connection::{Connection, Event};
use crate::key::{Invalidated, Keyspace};
use crate::link::Link;
use crate::server::parse_time;

/// With the deadline of a heartbeat it is the bound on how old a value served from memory can be after
/// its invalidation has finished elsewhere.
const BOUND: Duration = Duration::from_secs(1);
/// Between two heartbeats: a hit's clock may be behind by the rest.
const HEARTBEAT: Duration = BOUND.saturating_sub(GLANCE);

/// How old a value can be, after its invalidation has finished elsewhere, for somebody who is not told of
/// invalidations at once.
pub(crate) fn bound(config: &CacheConfig) -> Duration {
    BOUND + config.command_timeout
}

/// Keeps the connection alive and the coherence state informed until `stop`; `settled` turns true
/// with the outcome of the first attempt: the first heartbeat was answered, or something failed.
pub(crate) async fn run(
    link: Arc<Link>,
    keys: Keyspace,
    coherence: Arc<Coherence>,
    settled: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut attempt = 0;
    let mut since = Instant::now();
    loop {
        let lost = Arc::new(Notify::new());
        let on_event = listener(&link, &keys, &coherence, &lost);
        let opened = tokio::select! {
            () = stop.cancelled() => return,
            opened = open(&link, &keys, on_event) => opened,
        };
        if let Ok(connection) = opened {
            coherence.connected();
            link.metrics.tracking.set(1.0);
            attempt = 0;
            tokio::select! {
                () = stop.cancelled() => {}
                () = lost.notified() => {}
                () = beat(&link, &coherence, &connection, &settled) => {}
            }
            settled.send_replace(true);
            coherence.disconnected();
            link.metrics.tracking.set(0.0);
            if stop.is_cancelled() {
                return;
            }
            since = Instant::now();
        } else {
            settled.send_replace(true);
            attempt += 1;
        }
        let pause = backoff::pause(attempt, since.elapsed(), fastrand::f64());
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

fn listener(
    link: &Arc<Link>,
    keys: &Keyspace,
    coherence: &Arc<Coherence>,
    lost: &Arc<Notify>,
) -> impl Fn(Event) + Send + Sync + 'static {
    let (link, keys) = (Arc::clone(link), keys.clone());
    let (coherence, lost) = (Arc::clone(coherence), Arc::clone(lost));
    move |event| match event {
        Event::Invalidated(names) => {
            let now = link.clock.now();
            link.metrics.invalidations.add(names.len() as u64);
            for what in names.iter().filter_map(|name| keys.parse(name)) {
                if let Invalidated::Entry { region, id } = what
                    && let Some(lag) = link.lag.heard(region, id, now)
                {
                    link.metrics.lag.observe_duration(lag);
                }
                coherence.invalidate(what, now);
            }
        }
        Event::Flushed => coherence.flushed(),
        Event::Message(_) => {}
        Event::Lost => {
            coherence.disconnected();
            lost.notify_one();
        }
    }
}

async fn open(
    link: &Link,
    keys: &Keyspace,
    on_event: impl Fn(Event) + Send + Sync + 'static,
) -> Result<Connection, ()> {
    let deadline = Instant::now() + link.config.connect_timeout;
    let connection = Connection::open(&link.config, deadline, on_event)
        .await
        .map_err(|error| tracing::debug!(%error, "no connection for invalidations"))?;
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("BCAST");
    for prefix in keys.tracked() {
        command.arg("PREFIX").arg(prefix);
    }
    connection
        .send(&command, deadline)
        .await
        .map_err(|failure| {
            tracing::warn!(
                ?failure,
                "the server refused to track keys: nothing is served from memory"
            );
        })?;
    Ok(connection)
}

/// Renews the lease until a heartbeat goes unanswered, or the server is not the primary any more.
async fn beat(
    link: &Link,
    coherence: &Coherence,
    connection: &Connection,
    settled: &watch::Sender<bool>,
) {
    let timeout = link.config.command_timeout;
    let command = redis::cmd("TIME");
    loop {
        let sent = link.clock.now();
        let deadline = Instant::now() + timeout;
        let answer = connection.send(&command, deadline).await;
        let Some(time) = answer.ok().and_then(|value| parse_time(&value)) else {
            return;
        };
        link.clock.heard(time);
        // Asked last: who is the primary now was it when the heartbeat was sent.
        match connection.is_primary(deadline).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(server = %link.config.server(), "Redis has become a replica: left");
                return link.replace_connections();
            }
            Err(_) => return,
        }
        coherence.lease(sent.saturating_add(nanos(HEARTBEAT + timeout)));
        // Not before: what is read without a lease would have to be read again.
        settled.send_replace(true);
        sleep(HEARTBEAT).await;
    }
}
