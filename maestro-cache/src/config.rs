//! Settings from the environment: `MAESTRO_CACHE_*`.

use std::sync::Arc;
use std::time::Duration;

use maestro_config::{
    FromEnvironment, Kind, Reader, Secret, ServerUrl, ServiceName, Table, TlsPaths, Variable,
};
use url::Url;

use crate::connection::Double;

/// Where the service's Redis is, and how to speak to it.
///
/// ```
/// use std::time::Duration;
/// use maestro_cache::CacheConfig;
/// use maestro_config::Environment;
///
/// let environment = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "quality-fabric"),
///     ("MAESTRO_CACHE_URL", "redis://quality_fabric:secret@maestro-redis:6379/0"),
/// ]);
/// let config = environment.read::<CacheConfig>()?;
/// assert_eq!(config.prefix(), "quality-fabric:");
/// assert_eq!(config.server(), "maestro-redis:6379/0");
/// assert_eq!(config.default_ttl(), Duration::from_mins(5));
/// assert_eq!(config.command_timeout(), Duration::from_millis(500));
/// # Ok::<(), maestro_config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// What is asked for every new connection: secret files may have changed.
    pub(crate) url: ServerUrl,
    /// As it was when the settings were read: for messages and labels, which do not follow a file.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: u16,
    pub(crate) username: Option<String>,
    pub(crate) tls: TlsPaths,
    pub(crate) prefix: String,
    pub(crate) default_ttl: Duration,
    pub(crate) local_ttl: Duration,
    pub(crate) command_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) local_capacity: u64,
    pub(crate) connections: usize,
    /// What stands in for the server.
    pub(crate) double: Option<Arc<dyn Double>>,
}

impl CacheConfig {
    /// The prefix of every key and channel of the service.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The server, without user and password: for messages.
    pub fn server(&self) -> String {
        let host = &self.host;
        if host.contains(':') {
            return format!("[{host}]:{}/{}", self.port, self.database);
        }
        format!("{host}:{}/{}", self.port, self.database)
    }

    /// Where to connect and as whom, now.
    pub(crate) fn location(&self) -> Result<Location, &'static str> {
        parse_location(self.url.current().expose())
    }

    /// Lifetime of entries of a region that sets none.
    pub fn default_ttl(&self) -> Duration {
        self.default_ttl
    }

    /// Longest wait for the answer to one command.
    pub fn command_timeout(&self) -> Duration {
        self.command_timeout
    }
}

const SERVICE: Variable = Variable::new("MAESTRO_SERVICE_NAME", Kind::Name)
    .required()
    .doc("Name of the service; the default prefix is made of it.")
    .example("quality-fabric");
const URL: Variable = Variable::new(
    "MAESTRO_CACHE_URL",
    Kind::Url {
        schemes: &["redis", "rediss"],
    },
)
.aliases(&["REDIS_URL"])
.secret()
.required()
.doc("Redis server, user and database number. `rediss` is TLS. One server: Cluster and Sentinel are not supported.")
.example("redis://quality_fabric:<password>@maestro-redis:6379/0");
const PASSWORD: Variable = Variable::new("MAESTRO_CACHE_PASSWORD", Kind::String)
    .secret()
    .doc("Password apart from the URL, so that only the secret rotates; wins over the URL's.")
    .example("<password>");
const PREFIX: Variable = Variable::new("MAESTRO_CACHE_PREFIX", Kind::String)
    .doc("Prefix of every key and channel; `<service>:` when absent. Letters, digits, `-`, `_`, `.` and a final `:`.")
    .example("qf:");
const DEFAULT_TTL: Variable = Variable::new("MAESTRO_CACHE_DEFAULT_TTL", Kind::Duration)
    .default("5m")
    .doc("Lifetime of entries of a region that sets none; at least 1s.")
    .example("5m");
const LOCAL_TTL: Variable = Variable::new("MAESTRO_CACHE_LOCAL_TTL", Kind::Duration)
    .default("60s")
    .doc("Longest time a value is served from process memory without asking Redis; bounds staleness while the connection for invalidations is lost.")
    .example("60s");
const COMMAND_TIMEOUT: Variable = Variable::new("MAESTRO_CACHE_COMMAND_TIMEOUT", Kind::Duration)
    .default("500ms")
    .doc("Longest wait for the answer to one command; 10ms to 1m.")
    .example("500ms");
const CONNECT_TIMEOUT: Variable = Variable::new("MAESTRO_CACHE_CONNECT_TIMEOUT", Kind::Duration)
    .default("1s")
    .doc("Longest wait for a connection, its TLS and its handshake; 10ms to 1m.")
    .example("1s");
const LOCAL_CAPACITY: Variable = Variable::new("MAESTRO_CACHE_LOCAL_CAPACITY", Kind::Size)
    .default("64MiB")
    .doc("Memory for values kept in the process, over all regions; 0 keeps none.")
    .example("64MiB");
const CONNECTIONS: Variable =
    Variable::new("MAESTRO_CACHE_CONNECTIONS", Kind::Count { min: 1, max: 64 })
        .default("1")
        .doc("Multiplexed connections for commands; one more is kept for invalidations.")
        .example("1");
const TLS_CA: Variable = Variable::new("MAESTRO_CACHE_TLS_CA", Kind::Path)
    .doc("PEM file with the authority to trust instead of the system's.")
    .example("/run/secrets/ca.pem");
const TLS_CERT: Variable = Variable::new("MAESTRO_CACHE_TLS_CERT", Kind::Path)
    .doc("PEM file with the client certificate; needs `_KEY`.")
    .example("/run/secrets/client.pem");
const TLS_KEY: Variable = Variable::new("MAESTRO_CACHE_TLS_KEY", Kind::Path)
    .doc("PEM file with the client certificate's key; needs `_CERT`.")
    .example("/run/secrets/client.key");

static TABLE: Table = Table {
    owner: "maestro-cache",
    areas: &["MAESTRO_CACHE_"],
    variables: &[
        URL,
        PASSWORD,
        PREFIX,
        DEFAULT_TTL,
        LOCAL_TTL,
        COMMAND_TIMEOUT,
        CONNECT_TIMEOUT,
        LOCAL_CAPACITY,
        CONNECTIONS,
        TLS_CA,
        TLS_CERT,
        TLS_KEY,
    ],
};

impl FromEnvironment for CacheConfig {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let url = reader.server_url(&URL, Some(&PASSWORD));
        let location = url.as_ref().and_then(|url| location(reader, url));
        let prefix = prefix(reader);
        let default_ttl = bounded(reader, &DEFAULT_TTL, 1_000, 366 * 86_400_000);
        let local_ttl = bounded(reader, &LOCAL_TTL, 0, 86_400_000);
        let command_timeout = bounded(reader, &COMMAND_TIMEOUT, 10, 60_000);
        let connect_timeout = bounded(reader, &CONNECT_TIMEOUT, 10, 60_000);
        let local_capacity = reader.size(&LOCAL_CAPACITY);
        let connections = reader.count(&CONNECTIONS);
        let tls = reader.tls(&TLS_CA, &TLS_CERT, &TLS_KEY);

        let (location, tls) = (location?, tls?);
        let named = tls.ca.is_some() || tls.identity.is_some();
        if named && !location.tls {
            reader.problem(
                &URL,
                "TLS files are set, but the scheme is `redis`, which sends everything in the clear",
                "MAESTRO_CACHE_URL=rediss://…, or unset MAESTRO_CACHE_TLS_*",
            );
            return None;
        }
        Some(Self {
            url: url?,
            host: location.host,
            port: location.port,
            database: location.database,
            username: location.username,
            tls,
            prefix: prefix?,
            default_ttl: default_ttl?,
            local_ttl: local_ttl?,
            command_timeout: command_timeout?,
            connect_timeout: connect_timeout?,
            local_capacity: local_capacity?,
            connections: usize::try_from(connections?).ok()?,
            double: None,
        })
    }
}

/// What the URL says.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: u16,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret<String>>,
}

fn location(reader: &mut Reader<'_>, url: &ServerUrl) -> Option<Location> {
    match parse_location(url.current().expose()) {
        Ok(location) => Some(location),
        Err(problem) => {
            reader.problem(
                &URL,
                problem,
                "MAESTRO_CACHE_URL=redis://<user>:<password>@<host>:6379/<database>",
            );
            None
        }
    }
}

pub(crate) fn parse_location(text: &str) -> Result<Location, &'static str> {
    const ONE_SERVER: &str = "names a Cluster, Sentinels or several servers: one Redis server with its replica is supported";
    let url = Url::parse(text).map_err(|_| "expected a URL")?;
    let tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        other if other.contains("cluster") || other.contains("sentinel") => return Err(ONE_SERVER),
        _ => return Err("expected the scheme `redis` or `rediss`"),
    };
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or("expected a host")?;
    if host.contains(',') {
        return Err(ONE_SERVER);
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(
            "has a query or a fragment: settings are variables of their own, and an unverified TLS peer is not supported",
        );
    }
    let database = match url.path().trim_matches('/') {
        "" => 0,
        path => path
            .parse()
            .map_err(|_| "expected a database number as the path, such as `/0`")?,
    };
    let decode = |text: &str| decode(text).ok_or("has user or password that is not UTF-8");
    let username = Some(url.username()).filter(|name| !name.is_empty());
    let username = username.map(decode).transpose()?;
    let password = url.password().filter(|password| !password.is_empty());
    let password = password.map(decode).transpose()?.map(Secret::new);
    Ok(Location {
        tls,
        host: host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned(),
        port: url.port().unwrap_or(6379),
        database,
        username,
        password,
    })
}

/// Percent-decoding: the `url` crate keeps user and password encoded.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn prefix(reader: &mut Reader<'_>) -> Option<String> {
    let Some(prefix) = reader.optional(&PREFIX, Reader::string)? else {
        return reader
            .service_name(&SERVICE)
            .as_ref()
            .map(ServiceName::cache_prefix);
    };
    let body = prefix.strip_suffix(':').unwrap_or_default();
    let fits = (1..=64).contains(&body.len())
        && body
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !fits {
        reader.problem(
            &PREFIX,
            "expected 1 to 64 letters, digits, `-`, `_` or `.`, and a final `:`: it is also a pattern of the server's access rules",
            "MAESTRO_CACHE_PREFIX=qf:",
        );
        return None;
    }
    Some(prefix)
}

fn bounded(reader: &mut Reader<'_>, variable: &Variable, min: u64, max: u64) -> Option<Duration> {
    let value = reader.duration(variable)?;
    let (min, max) = (Duration::from_millis(min), Duration::from_millis(max));
    if (min..=max).contains(&value) {
        return Some(value);
    }
    reader.problem(
        variable,
        format!("expected {min:?} to {max:?}"),
        format!("unset {} for its default", variable.name()),
    );
    None
}

#[cfg(test)]
mod tests {
    use maestro_config::{ConfigError, Environment};

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<CacheConfig, ConfigError> {
        Environment::from_pairs(pairs.iter().copied()).read()
    }

    #[test]
    fn the_url_gives_server_user_database_and_password() {
        let config = read(&[
            ("MAESTRO_SERVICE_NAME", "maestro-v2"),
            (
                "MAESTRO_CACHE_URL",
                "rediss://maestro_v2:p%40ss%2Fword@[::1]:7000/4",
            ),
        ])
        .unwrap();
        assert_eq!(config.host, "::1");
        assert_eq!(config.server(), "[::1]:7000/4");
        assert_eq!(config.username.as_deref(), Some("maestro_v2"));
        let location = config.location().unwrap();
        assert_eq!(location.password.unwrap().expose(), "p@ss/word");
        assert!(location.tls);
        assert_eq!(config.prefix, "maestro-v2:");
    }

    #[test]
    fn a_password_of_its_own_wins_over_the_url() {
        let config = read(&[
            ("MAESTRO_CACHE_PREFIX", "mv2:"),
            ("MAESTRO_CACHE_URL", "redis://u:old@h"),
            ("MAESTRO_CACHE_PASSWORD", "new"),
        ])
        .unwrap();
        let location = config.location().unwrap();
        assert_eq!(location.password.unwrap().expose(), "new");
    }

    #[test]
    fn a_password_that_rotates_on_disk_is_the_next_connections() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "first").unwrap();
        let config = read(&[
            ("MAESTRO_CACHE_PREFIX", "mv2:"),
            ("MAESTRO_CACHE_URL", "redis://u@h"),
            ("MAESTRO_CACHE_PASSWORD_FILE", file.to_str().unwrap()),
        ])
        .unwrap();
        let password = || config.location().unwrap().password.unwrap();
        assert_eq!(password().expose(), "first");
        std::fs::write(&file, "a/se:c@nd %one").unwrap();
        assert_eq!(password().expose(), "a/se:c@nd %one");
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_variable_at_fault() {
        for (name, value) in [
            ("MAESTRO_CACHE_URL", "redis://a:6379,b:6379/0"),
            ("MAESTRO_CACHE_URL", "redis+cluster://h/0"),
            ("MAESTRO_CACHE_URL", "redis-sentinel://h/0"),
            ("MAESTRO_CACHE_URL", "http://h/0"),
            ("MAESTRO_CACHE_URL", "redis://h/zero"),
            ("MAESTRO_CACHE_URL", "redis://h/0?protocol=resp2"),
            ("MAESTRO_CACHE_URL", "redis://u:%ff@h/0"),
            ("MAESTRO_CACHE_PREFIX", "qf"),
            ("MAESTRO_CACHE_PREFIX", ":"),
            ("MAESTRO_CACHE_PREFIX", "*:"),
            ("MAESTRO_CACHE_COMMAND_TIMEOUT", "0"),
            ("MAESTRO_CACHE_CONNECTIONS", "0"),
            ("MAESTRO_CACHE_DEFAULT_TTL", "0"),
            ("MAESTRO_CACHE_TLS_CERT", "/c.pem"),
        ] {
            let mut pairs = vec![
                ("MAESTRO_SERVICE_NAME", "orders"),
                ("MAESTRO_CACHE_URL", "redis://h/0"),
            ];
            pairs.retain(|pair| pair.0 != name);
            pairs.push((name, value));
            let error = read(&pairs).expect_err(value);
            assert!(
                error.problems().iter().any(|p| p.variable() == name),
                "{value}: {error}"
            );
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let config = read(&[
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_CACHE_URL", "redis://u:canary@h/0"),
        ])
        .unwrap();
        assert!(!format!("{config:?} {}", config.server()).contains("canary"));
        let refused = read(&[
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_CACHE_URL", "redis://u:canary@h/zero"),
        ]);
        assert!(!format!("{refused:?}").contains("canary"));
    }
}
