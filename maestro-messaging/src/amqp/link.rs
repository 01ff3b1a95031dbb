//! The connection: the one file that names the driver's connection type.
//!
//! A link is a task that keeps one connection up, for as long as the client lives: it connects with
//! jittered backoff without end, over all nodes in turn, notices when the connection is gone or
//! blocked, and says so on a watch. The driver's own recovery stays off: it kills consumers
//! silently, and leaves confirms pending for the whole outage.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::amqp::failure;
use crate::amqp::version::Version;
use crate::amqp::wire::{self, Tap};
use crate::backoff::Backoff;
use crate::config::MessagingConfig;
use crate::error::{Error, ErrorKind};

/// What a link's connection is used for: a blocked connection stops acks as well as publishes, so
/// publishers and consumers never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Publish,
    Consume,
}

impl Purpose {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }
}

/// The state of a link.
#[derive(Clone, Debug)]
pub(crate) enum LinkState {
    /// Not connected; why, once an attempt has failed.
    Down(Option<Arc<Error>>),
    Up(Arc<Live>),
    Closed,
}

/// A connection that is up, or was.
pub(crate) struct Live {
    connection: Connection,
    tap: Tap,
    /// Cancelled when the connection is gone.
    down: CancellationToken,
    blocked: watch::Sender<bool>,
    /// Held while a consumer is opened.
    opening: tokio::sync::Mutex<()>,
    /// Channels for consumers.
    places: Arc<Semaphore>,
    /// Channels for what takes a few round trips.
    errands: Semaphore,
}

impl Live {
    /// The turn to open a consumer. One at a time: a queue that the broker fails over takes the whole
    /// connection with it, and it has to be known whose it was.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.opening.lock().await
    }

    /// Room for one more consumer; `None` if all channels that are meant for consumers are taken.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// The turn to do something on a channel of its own and close it. When a broker comes back, every
    /// consumer declares at once: together with those that consume already it would be more channels
    /// than the connection has.
    pub(crate) async fn errand(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.errands.acquire().await.ok()
    }

    /// Opens a channel, within [`CHANNEL_DEADLINE`].
    pub(crate) async fn channel(&self) -> Result<Channel, Error> {
        let opened = timeout(CHANNEL_DEADLINE, self.connection.create_channel()).await;
        match opened {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(failure::of(&error, "opening a channel")),
            Err(_) => {
                // A broker that does not open a channel in this time is not there: the socket is
                // kept alive by the kernel of a paused or partitioned machine.
                self.fail();
                Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "opening a channel: no answer within {CHANNEL_DEADLINE:?}, the connection is given up"
                    ),
                ))
            }
        }
    }

    /// Gives the connection up; the link makes a new one.
    pub(crate) fn fail(&self) {
        self.tap.shut_down();
        self.down.cancel();
    }

    /// The broker's version, if it said one.
    pub(crate) fn version(&self) -> Option<Version> {
        self.tap.version()
    }

    /// Resolves when the connection is gone.
    pub(crate) fn down(&self) -> &CancellationToken {
        &self.down
    }

    /// Whether the broker has stopped reading from this connection (memory or disk alarm).
    pub(crate) fn blocked(&self) -> watch::Receiver<bool> {
        self.blocked.subscribe()
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("down", &self.down.is_cancelled())
            .field("blocked", &*self.blocked.borrow())
            .finish_non_exhaustive()
    }
}

/// A handle on the link's task.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Receiver<LinkState>,
    close: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// Starts the task; returns at once, connected or not.
    pub(crate) fn start(config: &Arc<MessagingConfig>, purpose: Purpose) -> Self {
        let (sender, state) = watch::channel(LinkState::Down(None));
        let close = CancellationToken::new();
        let supervisor = Supervisor {
            config: Arc::clone(config),
            purpose,
            state: sender,
            close: close.clone(),
        };
        Self {
            state,
            close,
            task: Mutex::new(Some(tokio::spawn(supervisor.run()))),
        }
    }

    /// Follows the state of the link.
    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Closes the connection and ends the task.
    pub(crate) async fn close(&self) {
        self.close.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            // The task ends by itself within its deadlines; a panic in it has been reported.
            let _ = task.await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

/// Waits until the link is up. `None` when the client was closed.
pub(crate) async fn up(state: &mut watch::Receiver<LinkState>) -> Option<Arc<Live>> {
    loop {
        match &*state.borrow_and_update() {
            LinkState::Up(live) if !live.down.is_cancelled() => return Some(Arc::clone(live)),
            LinkState::Closed => return None,
            LinkState::Up(_) | LinkState::Down(_) => {}
        }
        state.changed().await.ok()?;
    }
}

struct Supervisor {
    config: Arc<MessagingConfig>,
    purpose: Purpose,
    state: watch::Sender<LinkState>,
    close: CancellationToken,
}

impl Supervisor {
    async fn run(self) {
        let mut backoff = Backoff::reconnect();
        // Replicas spread over the nodes of a cluster.
        let mut node = fastrand::usize(0..1_000);
        let mut last_report: Option<Instant> = None;
        while !self.close.is_cancelled() {
            node = node.wrapping_add(1);
            let connected = tokio::select! {
                () = self.close.cancelled() => break,
                connected = self.connect(node) => connected,
            };
            match connected {
                Ok(live) => {
                    tracing::info!(
                        purpose = self.purpose.as_str(),
                        attempts = backoff.attempts() + 1,
                        "connected to the message broker"
                    );
                    let since = Instant::now();
                    let live = Arc::new(live);
                    self.state.send_replace(LinkState::Up(Arc::clone(&live)));
                    let reason = self.stay(&live).await;
                    live.fail();
                    if self.close.is_cancelled() {
                        break;
                    }
                    tracing::warn!(
                        purpose = self.purpose.as_str(),
                        reason,
                        "the connection to the message broker is gone"
                    );
                    self.state
                        .send_replace(LinkState::Down(Some(Arc::new(Error::new(
                            ErrorKind::Unavailable,
                            format!("the connection to the message broker is gone: {reason}"),
                        )))));
                    last_report = None;
                    // A connection that dies at once is no reason to start over fast.
                    if since.elapsed() > STABLE {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    if last_report.is_none_or(|at| at.elapsed() > REPORT_EVERY) {
                        last_report = Some(Instant::now());
                        tracing::warn!(
                            purpose = self.purpose.as_str(),
                            attempts = backoff.attempts() + 1,
                            error = %error,
                            cause = %failure::chain(&error),
                            "cannot connect to the message broker; trying on"
                        );
                    }
                    // Refused with a password that has been replaced meanwhile: the new one at once.
                    let rotated = error.kind() == ErrorKind::Denied && self.config.urls.refresh();
                    self.state
                        .send_replace(LinkState::Down(Some(Arc::new(error))));
                    if rotated {
                        tracing::info!(
                            purpose = self.purpose.as_str(),
                            "the broker's password has changed on disk; connecting with it"
                        );
                        node = node.wrapping_sub(1);
                        continue;
                    }
                }
            }
            let delay = backoff.next();
            tokio::select! {
                () = self.close.cancelled() => break,
                () = tokio::time::sleep(delay) => {}
            }
        }
        self.state.send_replace(LinkState::Closed);
    }

    /// Watches a connection until it is gone, and says why.
    async fn stay(&self, live: &Arc<Live>) -> String {
        let mut events = Box::pin(live.connection.events_listener());
        let mut check = tokio::time::interval(CHECK_EVERY);
        let mut reason = String::from("closed");
        loop {
            tokio::select! {
                () = self.close.cancelled() => {
                    let closed = live.connection.close(200, "closing".into());
                    let _ = timeout(CLOSE_DEADLINE, closed).await;
                    return reason;
                }
                () = live.down.cancelled() => {
                    return String::from("given up: the broker did not answer in time");
                }
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => {
                        tracing::warn!(purpose = self.purpose.as_str(), why, "the broker has blocked the connection");
                        live.blocked.send_replace(true);
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(purpose = self.purpose.as_str(), "the broker has unblocked the connection");
                        live.blocked.send_replace(false);
                    }
                    // Errors of channels come here too; the status decides.
                    Some(Event::Error(error)) => reason = error.to_string(),
                    Some(_) => {}
                    None => return reason,
                },
                _ = check.tick() => {}
            }
            if !live.connection.status().connected() {
                return reason;
            }
        }
    }

    async fn connect(&self, node: usize) -> Result<Live, Error> {
        let urls = self.config.urls.all();
        let url = urls
            .get(node % urls.len().max(1))
            .ok_or_else(|| Error::new(ErrorKind::Config, "connecting: no broker URL is set"))?;
        let address = Address::parse(url.expose()).map_err(|problem| {
            Error::new(
                ErrorKind::Config,
                format!("connecting: the broker URL {problem}"),
            )
        })?;
        let shown = address.to_string();
        let tls = if address.tls {
            Some(self.tls().await?)
        } else {
            None
        };
        let tap = Tap::default();
        let uri = self.uri(&address);
        let connecting = handshake(address, uri, tls, self.properties(), tap.clone());
        let outcome = timeout(CONNECT_DEADLINE, connecting).await;
        let connection = match outcome {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tap.shut_down();
                return Err(failure::of(&error, &format!("connecting to {shown}")));
            }
            Err(_) => {
                // The driver's thread waits on the socket for ever; ending the socket ends it.
                tap.shut_down();
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("connecting to {shown}: no answer within {CONNECT_DEADLINE:?}"),
                ));
            }
        };
        let (places, errands) = shares(connection.configuration().channel_max());
        Ok(Live {
            connection,
            places: Arc::new(Semaphore::new(places)),
            errands: Semaphore::new(errands),
            tap,
            down: CancellationToken::new(),
            blocked: watch::Sender::new(false),
            opening: tokio::sync::Mutex::new(()),
        })
    }

    fn uri(&self, address: &Address) -> AMQPUri {
        AMQPUri {
            scheme: if address.tls {
                AMQPScheme::AMQPS
            } else {
                AMQPScheme::AMQP
            },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: address.user.clone(),
                    password: address.password.expose().clone(),
                },
                host: address.host.clone(),
                port: address.port,
            },
            vhost: address.vhost.clone(),
            query: AMQPQueryString {
                channel_max: Some(MAX_CHANNELS),
                heartbeat: u16::try_from(self.config.heartbeat.as_secs()).ok(),
                ..AMQPQueryString::default()
            },
        }
    }

    fn properties(&self) -> ConnectionProperties {
        let identity = &self.config.identity;
        ConnectionProperties::default()
            .with_connection_name(
                format!(
                    "{}@{} ({})",
                    identity.service(),
                    identity.instance(),
                    self.purpose.as_str()
                )
                .into(),
            )
            .with_client_property("product".into(), "maestro-messaging".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
            .with_client_property("service_version".into(), identity.version().into())
    }

    async fn tls(&self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let files = self.config.tls.clone();
        match tokio::task::spawn_blocking(move || wire::tls(&files)).await {
            Ok(Ok(config)) => Ok(Arc::new(config)),
            Ok(Err(error)) => Err(Error::new(
                ErrorKind::Config,
                "connecting: a file named by MAESTRO_MESSAGING_TLS_* cannot be used",
            )
            .with_source(error)),
            Err(error) => Err(Error::new(
                ErrorKind::Closed,
                "connecting: the runtime is shutting down",
            )
            .with_source(error)),
        }
    }
}

async fn handshake(
    address: Address,
    uri: AMQPUri,
    tls: Option<Arc<rustls::ClientConfig>>,
    properties: ConnectionProperties,
    tap: Tap,
) -> lapin::Result<Connection> {
    Connection::connector(
        uri,
        wire::runtime(),
        // Runs on the driver's own thread.
        async move |_, _| {
            // From that thread the driver logs every returned message with its whole body, at WARN.
            // Bodies are personal data; what there is to say about the connection is said by us.
            std::mem::forget(tracing::dispatcher::set_default(&tracing::Dispatch::none()));
            let connecting = wire::connect(&address, tls.as_ref(), &tap);
            match timeout(CONNECT_DEADLINE, connecting).await {
                Ok(wire) => Ok(AsyncTcpStream::Plain(wire?)),
                Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            }
        },
        properties,
    )
    .await
}

/// How many of a connection's channels are for consumers, and how many for errands. As many as those
/// stay free: a closed channel counts until the broker has said so.
fn shares(channels: u16) -> (usize, usize) {
    let channels = usize::from(channels.min(MAX_CHANNELS));
    let errands = (channels / 4).clamp(1, 8);
    (channels.saturating_sub(2 * errands).max(1), errands)
}

/// TCP, TLS and the AMQP handshake together; a broker that boots answers its first connections
/// after seconds.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Opening a channel is one round trip; a broker that is starved of processor time takes seconds for it.
const CHANNEL_DEADLINE: Duration = Duration::from_secs(10);
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a connection has to live for its end to be an event of its own.
const STABLE: Duration = Duration::from_secs(10);
/// The same complaint is logged this often.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// The driver reports the end of a connection by an event; this is the fallback.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A channel is a handful of processes on the broker, and a connection is one reader on it: a service
/// with more subscriptions than this opens further connections. A broker may allow less.
const MAX_CHANNELS: u16 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_leave_channels_for_errands_whatever_the_broker_allows() {
        assert_eq!(shares(2_047), (240, 8));
        assert_eq!(shares(256), (240, 8));
        assert_eq!(shares(20), (10, 5));
        for channels in 2..=256 {
            let (places, errands) = shares(channels);
            assert!(places >= 1 && errands >= 1);
            assert!(places + errands <= usize::from(channels), "{channels}");
        }
    }
}
