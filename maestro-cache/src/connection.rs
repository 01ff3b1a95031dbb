//! One connection to the server: the only file that names the driver's connection.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use maestro_config::TlsPaths;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo,
    ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, TlsCertificates, Value,
};
use tokio::time::{Instant, timeout_at};

use crate::config::CacheConfig;
use crate::error::{Error, ErrorKind};

/// Commands queued for the socket before callers wait: enough that a burst of a thousand tasks is
/// written in few system calls, and still bounded.
const QUEUE: usize = 1_024;
/// The kernel asks a silent peer after this long; our own deadlines notice sooner while in use.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What the server, or the loss of it, tells unasked.
#[derive(Debug)]
pub(crate) enum Event {
    /// These keys have changed.
    Invalidated(Vec<Vec<u8>>),
    /// Some database was flushed.
    Flushed,
    /// A message on a channel that this connection listens to.
    Message(Vec<u8>),
    /// The connection is gone.
    Lost,
}

/// Why a command brought no value.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No answer by the deadline. Whether the server ran the command is not known.
    Timeout,
    /// The connection is gone. Whether the server ran the command is not known.
    Lost(RedisError),
    /// The server answered with an error.
    Refused(RedisError),
}

impl Failure {
    /// The failure of an operation under `connect_timeout`.
    pub(crate) fn explain(self, operation: &str, config: &CacheConfig) -> Error {
        match self {
            Self::Lost(error) | Self::Refused(error) => refusal(operation, config, error),
            Self::Timeout => unanswered(operation, config),
        }
    }
}

/// Called from the task that reads the socket, in the order of the wire: it must not block.
pub(crate) type OnEvent = Arc<dyn Fn(Event) + Send + Sync>;

/// A server that stands in for Redis.
pub(crate) trait Double: fmt::Debug + Send + Sync {
    /// Opens a connection to it, which ends when it is dropped.
    fn connect(&self, on_event: OnEvent) -> Result<Arc<dyn Line>, Failure>;
}

/// A connection to a [`Double`].
pub(crate) trait Line: fmt::Debug + Send + Sync {
    /// Runs a command and says what it came to.
    fn send(&self, command: &Cmd) -> Result<Value, Failure>;
}

/// An open connection; clones share it, and it closes with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Peer);

#[derive(Clone, Debug)]
enum Peer {
    Server(MultiplexedConnection),
    Double(Arc<dyn Line>),
}

impl Connection {
    /// Opens a connection and has it answer once, all within `deadline`.
    ///
    /// A password that is refused is looked for again where it came from, and a new one is tried at
    /// once: rotating a secret costs no pause.
    pub(crate) async fn open(
        config: &CacheConfig,
        deadline: Instant,
        on_event: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let on_event: OnEvent = Arc::new(on_event);
        if let Some(double) = &config.double {
            let line = double
                .connect(on_event)
                .map_err(|failure| failure.explain("connect", config))?;
            return Ok(Self(Peer::Double(line)));
        }
        match Self::attempt(config, deadline, Arc::clone(&on_event)).await {
            Err(error) if error.kind() == ErrorKind::Credentials && config.url.refresh() => {
                Self::attempt(config, deadline, on_event).await
            }
            attempted => attempted,
        }
    }

    async fn attempt(
        config: &CacheConfig,
        deadline: Instant,
        on_event: OnEvent,
    ) -> Result<Self, Error> {
        let attempt = async {
            let client = client(config).await?;
            let options = AsyncConnectionConfig::new()
                .set_connection_timeout(None)
                .set_response_timeout(None)
                .set_pipeline_buffer_size(QUEUE)
                .set_push_sender(move |push: PushInfo| {
                    if let Some(event) = event(push) {
                        on_event(event);
                    }
                    Ok::<(), std::convert::Infallible>(())
                });
            let connection = client
                .get_multiplexed_async_connection_with_config(&options)
                .await
                .map_err(|error| refusal("connect", config, error))?;
            Self(Peer::Server(connection))
                .of_primary(config, deadline)
                .await
        };
        match timeout_at(deadline, attempt).await {
            Ok(opened) => opened,
            Err(_) => Err(unanswered("connect", config)),
        }
    }

    /// Refuses a replica: it lags behind what its primary has acknowledged, and nobody can say how
    /// far.
    async fn of_primary(self, config: &CacheConfig, deadline: Instant) -> Result<Self, Error> {
        match self.is_primary(deadline).await {
            Ok(true) => Ok(self),
            Ok(false) => Err(replica("connect", config, None)),
            Err(failure) => Err(failure.explain("connect", config)),
        }
    }

    /// Whether the server takes writes: no replica by its own word. `ROLE` and `INFO` are not allowed
    /// to a service.
    pub(crate) async fn is_primary(&self, deadline: Instant) -> Result<bool, Failure> {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        Ok(!is_replica(&self.send(&hello, deadline).await?))
    }

    /// Sends one command and waits for its answer until `deadline`.
    ///
    /// Dropping the future does not take the command back.
    pub(crate) async fn send(&self, command: &Cmd, deadline: Instant) -> Result<Value, Failure> {
        let mut connection = match &self.0 {
            Peer::Server(connection) => connection.clone(),
            Peer::Double(line) => return line.send(command),
        };
        match timeout_at(deadline, connection.send_packed_command(command)).await {
            Ok(Ok(value)) => value.extract_error().map_err(Failure::Refused),
            Ok(Err(error)) if error.code().is_some() => Err(Failure::Refused(error)),
            Ok(Err(error)) => Err(Failure::Lost(error)),
            Err(_) => Err(Failure::Timeout),
        }
    }
}

fn unanswered(operation: &str, config: &CacheConfig) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "{operation} on Redis at {} was not answered within {:?}: check that it runs and that nothing between drops packets",
            config.server(),
            config.connect_timeout
        ),
    )
}

/// What the answer to `HELLO` says of the server's part.
fn is_replica(greeting: &Value) -> bool {
    let Value::Map(properties) = greeting else {
        return false;
    };
    let is = |value: &Value, text: &[u8]| matches!(value, Value::BulkString(is) if is == text);
    properties
        .iter()
        .any(|(name, value)| is(name, b"role") && is(value, b"replica"))
}

async fn client(config: &CacheConfig) -> Result<Client, Error> {
    let location = config.location().map_err(|problem| {
        Error::new(
            ErrorKind::Config,
            format!("MAESTRO_CACHE_URL {problem}, since its file was changed"),
        )
    })?;
    let address = if location.tls {
        ConnectionAddr::TcpTls {
            host: location.host,
            port: location.port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(location.host, location.port)
    };
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(i64::from(location.database))
        .set_lib_name("maestro-cache", env!("CARGO_PKG_VERSION"));
    if let Some(username) = &location.username {
        login = login.set_username(username);
    }
    if let Some(password) = &location.password {
        login = login.set_password(password.expose());
    }
    let socket = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    let unusable = |error: RedisError| {
        Error::with_source(
            ErrorKind::Config,
            format!(
                "Redis at {} cannot be used as configured: check MAESTRO_CACHE_URL and MAESTRO_CACHE_TLS_*",
                config.server()
            ),
            error,
        )
    };
    let info = address
        .into_connection_info()
        .map_err(unusable)?
        .set_tcp_settings(socket)
        .set_redis_settings(login);
    if !location.tls {
        return Client::open(info).map_err(unusable);
    }
    install_crypto();
    let certificates = certificates(&config.tls).await?;
    Client::build_with_tls(info, certificates).map_err(unusable)
}

/// Read at every connection: renewed certificates are picked up without a restart.
async fn certificates(files: &TlsPaths) -> Result<TlsCertificates, Error> {
    let files = files.clone();
    let read = move || -> Result<TlsCertificates, Error> {
        let read = |variable: &str, path: &Path| {
            std::fs::read(path).map_err(|error| {
                Error::with_source(
                    ErrorKind::Config,
                    format!("{variable} names {}, which cannot be read", path.display()),
                    error,
                )
            })
        };
        let root_cert = files
            .ca
            .as_deref()
            .map(|path| read("MAESTRO_CACHE_TLS_CA", path))
            .transpose()?;
        let client_tls = match &files.identity {
            Some((cert, key)) => Some(ClientTlsConfig {
                client_cert: read("MAESTRO_CACHE_TLS_CERT", cert)?,
                client_key: read("MAESTRO_CACHE_TLS_KEY", key)?,
            }),
            None => None,
        };
        Ok(TlsCertificates {
            client_tls,
            root_cert,
        })
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(certificates) => certificates,
        Err(stopped) => Err(Error::with_source(
            ErrorKind::Unavailable,
            "reading the TLS files was stopped: the runtime is shutting down",
            stopped,
        )),
    }
}

/// rustls needs one provider for the process; a service that installed its own keeps it.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // An error means that another thread was first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    });
}

fn event(push: PushInfo) -> Option<Event> {
    match push.kind {
        PushKind::Disconnection => Some(Event::Lost),
        PushKind::Invalidate => match push.data.into_iter().next() {
            Some(Value::Array(keys)) => {
                let keys = keys.into_iter().filter_map(bytes).collect();
                Some(Event::Invalidated(keys))
            }
            _ => Some(Event::Flushed),
        },
        // Channel, payload.
        PushKind::Message => bytes(push.data.into_iter().nth(1)?).map(Event::Message),
        _ => None,
    }
}

/// The bytes of a string answer.
pub(crate) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn replica(operation: &str, config: &CacheConfig, cause: Option<RedisError>) -> Error {
    let context = format!(
        "{operation} on Redis at {} failed: the server is a replica; wait for the failover, or point MAESTRO_CACHE_URL at the primary",
        config.server()
    );
    match cause {
        Some(cause) => Error::with_source(ErrorKind::ReadOnly, context, cause),
        None => Error::new(ErrorKind::ReadOnly, context),
    }
}

/// What a refusal of the server means to the caller, and what to look at.
pub(crate) fn refusal(operation: &str, config: &CacheConfig, error: RedisError) -> Error {
    let user = config.username.as_deref().unwrap_or("default");
    let (kind, advice) = match error.code() {
        Some("NOPERM") => (
            ErrorKind::Denied,
            format!(
                "the rules of user `{user}` do not allow it; they must allow `~{prefix}*` and `&{prefix}*`",
                prefix = config.prefix
            ),
        ),
        Some("WRONGPASS" | "NOAUTH") => (
            ErrorKind::Credentials,
            format!(
                "user `{user}` or its password was refused; check MAESTRO_CACHE_URL and MAESTRO_CACHE_PASSWORD"
            ),
        ),
        Some("OOM") => (
            ErrorKind::OutOfMemory,
            "the server has no memory left; raise `maxmemory` or set an eviction policy".to_owned(),
        ),
        Some("LOADING" | "MASTERDOWN" | "BUSY") => (
            ErrorKind::Loading,
            "the server is not ready to answer; it will be when its data is loaded".to_owned(),
        ),
        Some("READONLY" | "UNBLOCKED") => return replica(operation, config, Some(error)),
        Some("WRONGTYPE") => (
            ErrorKind::WrongType,
            "the key holds another type; something else writes below this prefix".to_owned(),
        ),
        Some(code) => (ErrorKind::Server, format!("the server answered {code}")),
        None if error.is_io_error() => (
            ErrorKind::Unavailable,
            "the connection failed; check that the server runs and can be reached".to_owned(),
        ),
        None => (
            ErrorKind::Server,
            "the answer was not understood; check that it is a Redis server of version 7 or later"
                .to_owned(),
        ),
    };
    Error::with_source(
        kind,
        format!(
            "{operation} on Redis at {} failed: {advice}",
            config.server()
        ),
        error,
    )
}
