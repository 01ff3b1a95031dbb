//! Opens one connection to the server: options, session rules, TLS, deadline, the error's words.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use crate::config::{DbConfig, Endpoint, Pooler, SslMode, Timeouts};
use crate::error::{Error, ErrorKind, classify};
use crate::login::{Given, Login};
use crate::pooler::MARK;

/// What a connection is for; decides its session rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Statements of the service, through the pooler if there is one.
    Service,
    /// Session features on the server itself: LISTEN, advisory locks.
    Direct,
    /// Migrations: no statement timeout, short lock timeout.
    Migration,
}

/// Opens connections to one endpoint for one purpose.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    options: PgConnectOptions,
    login: Login,
    timeout: Duration,
    pooler: Pooler,
    rules: Vec<(&'static str, String)>,
}

impl Connector {
    pub(crate) fn new(config: &DbConfig, login: Login, purpose: Purpose) -> Result<Self, Error> {
        install_crypto_provider();
        let pooler = match purpose {
            Purpose::Service => config.pooler,
            Purpose::Direct | Purpose::Migration => Pooler::None,
        };
        let rules = session_rules(&config.timeouts, purpose);
        let endpoint = login.endpoint();
        let mut options = base(endpoint)?
            .application_name(&config.application_name)
            .ssl_mode(ssl_mode(endpoint, config.tls.ca.as_deref()));
        if let Some(ca) = &config.tls.ca {
            options = options.ssl_root_cert(ca);
        } else {
            // An empty bundle adds nothing to the system's roots, and replaces PGSSLROOTCERT.
            options = options.ssl_root_cert_from_pem(Vec::new());
        }
        if let Some((cert, key)) = &config.tls.identity {
            options = options.ssl_client_cert(cert).ssl_client_key(key);
        }
        options = match pooler {
            // It refuses both; the session rules are settings of the role there.
            Pooler::PgBouncer => options.extra_float_digits(None),
            Pooler::None => options
                .options(rules.iter().map(|(name, value)| (*name, value.as_str())))
                .options([MARK]),
        };
        Ok(Self {
            endpoint: endpoint.clone(),
            options: options.disable_statement_logging(),
            login,
            timeout: config.timeouts.connect,
            pooler,
            rules,
        })
    }

    /// As the server's administrator: no limits but the caller's.
    pub(crate) fn administrator(endpoint: &Endpoint) -> Result<Self, Error> {
        install_crypto_provider();
        let options = base(endpoint)?
            .application_name("maestro provisioning")
            .ssl_mode(ssl_mode(endpoint, None))
            .ssl_root_cert_from_pem(Vec::new());
        Ok(Self {
            endpoint: endpoint.clone(),
            options: options.disable_statement_logging(),
            login: Login::new(endpoint.clone(), Given::default()),
            timeout: ADMINISTRATOR,
            pooler: Pooler::None,
            rules: Vec::new(),
        })
    }

    /// Longest time to open one connection.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn pooler(&self) -> Pooler {
        self.pooler
    }

    /// Settings that each session should have, as `pg_settings` shows them.
    pub(crate) fn rules(&self) -> &[(&'static str, String)] {
        &self.rules
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// True when new connections log in otherwise than the last one that was opened.
    pub(crate) fn has_rotated(&self) -> bool {
        self.login.has_changed()
    }

    /// How often connections were opened with something else than the one before.
    pub(crate) fn rotations(&self) -> u64 {
        self.login.rotations()
    }

    /// The driver's options as they are now, for a library that connects by itself.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options_for(&self.login.now())
    }

    fn options_for(&self, now: &Endpoint) -> PgConnectOptions {
        self.options
            .clone()
            .host(&now.host)
            .port(now.port)
            .username(&now.user)
            .database(&now.database)
            // Also when there is none: sqlx would take PGPASSWORD otherwise.
            .password(
                now.password
                    .as_ref()
                    .map_or("", |password| password.expose()),
            )
    }

    /// Opens a connection, or says why it cannot be opened, within the connect timeout.
    ///
    /// A login that is refused is tried again with what the secret files hold by then, and with what
    /// worked last: a rotation changes the files and the server at two moments, in either order.
    ///
    /// Dropping the future closes the socket.
    pub(crate) async fn open(&self) -> Result<PgConnection, Error> {
        let started = Instant::now();
        match tokio::time::timeout(self.timeout, Box::pin(self.log_in())).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.explain(error, started.elapsed())),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "connecting to {} took longer than {:?} (MAESTRO_POSTGRES_CONNECT_TIMEOUT): the host does not answer, or the server is overloaded",
                    self.endpoint, self.timeout
                ),
            )),
        }
    }

    async fn log_in(&self) -> Result<PgConnection, sqlx::Error> {
        let tried = self.login.now();
        let refused = match PgConnection::connect_with(&self.options_for(&tried)).await {
            Ok(connection) => {
                self.login.worked(tried);
                return Ok(connection);
            }
            Err(error) if is_refused_login(&error) => error,
            Err(error) => return Err(error),
        };
        for other in self.login.others(&tried) {
            if let Ok(connection) = PgConnection::connect_with(&self.options_for(&other)).await {
                tracing::info!(
                    endpoint = %self.endpoint,
                    "the login was refused and worked with the password that was or is about to be in force"
                );
                self.login.worked(other);
                return Ok(connection);
            }
        }
        Err(refused)
    }

    fn explain(&self, error: sqlx::Error, elapsed: Duration) -> Error {
        let endpoint = &self.endpoint;
        let code = match &error {
            sqlx::Error::Database(error) => error.code().map(std::borrow::Cow::into_owned),
            _ => None,
        };
        let look_at = match code.as_deref() {
            _ if is_refused_login(&error) => {
                "the role or its password is wrong: look at MAESTRO_POSTGRES_URL and MAESTRO_POSTGRES_PASSWORD"
            }
            Some("3D000") => "the database does not exist: was the service provisioned?",
            Some("42501") => {
                "the role may not connect to this database: was the service provisioned?"
            }
            Some("53300") => {
                "the server or the role has no connection left: compare the services' pool maxima with CONNECTION LIMIT and max_connections"
            }
            Some("57P03") => "the server is starting or shutting down",
            Some("08P01") if !is_refused_login(&error) => {
                "a PgBouncer seems to stand between: set MAESTRO_POSTGRES_POOLER=pgbouncer"
            }
            _ => match &error {
                sqlx::Error::Io(io) if is_tls(io) => TLS_FAILED,
                sqlx::Error::Io(_) => "is the server running and the address right?",
                sqlx::Error::Tls(_) => TLS_FAILED,
                _ => "the server's log may say more",
            },
        };
        let kind = match classify(&error) {
            // While connecting, a refusal is about settings and not about a statement.
            ErrorKind::Rejected => ErrorKind::Config,
            _ if matches!(&error, sqlx::Error::Io(io) if is_tls(io)) => ErrorKind::Config,
            // And so is a start-up message that the other end does not take.
            _ if code.as_deref() == Some("08P01") => ErrorKind::Config,
            kind => kind,
        };
        Error::new(
            kind,
            format!("connecting to {endpoint} failed after {elapsed:.1?}; {look_at}"),
        )
        .with_source(error)
    }
}

/// Options that take nothing from `PG*` variables or `.pgpass`.
///
/// sqlx fills every field from them. All but two kinds are overwritten here or by the caller; those
/// two cannot be unset through sqlx's interface, so their presence is an error.
fn base(endpoint: &Endpoint) -> Result<PgConnectOptions, Error> {
    let options = PgConnectOptions::new_without_pgpass();
    let refused = |variable: &str| {
        Error::new(
            ErrorKind::Config,
            format!(
                "{variable} is set in the environment and would change every connection behind the back of MAESTRO_POSTGRES_*: unset it"
            ),
        )
    };
    if options.get_options().is_some() {
        return Err(refused("PGOPTIONS"));
    }
    let url = options.to_url_lossy();
    for (parameter, variable) in [("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY")] {
        if url.query_pairs().any(|(key, _)| key == parameter) {
            return Err(refused(variable));
        }
    }
    Ok(options
        .host(&endpoint.host)
        .port(endpoint.port)
        .username(&endpoint.user)
        .password("")
        .database(&endpoint.database))
}

const TLS_FAILED: &str = "TLS failed: look at `sslmode` and MAESTRO_POSTGRES_TLS_CA";

/// A certificate that is not accepted, by either side.
fn is_tls(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// The server does not take this role with this password. PgBouncer has no SQLSTATE for it.
fn is_refused_login(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return false;
    };
    match error.code().as_deref() {
        Some("28P01" | "28000") => true,
        Some("08P01") => error.message().contains("authentication failed"),
        _ => false,
    }
}

/// As [`is_refused_login`], of an error of ours: in a process that was let in before, a rotation is
/// under way.
pub(crate) fn refused_login(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<sqlx::Error>())
        .is_some_and(is_refused_login)
}

fn ssl_mode(endpoint: &Endpoint, ca: Option<&Path>) -> PgSslMode {
    match (endpoint.ssl_mode, ca) {
        (Some(SslMode::Disable), _) => PgSslMode::Disable,
        (Some(SslMode::Require), _) => PgSslMode::Require,
        (Some(SslMode::VerifyCa), _) => PgSslMode::VerifyCa,
        (Some(SslMode::VerifyFull), _) | (None, Some(_)) => PgSslMode::VerifyFull,
        (Some(SslMode::Prefer), _) | (None, None) => PgSslMode::Prefer,
    }
}

/// Settings of the session, sent in the start-up message so that `RESET ALL` returns to them.
fn session_rules(timeouts: &Timeouts, purpose: Purpose) -> Vec<(&'static str, String)> {
    let millis = |limit: Option<Duration>| limit.map_or(0, |limit| limit.as_millis()).to_string();
    let (statement, lock) = match purpose {
        Purpose::Service | Purpose::Direct => (timeouts.statement, timeouts.lock),
        // A migration may run for hours, but must not make the service's statements queue behind
        // its wait for a lock.
        Purpose::Migration => (None, Some(MIGRATION_LOCK_TIMEOUT)),
    };
    vec![
        ("statement_timeout", millis(statement)),
        ("lock_timeout", millis(lock)),
        (
            "idle_in_transaction_session_timeout",
            millis(timeouts.idle_in_transaction),
        ),
        // A cancelled statement is a closed socket: this is how soon the server notices.
        ("client_connection_check_interval", "1000".to_owned()),
    ]
}

/// Longest time for an administrator to connect; the platform's default for services.
const ADMINISTRATOR: Duration = Duration::from_secs(5);

const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// rustls takes whichever provider the process installed first; without one, a process that has two
/// compiled in panics at its first handshake.
fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Losing the race against another crate means that there is one now.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_has_no_statement_timeout_and_a_short_lock_timeout() {
        let timeouts = Timeouts {
            acquire: Duration::from_secs(5),
            connect: Duration::from_secs(5),
            statement: Some(Duration::from_secs(30)),
            lock: Some(Duration::from_secs(10)),
            idle_in_transaction: None,
            idle: None,
            max_lifetime: None,
            slow_query: None,
        };
        let rules = session_rules(&timeouts, Purpose::Migration);
        assert!(rules.contains(&("statement_timeout", "0".to_owned())));
        assert!(rules.contains(&("lock_timeout", "5000".to_owned())));
        let rules = session_rules(&timeouts, Purpose::Service);
        assert!(rules.contains(&("statement_timeout", "30000".to_owned())));
        assert!(rules.contains(&("idle_in_transaction_session_timeout", "0".to_owned())));
    }
}
