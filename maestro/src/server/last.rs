//! Closing a listener without resetting a connection that is just being made.
//!
//! The kernel completes handshakes by itself and queues the connections; those still queued when the
//! listener is closed are reset, although their clients were told that they are connected and may
//! have sent a request. Clients that were asked to leave come back on new connections, so under load
//! some are always being made. So first the kernel is told to ignore new attempts (they are repeated
//! after a second and refused then), handshakes under way are given a moment, and everything queued
//! is taken before the listener goes.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};

/// For handshakes under way: some round trips in one region, counted from the last one that was
/// completed.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// For all of them: as long as a silent connection is kept open anyway.
const HANDSHAKES: Duration = Duration::from_secs(1);

/// Hands every connection to `serve` whose client believes to be connected, and closes the listener.
pub(super) async fn last_connections(
    listener: TcpListener,
    mut serve: impl FnMut(TcpStream, SocketAddr),
) {
    if ignore_attempts(&listener).is_ok() {
        let end = Instant::now() + HANDSHAKES;
        let quiet = || (Instant::now() + HANDSHAKE).min(end);
        while let Ok(Ok((stream, peer))) = timeout_at(quiet(), listener.accept()).await {
            serve(stream, peer);
        }
    }
    // The runtime knows of a connection only after it has asked the kernel, so the kernel is asked
    // here.
    let Ok(listener) = listener.into_std() else {
        return;
    };
    while let Ok((stream, peer)) = listener.accept() {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| TcpStream::from_std(stream));
        if let Ok(stream) = stream {
            serve(stream, peer);
        }
    }
}

/// Has the kernel drop packets that ask this listener for a connection, and nothing else of it.
#[cfg(target_os = "linux")]
fn ignore_attempts(listener: &TcpListener) -> std::io::Result<()> {
    // A classic BPF program over the TCP header: drop what has SYN and not ACK.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_AND_ACK: u32 = 0x12;
    let program = [
        // A = the byte of flags
        SockFilter::new(0x30, 0, 0, FLAGS),
        // A = A & SYN_AND_ACK
        SockFilter::new(0x54, 0, 0, SYN_AND_ACK),
        // if A is SYN go on, else go over one
        SockFilter::new(0x15, 0, 1, SYN),
        // return 0: drop
        SockFilter::new(0x06, 0, 0, 0),
        // return all: keep
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&program)
}

/// Elsewhere than on Linux only what is queued can be taken.
#[cfg(not(target_os = "linux"))]
fn ignore_attempts(_: &TcpListener) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
