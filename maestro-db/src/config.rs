//! Settings: every `MAESTRO_POSTGRES_*` variable, read once into values that need no later check.

// Long because the settings, their table and its reader must be seen side by side.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use maestro_config::{FromEnvironment, Identity, Kind, Reader, Secret, Table, Variable};
use url::Url;

/// What stands between the service and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooler {
    /// Nothing: a connection is a session.
    None,
    /// PgBouncer in transaction mode: a connection is whatever session is free.
    PgBouncer,
}

/// Settings of a service's database, read from `MAESTRO_POSTGRES_*`.
///
/// ```
/// use maestro_config::Environment;
/// use maestro_db::DbConfig;
///
/// let config = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "orders"),
///     ("MAESTRO_ENVIRONMENT", "test"),
///     ("MAESTRO_POSTGRES_URL", "postgresql://orders:secret@maestro-postgres:5432/orders"),
/// ])
/// .read::<DbConfig>()?;
/// assert_eq!(config.pool_max(), 10);
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), maestro_config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DbConfig {
    pub(crate) application_name: String,
    pub(crate) main: Endpoint,
    pub(crate) direct: Endpoint,
    pub(crate) migration: Endpoint,
    #[expect(
        dead_code,
        reason = "checked at the start; nothing is routed to replicas yet"
    )]
    pub(crate) read: Option<Endpoint>,
    pub(crate) pooler: Pooler,
    pub(crate) pool_max: usize,
    pub(crate) pool_min: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) tls: Tls,
}

/// Durations of [`DbConfig`]; `None` means no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) acquire: Duration,
    pub(crate) connect: Duration,
    pub(crate) statement: Option<Duration>,
    pub(crate) lock: Option<Duration>,
    pub(crate) idle_in_transaction: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) slow_query: Option<Duration>,
}

/// Own certificate authority, and a client certificate for mutual TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// Where to connect, as whom.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Option<Secret<String>>,
    pub(crate) database: String,
    pub(crate) ssl_mode: Option<SslMode>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl DbConfig {
    /// Largest number of connections of this process.
    pub fn pool_max(&self) -> usize {
        self.pool_max
    }

    /// Connections that are kept open when nothing uses them.
    pub fn pool_min(&self) -> usize {
        self.pool_min
    }

    /// How long a caller waits for a connection.
    pub fn acquire_timeout(&self) -> Duration {
        self.timeouts.acquire
    }

    /// What stands between the service and the server.
    pub fn pooler(&self) -> Pooler {
        self.pooler
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.main.database
    }

    /// The role this service logs in as.
    pub fn role(&self) -> &str {
        &self.main.user
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user,
            host,
            port,
            database,
            ..
        } = self;
        write!(f, "postgresql://{user}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

const SCHEMES: &[&str] = &["postgresql", "postgres"];

const URL: Variable = Variable::new("MAESTRO_POSTGRES_URL", Kind::Url { schemes: SCHEMES })
    .aliases(&["DATABASE_URL"])
    .secret()
    .required()
    .doc("The service's database, through the pooler if there is one.")
    .example("postgresql://orders:<password>@maestro-postgres:5432/orders");
const DIRECT_URL: Variable =
    Variable::new("MAESTRO_POSTGRES_DIRECT_URL", Kind::Url { schemes: SCHEMES })
        .secret()
        .doc("The server itself, for migrations, LISTEN and advisory locks; MAESTRO_POSTGRES_URL when absent.")
        .example("postgresql://orders:<password>@maestro-postgres:5432/orders");
const MIGRATION_URL: Variable = Variable::new(
    "MAESTRO_POSTGRES_MIGRATION_URL",
    Kind::Url { schemes: SCHEMES },
)
.secret()
.doc("The server itself as the migrating role; MAESTRO_POSTGRES_DIRECT_URL when absent.")
.example("postgresql://orders_migrator:<password>@maestro-postgres:5432/orders");
const PASSWORD: Variable = Variable::new("MAESTRO_POSTGRES_PASSWORD", Kind::String)
    .secret()
    .doc("Password of the role in MAESTRO_POSTGRES_URL, apart from it so that only the secret rotates; the URL's own when absent.")
    .example("<password>");
const READ_URL: Variable =
    Variable::new("MAESTRO_POSTGRES_READ_URL", Kind::Url { schemes: SCHEMES })
        .secret()
        .doc("Read replicas. Checked, and not used yet: every read goes to the primary.")
        .example("postgresql://orders:<password>@maestro-postgres-read:5432/orders");
const POOLER: Variable =
    Variable::new("MAESTRO_POSTGRES_POOLER", Kind::Choice { words: &["none", "pgbouncer"] })
        .default("none")
        .doc("What stands between the service and the server; PgBouncer needs 1.21 or later with prepared statements.")
        .example("pgbouncer");
// Above a hundred connections per process the server does less work per second, not more.
const POOL_MAX: Variable = Variable::new(
    "MAESTRO_POSTGRES_POOL_MAX",
    Kind::Count { min: 1, max: 1_000 },
)
.default("10")
.doc("Largest number of connections of one process.")
.example("10");
const POOL_MIN: Variable = Variable::new(
    "MAESTRO_POSTGRES_POOL_MIN",
    Kind::Count { min: 0, max: 1_000 },
)
.default("0")
.doc("Connections kept open when nothing uses them.")
.example("2");
const ACQUIRE_TIMEOUT: Variable = Variable::new("MAESTRO_POSTGRES_ACQUIRE_TIMEOUT", Kind::Duration)
    .default("5s")
    .doc("How long a caller waits for a connection; above zero.")
    .example("5s");
const CONNECT_TIMEOUT: Variable = Variable::new("MAESTRO_POSTGRES_CONNECT_TIMEOUT", Kind::Duration)
    .default("5s")
    .doc("How long opening one connection may take, with TLS and authentication; above zero.")
    .example("5s");
const STATEMENT_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_STATEMENT_TIMEOUT", Kind::Duration)
        .default("30s")
        .doc("How long one statement may run, enforced by the server and with a little grace by the client; `0` = no limit.")
        .example("30s");
const LOCK_TIMEOUT: Variable = Variable::new("MAESTRO_POSTGRES_LOCK_TIMEOUT", Kind::Duration)
    .default("10s")
    .doc("How long a statement waits for a lock of another transaction; `0` = no limit.")
    .example("10s");
const IDLE_IN_TRANSACTION_TIMEOUT: Variable =
    Variable::new("MAESTRO_POSTGRES_IDLE_IN_TRANSACTION_TIMEOUT", Kind::Duration)
        .default("60s")
        .doc("How long a transaction may sit between two statements before the server ends it; `0` = no limit.")
        .example("60s");
const IDLE_TIMEOUT: Variable = Variable::new("MAESTRO_POSTGRES_IDLE_TIMEOUT", Kind::Duration)
    .default("10m")
    .doc("A connection unused for this long is closed, above the minimum; `0` = never.")
    .example("10m");
const MAX_LIFETIME: Variable = Variable::new("MAESTRO_POSTGRES_MAX_LIFETIME", Kind::Duration)
    .default("30m")
    .doc("A connection older than this is replaced when it is next free, with jitter; `0` = never.")
    .example("30m");
const SLOW_QUERY: Variable = Variable::new("MAESTRO_POSTGRES_SLOW_QUERY", Kind::Duration)
    .default("500ms")
    .doc("A statement that takes longer is logged as slow; `0` = no slow-query log.")
    .example("500ms");
const TLS_CA: Variable = Variable::new("MAESTRO_POSTGRES_TLS_CA", Kind::Path)
    .doc("Certificate authority of the server, PEM; turns full verification on.")
    .example("/run/secrets/postgres-ca.pem");
const TLS_CERT: Variable = Variable::new("MAESTRO_POSTGRES_TLS_CERT", Kind::Path)
    .doc("Client certificate for mutual TLS, PEM; together with MAESTRO_POSTGRES_TLS_KEY.")
    .example("/run/secrets/postgres-client.pem");
const TLS_KEY: Variable = Variable::new("MAESTRO_POSTGRES_TLS_KEY", Kind::Path)
    .doc("Key of the client certificate, PEM.")
    .example("/run/secrets/postgres-client.key");

static TABLE: Table = Table {
    owner: "maestro-db",
    areas: &["MAESTRO_POSTGRES_"],
    variables: &[
        URL,
        DIRECT_URL,
        MIGRATION_URL,
        PASSWORD,
        READ_URL,
        POOLER,
        POOL_MAX,
        POOL_MIN,
        ACQUIRE_TIMEOUT,
        CONNECT_TIMEOUT,
        STATEMENT_TIMEOUT,
        LOCK_TIMEOUT,
        IDLE_IN_TRANSACTION_TIMEOUT,
        IDLE_TIMEOUT,
        MAX_LIFETIME,
        SLOW_QUERY,
        TLS_CA,
        TLS_CERT,
        TLS_KEY,
    ],
};

impl FromEnvironment for DbConfig {
    fn tables() -> Vec<&'static Table> {
        [Identity::tables(), vec![&TABLE]].concat()
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let identity = Identity::read(reader);
        let main = required_endpoint(reader, &URL);
        let direct = optional_endpoint(reader, &DIRECT_URL);
        let migration = optional_endpoint(reader, &MIGRATION_URL);
        let read = optional_endpoint(reader, &READ_URL);
        let password = reader.optional(&PASSWORD, Reader::secret);
        let pooler = reader.choice(&POOLER);
        let pool_max = size(reader, &POOL_MAX);
        let pool_min = size(reader, &POOL_MIN);
        let timeouts = read_timeouts(reader);
        let tls = read_tls(reader);

        let (mut main, pool_max, pool_min) = (main?, pool_max?, pool_min?);
        let (mut direct, mut migration, mut read) = (direct?, migration?, read?);
        if pool_min > pool_max {
            reader.problem(
                &POOL_MIN,
                format!("is {pool_min}, above MAESTRO_POSTGRES_POOL_MAX, which is {pool_max}"),
                format!("MAESTRO_POSTGRES_POOL_MIN={pool_max}"),
            );
            return None;
        }
        if let Some(password) = password? {
            // The secret belongs to the role of the main URL, wherever that role logs in.
            let role = main.user.clone();
            let others = [direct.as_mut(), migration.as_mut(), read.as_mut()];
            for endpoint in others.into_iter().flatten().chain([&mut main]) {
                if endpoint.user == role {
                    endpoint.password = Some(password.clone());
                }
            }
        }
        let direct = direct.unwrap_or_else(|| main.clone());
        let migration = migration.unwrap_or_else(|| direct.clone());
        Some(Self {
            application_name: application_name(&identity?),
            main,
            direct,
            migration,
            read,
            pooler: match pooler?.as_str() {
                "pgbouncer" => Pooler::PgBouncer,
                _ => Pooler::None,
            },
            pool_max,
            pool_min,
            timeouts: timeouts?,
            tls: tls?,
        })
    }
}

/// `<service>/<version>/<instance>`, as it shows in `pg_stat_activity`.
fn application_name(identity: &Identity) -> String {
    let name = format!(
        "{}/{}/{}",
        identity.service(),
        identity.version(),
        identity.instance()
    );
    // PostgreSQL cuts a name at 63 bytes (NAMEDATALEN - 1) and shows anything but printable ASCII
    // as `?`; doing the same here keeps what we report equal to what the server shows.
    name.chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .take(63)
        .collect()
}

fn read_timeouts(reader: &mut Reader<'_>) -> Option<Timeouts> {
    let acquire = positive(reader, &ACQUIRE_TIMEOUT);
    let connect = positive(reader, &CONNECT_TIMEOUT);
    let statement = limit(reader, &STATEMENT_TIMEOUT);
    let lock = limit(reader, &LOCK_TIMEOUT);
    let idle_in_transaction = limit(reader, &IDLE_IN_TRANSACTION_TIMEOUT);
    let idle = limit(reader, &IDLE_TIMEOUT);
    let max_lifetime = limit(reader, &MAX_LIFETIME);
    let slow_query = limit(reader, &SLOW_QUERY);
    Some(Timeouts {
        acquire: acquire?,
        connect: connect?,
        statement: statement?,
        lock: lock?,
        idle_in_transaction: idle_in_transaction?,
        idle: idle?,
        max_lifetime: max_lifetime?,
        slow_query: slow_query?,
    })
}

fn read_tls(reader: &mut Reader<'_>) -> Option<Tls> {
    let ca = reader.optional(&TLS_CA, Reader::path);
    let cert = reader.optional(&TLS_CERT, Reader::path);
    let key = reader.optional(&TLS_KEY, Reader::path);
    let client = match (cert?, key?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            reader.problem(
                &TLS_KEY,
                "is not set, but the client certificate is",
                "MAESTRO_POSTGRES_TLS_KEY=/run/secrets/postgres-client.key",
            );
            return None;
        }
        (None, Some(_)) => {
            reader.problem(
                &TLS_CERT,
                "is not set, but the client key is",
                "MAESTRO_POSTGRES_TLS_CERT=/run/secrets/postgres-client.pem",
            );
            return None;
        }
    };
    Some(Tls { ca: ca?, client })
}

fn size(reader: &mut Reader<'_>, variable: &Variable) -> Option<usize> {
    reader
        .count(variable)
        .and_then(|count| usize::try_from(count).ok())
}

#[expect(
    clippy::option_option,
    reason = "outside: was it read; inside: is there a limit"
)]
fn limit(reader: &mut Reader<'_>, variable: &Variable) -> Option<Option<Duration>> {
    reader
        .duration(variable)
        .map(|duration| (!duration.is_zero()).then_some(duration))
}

fn positive(reader: &mut Reader<'_>, variable: &Variable) -> Option<Duration> {
    let duration = reader.duration(variable)?;
    if duration.is_zero() {
        reader.problem(
            variable,
            "is 0, but a wait for the server must end",
            format!("{}=5s", variable.name()),
        );
        return None;
    }
    Some(duration)
}

fn required_endpoint(reader: &mut Reader<'_>, variable: &Variable) -> Option<Endpoint> {
    let url = reader.url(variable)?;
    parse_endpoint(reader, variable, &url)
}

#[expect(
    clippy::option_option,
    reason = "outside: was it read; inside: is it set"
)]
fn optional_endpoint(reader: &mut Reader<'_>, variable: &Variable) -> Option<Option<Endpoint>> {
    match reader.optional(variable, Reader::url)? {
        None => Some(None),
        Some(url) => parse_endpoint(reader, variable, &url).map(Some),
    }
}

fn parse_endpoint(
    reader: &mut Reader<'_>,
    variable: &Variable,
    url: &Secret<String>,
) -> Option<Endpoint> {
    let parsed = Endpoint::parse(url);
    match parsed {
        Ok(endpoint) => Some(endpoint),
        Err(message) => {
            reader.problem(
                variable,
                message,
                format!(
                    "{}=postgresql://<role>:<password>@maestro-postgres:5432/<database>",
                    variable.name()
                ),
            );
            None
        }
    }
}

impl Endpoint {
    /// The end of a sentence that begins with the name of the URL, on error.
    pub(crate) fn parse(url: &Secret<String>) -> Result<Self, String> {
        match Url::parse(url.expose()) {
            Ok(url) => Self::from_url(&url),
            Err(_) => Err("is not a URL".to_owned()),
        }
    }

    /// The message on error never holds a part of the URL that could be a password.
    fn from_url(url: &Url) -> Result<Self, String> {
        if !SCHEMES.contains(&url.scheme()) {
            return Err("expected a URL that begins with `postgresql://`".to_owned());
        }
        let decode = |text: &str| {
            percent_decode(text).ok_or("holds a percent escape that is not UTF-8".to_owned())
        };
        let host = url
            .host_str()
            .filter(|host| !host.is_empty())
            .ok_or("names no host")?;
        let user = decode(url.username())?;
        if user.is_empty() {
            return Err("names no role".to_owned());
        }
        let database = decode(url.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err("names no database".to_owned());
        }
        let password = url.password().map(decode).transpose()?.map(Secret::new);
        let mut ssl_mode = None;
        for (key, value) in url.query_pairs() {
            if key != "sslmode" {
                return Err(format!(
                    "has the parameter `{key}`, which is not read: settings of a connection are MAESTRO_POSTGRES_* variables, and only `sslmode` belongs into the URL"
                ));
            }
            ssl_mode = Some(SslMode::parse(&value)?);
        }
        Ok(Self {
            // `url` keeps the brackets of an IPv6 address, a socket address does not have them.
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: url.port().unwrap_or(5432),
            user,
            password,
            database,
            ssl_mode,
        })
    }
}

impl SslMode {
    fn parse(word: &str) -> Result<Self, String> {
        Ok(match word {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(
                    "has an `sslmode` that is none of disable, prefer, require, verify-ca, verify-full"
                        .to_owned(),
                );
            }
        })
    }
}

/// `%41` → `A`; `None` when the bytes are not UTF-8 or an escape is cut short.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
