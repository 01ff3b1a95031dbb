//! Opens one connection to the server: options, session rules, TLS, deadline, the error's words.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maestro_config::Secret;
use parking_lot::RwLock;
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use crate::config::{DbConfig, Endpoint, Pooler, SslMode, Timeouts};
use crate::error::{Error, ErrorKind, classify};
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
    password: Password,
    timeout: Duration,
    pooler: Pooler,
    rules: Vec<(&'static str, String)>,
}

/// The password as it is now: a rotation replaces it for every connection opened afterwards.
#[derive(Clone)]
pub(crate) struct Password(Arc<RwLock<Option<Secret<String>>>>);

impl Password {
    pub(crate) fn new(password: Option<Secret<String>>) -> Self {
        Self(Arc::new(RwLock::new(password)))
    }

    fn current(&self) -> Option<Secret<String>> {
        self.0.read().clone()
    }

    /// True when the password is another one than before.
    pub(crate) fn replace(&self, password: Secret<String>) -> bool {
        let mut current = self.0.write();
        let changed = current
            .as_ref()
            .is_none_or(|old| old.expose() != password.expose());
        *current = Some(password);
        changed
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Connector {
    pub(crate) fn new(
        config: &DbConfig,
        endpoint: &Endpoint,
        purpose: Purpose,
        password: Password,
    ) -> Result<Self, Error> {
        install_crypto_provider();
        let pooler = match purpose {
            Purpose::Service => config.pooler,
            Purpose::Direct | Purpose::Migration => Pooler::None,
        };
        let rules = session_rules(&config.timeouts, purpose);
        let mut options = base(endpoint)?
            .application_name(&config.application_name)
            .ssl_mode(ssl_mode(endpoint, config.tls.ca.as_deref()));
        if let Some(ca) = &config.tls.ca {
            options = options.ssl_root_cert(ca);
        } else {
            // An empty bundle adds nothing to the system's roots, and replaces PGSSLROOTCERT.
            options = options.ssl_root_cert_from_pem(Vec::new());
        }
        if let Some((cert, key)) = &config.tls.client {
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
            password,
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
            password: Password::new(endpoint.password.clone()),
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

    /// The options with the password of this moment, for a library that connects by itself.
    pub(crate) fn into_options(self) -> PgConnectOptions {
        let password = self.password.current();
        self.options
            .password(password.as_ref().map_or("", |password| password.expose()))
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The driver's options, with the password of now.
    pub(crate) fn options(&self) -> PgConnectOptions {
        let password = self.password.current();
        // Also when there is none: sqlx would take PGPASSWORD otherwise.
        self.options
            .clone()
            .password(password.as_ref().map_or("", |password| password.expose()))
    }

    /// Opens a connection, or says why it cannot be opened, within the connect timeout.
    ///
    /// Dropping the future closes the socket.
    pub(crate) async fn open(&self) -> Result<PgConnection, Error> {
        let started = Instant::now();
        let options = self.options();
        match tokio::time::timeout(self.timeout, PgConnection::connect_with(&options)).await {
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

    fn explain(&self, error: sqlx::Error, elapsed: Duration) -> Error {
        let endpoint = &self.endpoint;
        let code = match &error {
            sqlx::Error::Database(error) => error.code().map(std::borrow::Cow::into_owned),
            _ => None,
        };
        let look_at = match code.as_deref() {
            Some("28P01" | "28000") => {
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
            Some("08P01") => {
                "a PgBouncer seems to stand between: set MAESTRO_POSTGRES_POOLER=pgbouncer"
            }
            _ => match &error {
                sqlx::Error::Io(_) => "is the server running and the address right?",
                sqlx::Error::Tls(_) => "TLS failed: look at `sslmode` and MAESTRO_POSTGRES_TLS_CA",
                _ => "the server's log may say more",
            },
        };
        let kind = match classify(&error) {
            // While connecting, a refusal is about settings and not about a statement.
            ErrorKind::Rejected => ErrorKind::Config,
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

    #[test]
    fn a_rotation_to_the_same_password_changes_nothing() {
        let password = Password::new(Some(Secret::new("one".to_owned())));
        assert!(!password.replace(Secret::new("one".to_owned())));
        assert!(password.replace(Secret::new("two".to_owned())));
        assert_eq!(password.current().unwrap().expose(), "two");
    }
}
