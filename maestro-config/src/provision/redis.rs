//! Redis 7.0 and later and Valkey: one ACL user per service, shut into its prefix.

use std::fmt;

use super::encode::sha256_hex;
use super::resources::ServiceResources;
use crate::secret::Secret;

/// What the server is, as far as it changes the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// Names of loaded modules, lower-case (`search`, `timeseries`, `rejson`, `bf`).
    pub modules: Vec<String>,
}

impl Server {
    /// Reads the answer to `INFO everything` (or `INFO modules`).
    pub fn from_info(info: &str) -> Self {
        let modules = info
            .lines()
            .filter_map(|line| line.strip_prefix("module:name="))
            .filter_map(|rest| rest.split(',').next())
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        Self { modules }
    }
}

/// A user and its rules.
#[derive(Clone)]
#[must_use]
pub struct AclUser {
    name: String,
    password_hash: Secret<String>,
    rules: Vec<String>,
}

impl AclUser {
    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The arguments of the command that creates the user or replaces all its rules. The password
    /// is in it only as the hash that Redis stores.
    pub fn set_user(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["ACL", "SETUSER", &self.name, "reset", "on"]
            .map(str::to_owned)
            .into();
        arguments.push(format!("#{}", self.password_hash.expose()));
        arguments.extend(self.rules.iter().cloned());
        arguments
    }

    /// The user's line in `users.acl`.
    pub fn file_line(&self) -> String {
        format!(
            "user {} on #{} {}",
            self.name,
            self.password_hash.expose(),
            self.rules.join(" ")
        )
    }
}

impl fmt::Debug for AclUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AclUser")
            .field("name", &self.name)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// The ACL user of a service: its own keys and channels, everything that works on them, and nothing
/// that looks at or changes the rest of the server.
///
/// `SELECT` and tracking another prefix cannot be refused by Redis (names only, no values): keep
/// personal data out of keys.
pub fn service_user(resources: &ServiceResources, server: &Server) -> AclUser {
    let prefix = &resources.prefix;
    let mut rules = vec![format!("~{prefix}*"), format!("&{prefix}*")];
    rules.extend(
        [
            "+@all",
            "-@admin",
            "-@dangerous",
            // Names of other services' keys and channels.
            "-scan",
            "-randomkey",
            "-pubsub|channels",
            "-pubsub|shardchannels",
            // Across database numbers.
            "-move",
            "-swapdb",
            // Scripts and functions are shared by all users of the server.
            "-script|flush",
            "-script|kill",
            "-function",
            // Back to the default user.
            "-reset",
            "-memory",
        ]
        .map(str::to_owned),
    );
    // Indexes and label queries of these modules reach over all keys of the server. Naming a
    // category that the server does not have is an error, hence only where they are loaded.
    for (module, category) in [("search", "-@search"), ("timeseries", "-@timeseries")] {
        if server.modules.iter().any(|loaded| loaded == module) {
            rules.push(category.to_owned());
        }
    }
    AclUser {
        name: resources.redis_user.clone(),
        password_hash: Secret::new(sha256_hex(resources.passwords.cache.expose())),
        rules,
    }
}

/// The arguments that remove the service's user.
pub fn delete_user(resources: &ServiceResources) -> Vec<String> {
    ["ACL", "DELUSER", &resources.redis_user]
        .map(str::to_owned)
        .into()
}

/// The arguments that turn the default user off, so that every client has to be somebody. Run by
/// an administrator who is not the default user, else it is the last thing he does.
pub fn disable_default_user() -> Vec<String> {
    ["ACL", "SETUSER", "default", "off"]
        .map(str::to_owned)
        .into()
}
