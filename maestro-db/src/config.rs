//! Settings: every `MAESTRO_POSTGRES_*` variable, read once into values that need no later check.

mod endpoint;
mod variables;

use std::time::Duration;

use maestro_config::{FromEnvironment, Identity, Reader, Table, TlsPaths, Variable};

pub(crate) use endpoint::{Endpoint, SslMode};
use variables::{
    ACQUIRE_TIMEOUT, CONNECT_TIMEOUT, DIRECT_URL, IDLE_IN_TRANSACTION_TIMEOUT, IDLE_TIMEOUT,
    LOCK_TIMEOUT, MAX_LIFETIME, MIGRATION_URL, PASSWORD, POOL_MAX, POOL_MIN, POOLER, READ_MAX_LAG,
    READ_URL, SLOW_QUERY, STATEMENT_TAGS, STATEMENT_TIMEOUT, TABLE, TLS_CA, TLS_CERT, TLS_KEY, URL,
};

use crate::statement::Tags;

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
/// use std::time::Duration;
/// use maestro_config::Environment;
/// use maestro_db::{DbConfig, Pooler};
///
/// let config = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "orders"),
///     ("MAESTRO_ENVIRONMENT", "test"),
///     ("MAESTRO_POSTGRES_URL", "postgresql://orders:secret@maestro-postgres:5432/orders"),
///     ("MAESTRO_POSTGRES_POOLER", "pgbouncer"),
/// ])
/// .read::<DbConfig>()?;
/// assert_eq!((config.role(), config.database()), ("orders", "orders"));
/// assert_eq!((config.pool_min(), config.pool_max()), (0, 10));
/// assert_eq!(config.acquire_timeout(), Duration::from_secs(5));
/// assert_eq!(config.pooler(), Pooler::PgBouncer);
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<(), maestro_config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DbConfig {
    pub(crate) application_name: String,
    pub(crate) main: Endpoint,
    pub(crate) direct: Endpoint,
    pub(crate) migration: Endpoint,
    /// A server that follows the main one, for reads; takes its place when it is promoted.
    pub(crate) read: Option<Endpoint>,
    /// How old the rows of a read may be.
    pub(crate) read_max_lag: Duration,
    pub(crate) pooler: Pooler,
    pub(crate) pool_max: usize,
    pub(crate) pool_min: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) statement_tags: Tags,
    pub(crate) tls: TlsPaths,
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

impl FromEnvironment for DbConfig {
    fn tables() -> Vec<&'static Table> {
        [Identity::tables(), vec![&TABLE]].concat()
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let identity = Identity::read(reader);
        let main = endpoint(reader, &URL, Some(&PASSWORD));
        let role = main.as_ref().map(|main| main.user.clone());
        let direct = optional_endpoint(reader, &DIRECT_URL, role.as_deref());
        let migration = optional_endpoint(reader, &MIGRATION_URL, role.as_deref());
        let read = optional_endpoint(reader, &READ_URL, role.as_deref());
        let read_max_lag = positive(reader, &READ_MAX_LAG);
        let pooler = reader.choice(&POOLER);
        let pool_max = size(reader, &POOL_MAX);
        let pool_min = size(reader, &POOL_MIN);
        let timeouts = read_timeouts(reader);
        let statement_tags = reader.choice(&STATEMENT_TAGS);
        let tls = reader.tls(&TLS_CA, &TLS_CERT, &TLS_KEY);

        let (main, pool_max, pool_min) = (main?, pool_max?, pool_min?);
        let (direct, migration, read) = (direct?, migration?, read?);
        if pool_min > pool_max {
            reader.problem(
                &POOL_MIN,
                format!("is {pool_min}, above MAESTRO_POSTGRES_POOL_MAX, which is {pool_max}"),
                format!("MAESTRO_POSTGRES_POOL_MIN={pool_max}"),
            );
            return None;
        }
        let direct = direct.unwrap_or_else(|| main.clone());
        let migration = migration.unwrap_or_else(|| direct.clone());
        let identity = identity?;
        Some(Self {
            application_name: application_name(&identity),
            statement_tags: match statement_tags?.as_str() {
                "service" => Tags::of(&identity.service().to_string(), identity.version()),
                _ => Tags::default(),
            },
            main,
            direct,
            migration,
            read,
            read_max_lag: read_max_lag?,
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

#[expect(
    clippy::option_option,
    reason = "outside: was it read; inside: is it set"
)]
fn optional_endpoint(
    reader: &mut Reader<'_>,
    variable: &Variable,
    role: Option<&str>,
) -> Option<Option<Endpoint>> {
    let found = reader.optional(variable, |reader, variable| {
        endpoint(reader, variable, None)
    })?;
    match found {
        // The password that stands apart belongs to the role of the main URL, wherever that role
        // logs in.
        Some(found) if Some(found.user.as_str()) == role => {
            endpoint(reader, variable, Some(&PASSWORD)).map(Some)
        }
        found => Some(found),
    }
}

fn endpoint(
    reader: &mut Reader<'_>,
    variable: &Variable,
    password: Option<&Variable>,
) -> Option<Endpoint> {
    let source = reader.server_url(variable, password)?;
    match Endpoint::parse(&source.current()) {
        Ok(endpoint) => Some(Endpoint {
            source: Some(source),
            ..endpoint
        }),
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

#[cfg(test)]
mod tests;
