//! The network between a sandbox and a server, to be cut, slowed down and stopped.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::background;
use crate::error::{Error, ErrorKind};
use crate::port::Port;
use crate::server::Server;
use crate::service::Service;

/// Bytes moved at once, and how many such pieces may be under way in one direction: together more
/// than a socket's own buffers, so that a delay costs time and not bandwidth.
const PIECE: usize = 16 * 1024;
const PIECES_UNDER_WAY: usize = 256;

/// A server on loopback that does not answer a SYN within this time is not there.
const CONNECT: Duration = Duration::from_secs(15);

/// Pause after a connection could not be accepted.
const EXHAUSTED: Duration = Duration::from_millis(10);

/// A TCP proxy between one sandbox and one server. Faults on it concern this sandbox alone, and no
/// other user of the server.
///
/// Every method returns when its effect is complete. Dropped futures leave the command in effect.
#[derive(Debug)]
pub struct Link {
    service: Service,
    address: SocketAddr,
    commands: mpsc::Sender<Command>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// What the wires do with bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// Held back before they are passed on.
    delay: Duration,
    /// Bytes from the client stay where they are.
    holds_requests: bool,
    /// Bytes from the server stay where they are.
    holds_replies: bool,
    /// Counts resets: a connection of an earlier age is over.
    age: u64,
}

#[derive(Debug)]
enum Change {
    /// Refuse connections and reset those that are open.
    Cut,
    /// Reset the connections that are open.
    Reset,
    /// Accept connections, and pass bytes like this.
    Up(Weather),
    /// Connect what is accepted from now on to this host and port.
    LeadTo(String, u16),
}

#[derive(Debug)]
struct Command {
    change: Change,
    done: oneshot::Sender<io::Result<()>>,
}

impl Link {
    /// Opens the proxy on a free port of the loopback interface.
    pub(crate) async fn open(service: Service, host: &str, port: u16) -> Result<Self, Error> {
        let failed = move |e| Error::io(format!("opening the link to {service}"), e);
        let upstream = upstream(host, port);
        let connections = Arc::new(AtomicUsize::new(0));
        let (commands, inbox) = mpsc::channel(16);
        let counter = Arc::clone(&connections);
        // Sockets belong to the runtime they were made on.
        let (address, task) = background::run(async move {
            let (port, listener) = open_door().map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            let proxy = Proxy {
                upstream,
                address,
                _port: port,
                weather: watch::Sender::new(Weather::default()),
                connections: JoinSet::new(),
                counter,
            };
            let task = background::spawn(proxy.run(listener, inbox))?;
            Ok((address, task))
        })
        .await?;
        Ok(Self {
            service,
            address,
            commands,
            connections,
            task,
        })
    }

    /// `host:port` of the proxy.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// The server goes away: open connections are reset, new ones are refused.
    pub async fn cut(&self) -> Result<(), Error> {
        self.order(Change::Cut).await
    }

    /// Open connections are reset, new ones work: what a client sees of a failover or of an
    /// impatient firewall.
    pub async fn reset(&self) -> Result<(), Error> {
        self.order(Change::Reset).await
    }

    /// Every byte takes this much longer, in each direction. Order and bandwidth stay as they are.
    /// Undoes [`cut`](Self::cut) and [`blackhole`](Self::blackhole).
    pub async fn delay(&self, delay: Duration) -> Result<(), Error> {
        self.order(Change::Up(Weather {
            delay,
            ..Weather::default()
        }))
        .await
    }

    /// Nothing arrives any more, and nobody is told: connections stay open and silent, and so do
    /// new ones. What was sent meanwhile arrives after [`restore`](Self::restore), as TCP would
    /// have it.
    pub async fn blackhole(&self) -> Result<(), Error> {
        self.order(Change::Up(Weather {
            holds_requests: true,
            holds_replies: true,
            ..Weather::default()
        }))
        .await
    }

    /// The server hears and does what it is asked, and its answers do not arrive: a confirmation
    /// that is lost. They arrive after [`restore`](Self::restore).
    pub async fn blackhole_replies(&self) -> Result<(), Error> {
        self.order(Change::Up(Weather {
            holds_replies: true,
            ..Weather::default()
        }))
        .await
    }

    /// Everything works again.
    pub async fn restore(&self) -> Result<(), Error> {
        self.order(Change::Up(Weather::default())).await
    }

    /// Leads new connections to another server, as a name does that was pointed elsewhere after a
    /// failover. Open ones stay where they are; [`reset`](Self::reset) ends them.
    pub async fn lead_to(&self, server: &Server) -> Result<(), Error> {
        let (host, port) = server.address();
        self.order(Change::LeadTo(host, port)).await
    }

    /// Connections that are open through this link.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    async fn order(&self, change: Change) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let what = format!("changing the link to {}", self.service);
        let gone = || Error::new(ErrorKind::Io, format!("{what}: its proxy is gone"));
        self.commands
            .send(Command { change, done })
            .await
            .map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|e| Error::io(&what, e))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task behind a link.
struct Proxy {
    upstream: (String, u16),
    address: SocketAddr,
    /// Nobody else takes it in the instant in which the door is shut.
    _port: Option<Port>,
    weather: watch::Sender<Weather>,
    connections: JoinSet<()>,
    counter: Arc<AtomicUsize>,
}

/// The proxy's port.
enum Door {
    Open(TcpListener),
    /// Bound and not listening: the kernel refuses connections, and nobody else gets the port.
    Shut(TcpSocket),
}

impl Proxy {
    async fn run(mut self, listener: TcpListener, mut inbox: mpsc::Receiver<Command>) {
        let mut door = Door::Open(listener);
        loop {
            tokio::select! {
                command = inbox.recv() => {
                    let Some(Command { change, done }) = command else { return };
                    let result = match self.change(door, change).await {
                        Ok(next) => {
                            door = next;
                            Ok(())
                        }
                        // Without its port the link is gone; whoever asked is told why.
                        Err(e) => {
                            let _ = done.send(Err(e));
                            return;
                        }
                    };
                    // Nobody waits any more: the change stands.
                    let _ = done.send(result);
                }
                client = accept(&door) => match client {
                    Ok(client) => self.take(client),
                    // This process has no descriptor left, most likely: asking on would take the
                    // thread that could give one back.
                    Err(_) => tokio::time::sleep(EXHAUSTED).await,
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    async fn change(&mut self, door: Door, change: Change) -> io::Result<Door> {
        match change {
            Change::Cut => {
                let shut = match door {
                    Door::Open(listener) => {
                        drop(listener);
                        Door::Shut(bind(self.address)?)
                    }
                    shut @ Door::Shut(_) => shut,
                };
                self.reset().await;
                Ok(shut)
            }
            Change::Reset => {
                self.reset().await;
                Ok(door)
            }
            Change::Up(weather) => {
                self.weather.send_modify(|current| {
                    *current = Weather {
                        age: current.age,
                        ..weather
                    };
                });
                match door {
                    Door::Shut(socket) => Ok(Door::Open(socket.listen(1024)?)),
                    open @ Door::Open(_) => Ok(open),
                }
            }
            Change::LeadTo(host, port) => {
                self.upstream = upstream(&host, port);
                Ok(door)
            }
        }
    }
}

impl Proxy {
    /// The connection belongs to the age in which it was accepted, however late its task runs.
    fn take(&mut self, client: TcpStream) {
        let upstream = self.upstream.clone();
        let weather = self.weather.subscribe();
        let age = weather.borrow().age;
        let counted = Counted::new(Arc::clone(&self.counter));
        self.connections.spawn(async move {
            connect(client, upstream, weather, age).await;
            drop(counted);
        });
    }

    async fn reset(&mut self) {
        self.weather.send_modify(|weather| weather.age += 1);
        while self.connections.join_next().await.is_some() {}
    }
}

/// Where to connect to: brackets belong to URLs.
fn upstream(host: &str, port: u16) -> (String, u16) {
    (host.trim_matches(['[', ']']).to_owned(), port)
}

async fn accept(door: &Door) -> io::Result<TcpStream> {
    match door {
        Door::Open(listener) => Ok(listener.accept().await?.0),
        Door::Shut(_) => std::future::pending().await,
    }
}

/// A port and a listener on it.
fn open_door() -> io::Result<(Option<Port>, TcpListener)> {
    // Somebody who does not reserve may take a port between looking and listening.
    for _ in 0..10 {
        let port = Port::for_link().map_err(io::Error::other)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
        if let Ok(listener) = bind(address).and_then(|socket| socket.listen(1024)) {
            return Ok((Some(port), listener));
        }
    }
    let any = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    Ok((None, any.listen(1024)?))
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // Connections of the past linger on the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// One connection, until both sides ended it, one side reset it or the link does.
async fn connect(
    mut client: TcpStream,
    upstream: (String, u16),
    mut weather: watch::Receiver<Weather>,
    age: u64,
) {
    // Best effort: without it a small message may wait 40 ms for an acknowledgement.
    let _ = client.set_nodelay(true);
    let mut clear = weather.clone();
    let mut server = None;
    let ended = tokio::select! {
        _ = weather.wait_for(|weather| weather.age != age) => Err(()),
        ended = async {
            clear.wait_for(|weather| !weather.holds_requests).await.map_err(|_| ())?;
            let address = (upstream.0.as_str(), upstream.1);
            let connected = timeout(CONNECT, TcpStream::connect(address)).await;
            let server = server.insert(connected.map_err(|_| ())?.map_err(|_| ())?);
            let _ = server.set_nodelay(true);
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            tokio::try_join!(
                pump(from_client, to_server, clear.clone(), |w| w.holds_requests),
                pump(from_server, to_client, clear, |w| w.holds_replies),
            )
        } => ended.map(|_| ()),
    };
    if ended.is_err() {
        // Closing with lingering time zero sends a reset, and only then: after an orderly end it
        // would take bytes with it that the client has not read yet.
        let _ = client.set_zero_linger();
        if let Some(server) = server {
            let _ = server.set_zero_linger();
        }
    }
}

/// Moves bytes one way. The end of the stream is passed on like its bytes; anything else that ends
/// it is an error, which ends both ways.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    holds: fn(&Weather) -> bool,
) -> Result<(), ()> {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_UNDER_WAY);
    let looks = weather.clone();
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = from.read(&mut buffer).await.map_err(|_| ())?;
            let due = Instant::now() + looks.borrow().delay;
            let piece = buffer.get(..length).unwrap_or_default().to_vec();
            sender.send((due, piece)).await.map_err(|_| ())?;
            if length == 0 {
                return Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            let clear = weather.wait_for(|weather| !holds(weather)).await;
            drop(clear.map_err(|_| ())?);
            if piece.is_empty() {
                // The other side may have ended first, and then knows.
                let _ = to.shutdown().await;
                return Ok(());
            }
            to.write_all(&piece).await.map_err(|_| ())?;
        }
        Ok(())
    };
    tokio::try_join!(reading, writing).map(|_| ())
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread of tasks runs one after the other, so the connection's own task has not run yet.
    #[tokio::test(flavor = "current_thread")]
    async fn a_reset_ends_a_connection_whose_task_has_not_run_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut proxy = Proxy {
            upstream: (address.ip().to_string(), address.port()),
            address,
            _port: None,
            weather: watch::channel(Weather::default()).0,
            connections: JoinSet::new(),
            counter: Arc::default(),
        };
        let client = TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        proxy.take(accepted);
        timeout(CONNECT, proxy.reset()).await.unwrap();
        assert_eq!(proxy.counter.load(Ordering::Acquire), 0);
        drop(client);
    }
}
