//! A Redis in memory, for unit tests of services: it stands in place of the connection, so that
//! everything above it is what runs in production.

mod keys;
mod scripts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use maestro_config::Environment;
use parking_lot::Mutex;
use redis::{Arg, Cmd, Value};
use tokio::time::Instant;

use crate::client::Cache;
use crate::clock::micros;
use crate::config::CacheConfig;
use crate::connection::{Double, Event, Failure, Line, OnEvent};
use crate::envelope::Micros;
use crate::error::{Error, ErrorKind};
use keys::{Keys, Refused};
use scripts::Known;

/// A Redis in memory, empty when made and gone with its last clone. Clones are the same server, and
/// caches of one server hear each other: two of them stand for two processes.
///
/// Lifetimes pass with tokio's clock on the server, and with the system's in process memory: a test
/// that stops the clock sets `MAESTRO_CACHE_LOCAL_CAPACITY` to 0.
///
/// ```
/// use maestro_cache::{Cache, MemoryRedis};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), maestro_cache::Error> {
/// let redis = MemoryRedis::new();
/// let cache: Cache = redis.connect("orders").await?;
/// let names = cache.region::<String>("name").build()?;
/// names.put(7_u64, "Ada".to_owned()).await?;
/// assert_eq!(names.get(7_u64).await?.as_deref().map(String::as_str), Some("Ada"));
///
/// // What the service does while Redis is away:
/// redis.stop();
/// assert!(names.get(8_u64).await.is_err());
/// redis.start();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryRedis(Arc<Server>);

#[derive(Debug)]
struct Server {
    keys: Mutex<Keys>,
    clients: Mutex<Vec<Client>>,
    next_client: AtomicU64,
    known: Known,
    stopped: AtomicBool,
    base: Instant,
    /// The server's clock at `base`.
    base_micros: u64,
}

/// What the server knows of one connection.
struct Client {
    id: u64,
    on_event: OnEvent,
    tracked: Vec<Vec<u8>>,
    channels: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// One connection.
#[derive(Debug)]
struct Wire {
    server: Arc<Server>,
    id: u64,
}

impl Default for Server {
    fn default() -> Self {
        let system = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            keys: Mutex::default(),
            clients: Mutex::default(),
            next_client: AtomicU64::new(0),
            known: Known::new(),
            stopped: AtomicBool::new(false),
            base: Instant::now(),
            base_micros: system.map_or(0, micros),
        }
    }
}

impl MemoryRedis {
    /// An empty server.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache of a service on this server, with the default settings. For other settings:
    /// [`CacheBuilder::in_memory`](crate::CacheBuilder::in_memory).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if that is no name of a service.
    pub async fn connect(&self, service: &str) -> Result<Cache, Error> {
        let environment = Environment::from_pairs([
            ("MAESTRO_SERVICE_NAME", service),
            ("MAESTRO_CACHE_URL", "redis://memory/0"),
        ]);
        let config = environment.read::<CacheConfig>().map_err(|error| {
            let context = "connecting to the Redis in memory";
            Error::with_source(ErrorKind::Config, context, error)
        })?;
        Cache::builder(config).in_memory(self).connect().await
    }

    /// Ends all connections and refuses new ones, as a server that is down; what it holds stays.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        let clients = std::mem::take(&mut *self.0.clients.lock());
        for client in clients {
            (client.on_event)(Event::Lost);
        }
    }

    /// Accepts connections again.
    pub fn start(&self) {
        self.0.stopped.store(false, Ordering::SeqCst);
    }

    /// Forgets everything, as a neighbour's `FLUSHALL` would.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), maestro_cache::Error> {
    /// use maestro_cache::MemoryRedis;
    ///
    /// let redis = MemoryRedis::new();
    /// let cache = redis.connect("orders").await?;
    /// let downloads = cache.counter("downloads", std::time::Duration::from_hours(24))?;
    /// downloads.add("report-7", 1).await?;
    /// redis.flush();
    /// assert_eq!(downloads.get("report-7").await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) {
        *self.0.keys.lock() = Keys::default();
        for client in self.0.clients.lock().iter() {
            if !client.tracked.is_empty() {
                (client.on_event)(Event::Flushed);
            }
        }
    }
}

impl Double for MemoryRedis {
    fn connect(&self, on_event: OnEvent) -> Result<Arc<dyn Line>, Failure> {
        if self.0.stopped.load(Ordering::SeqCst) {
            return Err(lost());
        }
        let id = self.0.next_client.fetch_add(1, Ordering::Relaxed);
        self.0.clients.lock().push(Client {
            id,
            on_event,
            tracked: Vec::new(),
            channels: Vec::new(),
        });
        Ok(Arc::new(Wire {
            server: Arc::clone(&self.0),
            id,
        }))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut clients = self.server.clients.lock();
        let index = clients.iter().position(|client| client.id == self.id);
        let client = index.map(|index| clients.swap_remove(index));
        // What it holds may be the last of another connection.
        drop(clients);
        drop(client);
    }
}

impl Line for Wire {
    fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        let server = &self.server;
        if server.stopped.load(Ordering::SeqCst) {
            return Err(lost());
        }
        let arguments: Vec<&[u8]> = command
            .args_iter()
            .map(|argument| match argument {
                Arg::Simple(bytes) => bytes,
                _ => b"0",
            })
            .collect();
        let (name, rest) = arguments.split_first().ok_or_else(|| unknown(b""))?;
        match (*name, rest) {
            (b"PING" | b"SELECT", _) => Ok(Value::Okay),
            (b"HELLO", _) => Ok(Value::Map(vec![(text("role"), text("master"))])),
            (b"TIME", []) => Ok(server.time()),
            (b"CLIENT", [b"TRACKING", b"ON", b"BCAST", prefixes @ ..]) => {
                let prefixes = prefixes.iter().filter(|part| **part != b"PREFIX");
                self.change(|client| client.tracked.extend(prefixes.map(|p| p.to_vec())));
                Ok(Value::Okay)
            }
            (b"SUBSCRIBE", channels) => {
                let channels = channels.iter().map(|channel| channel.to_vec());
                self.change(|client| client.channels.extend(channels));
                Ok(Value::Okay)
            }
            (b"PUBLISH", [channel, message]) => Ok(server.publish(channel, message)),
            (b"EVALSHA" | b"EVAL", [script, count, rest @ ..]) => {
                let count: usize = number(count).ok_or_else(|| unknown(name))?;
                let (keys, arguments) =
                    rest.split_at_checked(count).ok_or_else(|| unknown(name))?;
                let run = server.known.find(script).ok_or_else(|| unknown(name))?;
                server.work(|store, now| run(store, now, keys, arguments))
            }
            (name, rest) => server.work(|store, now| keys::command(store, now, name, rest)),
        }
    }
}

impl Wire {
    fn change(&self, how: impl FnOnce(&mut Client)) {
        let mut clients = self.server.clients.lock();
        if let Some(client) = clients.iter_mut().find(|client| client.id == self.id) {
            how(client);
        }
    }
}

impl Server {
    fn now(&self) -> Micros {
        Micros(self.base_micros.saturating_add(micros(self.base.elapsed())))
    }

    fn time(&self) -> Value {
        let now = self.now().0;
        let part = |number: u64| text(&number.to_string());
        Value::Array(vec![part(now / 1_000_000), part(now % 1_000_000)])
    }

    /// Runs a command in one step, and tells of what it changed before anybody hears its answer.
    fn work(
        &self,
        run: impl FnOnce(&mut Keys, Micros) -> Result<Value, Refused>,
    ) -> Result<Value, Failure> {
        let mut keys = self.keys.lock();
        let answer = run(&mut keys, self.now());
        let changed = keys.take_changed();
        let clients = self.clients.lock();
        for client in clients.iter() {
            let tracks =
                |key: &Vec<u8>| client.tracked.iter().any(|prefix| key.starts_with(prefix));
            let names: Vec<_> = changed.iter().filter(|key| tracks(key)).cloned().collect();
            if !names.is_empty() {
                (client.on_event)(Event::Invalidated(names));
            }
        }
        answer.map_err(|refused| match refused {
            Refused::WrongType => refusal("WRONGTYPE"),
            Refused::Unknown => refusal("ERR"),
        })
    }

    fn publish(&self, channel: &[u8], message: &[u8]) -> Value {
        let clients = self.clients.lock();
        let listening = clients
            .iter()
            .filter(|client| client.channels.iter().any(|name| name == channel));
        let mut receivers = 0;
        for client in listening {
            (client.on_event)(Event::Message(message.to_vec()));
            receivers += 1;
        }
        Value::Int(receivers)
    }
}

fn text(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn lost() -> Failure {
    let stopped = std::io::Error::new(
        std::io::ErrorKind::ConnectionReset,
        "the Redis in memory is stopped",
    );
    Failure::Lost(stopped.into())
}

fn refusal(code: &str) -> Failure {
    Failure::Refused(redis::make_extension_error(code.to_owned(), None))
}

/// A command that no part of this crate sends.
fn unknown(name: &[u8]) -> Failure {
    let name = String::from_utf8_lossy(name).into_owned();
    let detail = Some(format!("unknown command {name}"));
    Failure::Refused(redis::make_extension_error("ERR".to_owned(), detail))
}
