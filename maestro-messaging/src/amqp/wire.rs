//! The byte stream under a connection: TCP or TLS, ours from the socket up.
//!
//! The driver would make its own, but then nobody could end a socket on which the broker stays
//! silent, TLS would trust what the driver chooses, and the version of the broker would stay
//! unknown: it is in the first frame the broker sends, which the driver does not hand out.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio, TokioRuntime};
use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};
use maestro_config::TlsPaths;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead as TokioRead, AsyncWrite as TokioWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::address::Address;
use crate::amqp::sanitize::Sanitizer;
use crate::amqp::version::{Greeting, Version};

/// Connects to a node. What is learnt on the way goes into `tap`.
pub(crate) async fn connect(
    address: &Address,
    tls: Option<&Arc<ClientConfig>>,
    tap: &Tap,
) -> io::Result<Wire> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    tap.keep(&stream);
    let stream = match tls {
        None => Inner::Plain(stream),
        Some(config) => {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let connector = TlsConnector::from(Arc::clone(config));
            Inner::Tls(Box::new(connector.connect(name, stream).await?))
        }
    };
    Ok(Wire {
        stream,
        intake: Intake::default(),
        greeting: Some(Greeting::default()),
        tap: tap.clone(),
    })
}

/// TLS as configured; blocks on files.
pub(crate) fn tls(files: &TlsPaths) -> io::Result<ClientConfig> {
    let provider = match rustls::crypto::CryptoProvider::get_default() {
        Some(installed) => Arc::clone(installed),
        None => Arc::new(rustls::crypto::ring::default_provider()),
    };
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(ca) = &files.ca {
        let mut added = 0;
        for certificate in CertificateDer::pem_file_iter(ca).map_err(invalid)? {
            roots
                .add(certificate.map_err(invalid)?)
                .map_err(io::Error::other)?;
            added += 1;
        }
        if added == 0 {
            return Err(invalid(format!("{} holds no certificate", ca.display())));
        }
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match &files.identity {
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(cert)
                .map_err(invalid)?
                .collect::<Result<Vec<_>, _>>()
                .map_err(invalid)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(invalid)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(io::Error::other)
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What is known about a connection from its bytes, and the means to end it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tap {
    socket: Arc<Mutex<Option<StdTcpStream>>>,
    version: Arc<OnceLock<Version>>,
}

impl Tap {
    /// The version in the broker's greeting.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version.get().copied()
    }

    /// Ends the socket, whatever waits on it: a driver that waits for a silent broker ends with it.
    pub(crate) fn shut_down(&self) {
        if let Some(socket) = self.socket.lock().take() {
            // Fails when the peer was first; it is closed either way.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn keep(&self, stream: &TcpStream) {
        if let Ok(copy) = stream.as_fd().try_clone_to_owned() {
            *self.socket.lock() = Some(StdTcpStream::from(copy));
        }
    }
}

/// The stream as the driver sees it.
pub(crate) struct Wire {
    stream: Inner,
    intake: Intake,
    /// Until the broker's first frame is complete.
    greeting: Option<Greeting>,
    tap: Tap,
}

enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What has come and was not taken yet.
#[derive(Default)]
struct Intake {
    buffer: Vec<u8>,
    start: usize,
    /// Up to here it may be taken.
    ready: usize,
    end: usize,
    sanitizer: Sanitizer,
}

impl Intake {
    fn take(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.ready - self.start);
        if let (Some(into), Some(from)) = (
            into.get_mut(..count),
            self.buffer.get(self.start..self.start + count),
        ) {
            into.copy_from_slice(from);
        }
        self.start += count;
        count
    }

    /// Room for more, behind the beginning of a frame that is still incomplete.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.ready = 0;
        let needed = Sanitizer::needs(self.buffer.get(..self.end).unwrap_or_default());
        if self.buffer.len() < needed.max(INTAKE) {
            self.buffer.resize(needed.max(INTAKE), 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Notes what was read into the room; returns it.
    fn filled(&mut self, count: usize) -> &[u8] {
        let from = self.end;
        self.end += count;
        if count == 0 {
            // The stream has ended: the driver is to see all there was.
            self.ready = self.end;
        } else if let Some(bytes) = self.buffer.get_mut(self.start..self.end) {
            self.ready = self.start + self.sanitizer.pass(bytes);
        }
        self.buffer.get(from..self.end).unwrap_or_default()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let taken = this.intake.take(buffer);
            if taken > 0 || buffer.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            let mut read = ReadBuf::new(this.intake.room());
            ready!(match &mut this.stream {
                Inner::Plain(stream) => Pin::new(stream).poll_read(cx, &mut read),
                Inner::Tls(stream) => Pin::new(stream).poll_read(cx, &mut read),
            })?;
            let count = read.filled().len();
            let read = this.intake.filled(count);
            if let Some(greeting) = &mut this.greeting
                && let Poll::Ready(version) = greeting.feed(read)
            {
                if let Some(version) = version {
                    let _ = this.tap.version.set(version);
                }
                this.greeting = None;
            }
            if count == 0 {
                return Poll::Ready(Ok(this.intake.take(buffer)));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, buffer),
            Inner::Tls(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            Inner::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The runtime the driver is given: tokio's, with our stream.
pub(crate) fn runtime() -> Runtime<RuntimeParts<Tokio, WireReactor>> {
    let reactor = WireReactor(TokioRuntime::tokio_current());
    Runtime::new(RuntimeParts::new(Tokio::current(), reactor))
}

/// Timers of tokio. It opens no connection itself: [`connect`] does, and hands the stream over.
#[derive(Clone, Debug)]
pub(crate) struct WireReactor(TokioRuntime);

impl Reactor for WireReactor {
    type TcpStream = Wire;
    type Sleep = tokio::time::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Wire, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Wire>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}

/// What is read at a time.
const INTAKE: usize = 64 * 1024;
