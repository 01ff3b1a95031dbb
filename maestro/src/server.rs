//! The HTTP listener: bounded connections, and a stop that resets no request.
//!
//! An idle keep-alive connection that is closed the moment a client writes its next request shows up
//! there as a reset. So a stopping server goes on answering: every response carries
//! `Connection: close`, and only a connection that has been silent for [`LINGER`] is closed from
//! this side.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use maestro_metrics::Leftover;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::error::{Error, ErrorKind};

mod last;

use last::last_connections;

/// Most connections served at once; more wait in the kernel's accept queue. A service of the platform
/// has a few load-balancer connections: this bounds memory against a flood, not normal work.
const MAX_CONNECTIONS: usize = 10_000;

/// A client that has not sent its request head by then is cut off (slow-loris).
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a silent keep-alive connection is left open once the server stops.
const LINGER: Duration = Duration::from_secs(1);

/// Pause after a failed `accept` (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far the stop has come; every connection watches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Serve.
    Open,
    /// Serve, but ask clients to leave.
    Leaving,
    /// Accept no more; close what falls silent.
    Closing,
}

/// A listener and the connections it accepted.
pub(crate) struct Server {
    address: SocketAddr,
    stage: watch::Sender<Stage>,
    accepting: tokio::task::JoinHandle<JoinSet<()>>,
}

impl Server {
    /// Binds nothing: takes a bound listener and starts accepting at once.
    pub(crate) fn spawn(listener: TcpListener, app: Router) -> Result<Self, Error> {
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Listen, "the listener has no address").caused_by(error)
        })?;
        let (stage, watching) = watch::channel(Stage::Open);
        let accepting = tokio::spawn(accept(listener, app, watching));
        Ok(Self {
            address,
            stage,
            accepting,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on every response asks its client to come back on another connection.
    pub(crate) fn leave(&self) {
        self.stage.send_replace(Stage::Leaving);
    }

    /// Closes the listener and waits until every request in flight is answered, at most until
    /// `deadline`; then cuts the rest off and says how many connections that were.
    pub(crate) async fn close(self, deadline: std::time::Instant) -> Leftover {
        self.stage.send_replace(Stage::Closing);
        let Ok(mut connections) = self.accepting.await else {
            return Leftover::unknown("the accept loop had died");
        };
        let finished = tokio::time::timeout_at(Instant::from_std(deadline), async {
            while connections.join_next().await.is_some() {}
        });
        if finished.await.is_ok() {
            return Leftover::none();
        }
        let open = connections.len();
        connections.abort_all();
        Leftover::of(
            open as u64,
            "connections cut off with an unfinished request",
        )
    }
}

async fn accept(
    listener: TcpListener,
    app: Router,
    mut stage: watch::Receiver<Stage>,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let watching = stage.clone();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            // The semaphore is never closed; a place is waited for before the connection is taken.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let (app, watching) = (app.clone(), watching.clone());
                    connections.spawn(async move {
                        serve(stream, peer, app, watching).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = closing(&mut stage) => break,
            // Finished connections are collected as they end, so the set holds only open ones.
            Some(_) = connections.join_next() => {}
        }
    }
    last_connections(listener, |stream, peer| {
        connections.spawn(serve(stream, peer, app.clone(), watching.clone()));
    })
    .await;
    connections
}

/// Returns once the server closes, or its handle is gone.
async fn closing(stage: &mut watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| *stage == Stage::Closing).await;
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    mut stage: watch::Receiver<Stage>,
) {
    // Small responses must not wait for an acknowledgement; failing to set it changes only latency.
    let _ = stream.set_nodelay(true);
    let (last_seen, activity) = watch::channel((0_u32, Instant::now()));
    let leaving = stage.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let (app, leaving, last_seen) = (app.clone(), leaving.clone(), last_seen.clone());
        last_seen.send_modify(|(active, _)| *active += 1);
        async move {
            let answer = app.oneshot(request.map(Body::new)).await;
            last_seen.send_modify(|(active, at)| {
                *active -= 1;
                *at = Instant::now();
            });
            let mut response: Response<Body> = answer?;
            if *leaving.borrow() > Stage::Open {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let mut connection = pin!(
        builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let silence = async {
        closing(&mut stage).await;
        silent(activity, Instant::now()).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silence => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "connection ended early");
    }
}

/// Returns once the connection has had no request for [`LINGER`], counted from `since` at the earliest.
async fn silent(mut activity: watch::Receiver<(u32, Instant)>, since: Instant) {
    loop {
        let (active, at) = *activity.borrow_and_update();
        let quiet_from = at.max(since);
        if active == 0 {
            tokio::select! {
                () = tokio::time::sleep_until(quiet_from + LINGER) => return,
                changed = activity.changed() => if changed.is_err() { return },
            }
        } else if activity.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
