//! The names and passwords of what one service owns.

use std::time::Duration;

use super::encode::percent;
use crate::conventions::{InvalidName, ServiceName};
use crate::secret::Secret;

/// The passwords of a service's users on the three servers.
#[derive(Clone, Debug)]
pub struct Passwords {
    /// Of the login role in PostgreSQL.
    pub postgres: Secret<String>,
    /// Of the role that runs migrations.
    pub migrator: Secret<String>,
    /// Of the Redis user.
    pub cache: Secret<String>,
    /// Of the RabbitMQ user.
    pub messaging: Secret<String>,
}

/// Everything a service owns on the shared servers, by name.
///
/// [`conventional`](Self::conventional) derives all of it from the service's name; the other methods
/// override one part (the catalogue may keep an older role or a short prefix).
#[derive(Clone, Debug)]
pub struct ServiceResources {
    service: ServiceName,
    pub(super) database: String,
    pub(super) owner_role: String,
    pub(super) migrator_role: String,
    pub(super) role: String,
    pub(super) connection_limit: u32,
    pub(super) migrator_connection_limit: u32,
    pub(super) statement_timeout: Duration,
    pub(super) lock_timeout: Duration,
    pub(super) idle_in_transaction_timeout: Duration,
    pub(super) redis_user: String,
    pub(super) prefix: String,
    pub(super) rabbit_user: String,
    pub(super) vhost: String,
    pub(super) passwords: Passwords,
}

impl ServiceResources {
    /// The conventional names of a service on the platform's servers.
    #[must_use]
    pub fn conventional(service: &ServiceName, passwords: Passwords) -> Self {
        Self {
            database: service.database(),
            owner_role: service.owner_role(),
            migrator_role: service.migrator_role(),
            role: service.role(),
            // The default pool of 10 for three replicas and one more while they roll over.
            connection_limit: 40,
            // One per replica that starts, and as many again for a second release and an operator.
            migrator_connection_limit: 10,
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            idle_in_transaction_timeout: Duration::from_mins(1),
            redis_user: service.role(),
            prefix: service.cache_prefix(),
            rabbit_user: service.role(),
            vhost: ServiceName::VHOST.to_owned(),
            passwords,
            service: service.clone(),
        }
    }

    /// The same service inside a sandbox: database, roles, users and prefix with `_t<id>` appended,
    /// and a vhost of its own, so that many run side by side on one server. AMQP names stay
    /// conventional inside that vhost.
    ///
    /// `id` is 1 to 12 lower-case letters and digits; longer ones would push a role past
    /// PostgreSQL's 63 bytes.
    pub fn sandboxed(mut self, id: &str) -> Result<Self, InvalidName> {
        let valid = (1..=12).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !valid {
            return Err(InvalidName::new(
                id,
                "a sandbox id of 1 to 12 lower-case letters and digits",
            ));
        }
        let suffix = format!("_t{id}");
        for name in [
            &mut self.database,
            &mut self.owner_role,
            &mut self.migrator_role,
            &mut self.role,
            &mut self.redis_user,
            &mut self.rabbit_user,
            &mut self.vhost,
        ] {
            name.push_str(&suffix);
        }
        self.prefix = format!("{}{suffix}:", self.prefix.trim_end_matches(':'));
        Ok(self)
    }

    /// Another database name; the owner and migrator roles follow it.
    pub fn with_database(mut self, name: &str) -> Result<Self, InvalidName> {
        // Room for `_migrator`.
        check_identifier(name, 54)?;
        name.clone_into(&mut self.database);
        self.owner_role = format!("{name}_owner");
        self.migrator_role = format!("{name}_migrator");
        Ok(self)
    }

    /// Another login role, which is also the Redis and RabbitMQ user.
    pub fn with_role(mut self, name: &str) -> Result<Self, InvalidName> {
        check_identifier(name, 63)?;
        for role in [&mut self.role, &mut self.redis_user, &mut self.rabbit_user] {
            name.clone_into(role);
        }
        Ok(self)
    }

    /// Another prefix of keys and channels: lower-case letters, digits, `-` and `_`, ending in one
    /// `:`. A character that Redis reads as a pattern would open other services' keys, and a prefix
    /// without its end would be the beginning of another's.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, InvalidName> {
        let label = prefix.strip_suffix(':').unwrap_or_default();
        let valid = (1..=64).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !valid {
            return Err(InvalidName::new(
                prefix,
                "lower-case letters, digits, `-` and `_` with one `:` at the end, such as `qf:`",
            ));
        }
        prefix.clone_into(&mut self.prefix);
        Ok(self)
    }

    /// Another vhost.
    pub fn with_vhost(mut self, vhost: &str) -> Result<Self, InvalidName> {
        if !(1..=128).contains(&vhost.len()) || vhost.contains(char::is_control) {
            return Err(InvalidName::new(
                vhost,
                "a vhost of 1 to 128 characters without control characters",
            ));
        }
        vhost.clone_into(&mut self.vhost);
        Ok(self)
    }

    /// Other passwords. PostgreSQL also takes what it keeps of one (`SCRAM-SHA-256$…`) in its place.
    #[must_use]
    pub fn with_passwords(mut self, passwords: Passwords) -> Self {
        self.passwords = passwords;
        self
    }

    /// Connections the login role may hold: pool maximum × (replicas + 1), so that a rolling update
    /// fits. Default 40.
    #[must_use]
    pub fn with_connection_limit(mut self, limit: u32) -> Self {
        self.connection_limit = limit;
        self
    }

    /// The login role's statement, lock and idle-in-transaction timeouts, enforced by the server.
    /// Default 30 s, 10 s, 60 s; zero means no limit.
    #[must_use]
    pub fn with_timeouts(
        mut self,
        statement: Duration,
        lock: Duration,
        idle_in_transaction: Duration,
    ) -> Self {
        self.statement_timeout = statement;
        self.lock_timeout = lock;
        self.idle_in_transaction_timeout = idle_in_transaction;
        self
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Its database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The NOLOGIN role that owns the database.
    pub fn owner_role(&self) -> &str {
        &self.owner_role
    }

    /// The login role that runs migrations.
    pub fn migrator_role(&self) -> &str {
        &self.migrator_role
    }

    /// The login role of the service.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The Redis user.
    pub fn redis_user(&self) -> &str {
        &self.redis_user
    }

    /// The prefix of its keys and channels.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The RabbitMQ user.
    pub fn rabbit_user(&self) -> &str {
        &self.rabbit_user
    }

    /// The vhost.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Its passwords.
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// `MAESTRO_POSTGRES_URL` of the service on a server at `authority` (`host:port`).
    pub fn postgres_url(&self, authority: &str) -> Secret<String> {
        let password = &self.passwords.postgres;
        url(
            "postgresql",
            &self.role,
            password,
            authority,
            &self.database,
        )
    }

    /// `MAESTRO_POSTGRES_MIGRATION_URL` of the service on a server at `authority` (`host:port`).
    pub fn postgres_migration_url(&self, authority: &str) -> Secret<String> {
        let password = &self.passwords.migrator;
        let role = &self.migrator_role;
        url("postgresql", role, password, authority, &self.database)
    }

    /// `MAESTRO_CACHE_URL` of the service on a server at `authority` (`host:port`), in database
    /// `number`.
    pub fn cache_url(&self, authority: &str, number: u16) -> Secret<String> {
        let password = &self.passwords.cache;
        let path = number.to_string();
        url("redis", &self.redis_user, password, authority, &path)
    }

    /// `MAESTRO_MESSAGING_URL` of the service on a server at `authority` (`host:port`).
    pub fn messaging_url(&self, authority: &str) -> Secret<String> {
        let password = &self.passwords.messaging;
        url("amqp", &self.rabbit_user, password, authority, &self.vhost)
    }
}

fn url(
    scheme: &str,
    user: &str,
    password: &Secret<String>,
    authority: &str,
    path: &str,
) -> Secret<String> {
    Secret::new(format!(
        "{scheme}://{}:{}@{authority}/{}",
        percent(user),
        percent(password.expose()),
        percent(path)
    ))
}

/// A PostgreSQL name that needs no thought anywhere: not in a URL, a connection string or a shell.
fn check_identifier(name: &str, longest: usize) -> Result<(), InvalidName> {
    let valid = (1..=longest).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.starts_with("pg_")
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if valid {
        return Ok(());
    }
    Err(InvalidName::new(
        name,
        "lower-case letters, digits and `_`, beginning with a letter and not with `pg_`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(service: &str) -> ServiceResources {
        let secret = |text: &str| Secret::new(text.to_owned());
        ServiceResources::conventional(
            &service.parse().unwrap(),
            Passwords {
                postgres: secret("p@ss/1"),
                migrator: secret("canary-2"),
                cache: secret("canary-3"),
                messaging: secret("canary-4"),
            },
        )
    }

    #[test]
    fn a_sandbox_carries_its_id_in_every_server_wide_name() {
        let sandbox = resources("quality-fabric").sandboxed("42ab").unwrap();
        assert_eq!(sandbox.database(), "quality_fabric_t42ab");
        assert_eq!(sandbox.owner_role(), "quality_fabric_owner_t42ab");
        assert_eq!(sandbox.migrator_role(), "quality_fabric_migrator_t42ab");
        assert_eq!(sandbox.prefix(), "quality-fabric_t42ab:");
        assert_eq!(sandbox.vhost(), "maestro_t42ab");
        let longest = resources(&"a".repeat(40))
            .sandboxed(&"b".repeat(12))
            .unwrap();
        assert_eq!(longest.migrator_role().len(), 63);
        for id in ["", "a b", "A", "1234567890123", "a'"] {
            assert!(resources("orders").sandboxed(id).is_err(), "{id}");
        }
    }

    #[test]
    fn urls_keep_an_awkward_password_in_its_place() {
        let url = resources("orders").postgres_url("[::1]:5432");
        assert_eq!(
            url.expose(),
            "postgresql://orders:p%40ss%2F1@[::1]:5432/orders"
        );
    }

    #[test]
    fn overrides_that_would_reach_beyond_the_service_are_refused() {
        for prefix in ["qf", "*:", "q?:", "qf::", ":", "", "q f:", "[a]:", "qf:*"] {
            assert!(resources("orders").with_prefix(prefix).is_err(), "{prefix}");
        }
        for role in ["pg_monitor", "Orders", "a b", "a\"b", "", "1a", "a-b"] {
            assert!(resources("orders").with_role(role).is_err(), "{role}");
        }
        assert!(resources("orders").with_prefix("qf:").is_ok());
    }

    #[test]
    fn debug_shows_no_password() {
        let shown = format!("{:?}", resources("orders"));
        assert!(
            !shown.contains("canary") && !shown.contains("p@ss"),
            "{shown}"
        );
    }
}
