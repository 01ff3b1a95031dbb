//! A server that runs, wherever it came from.

use std::fmt;
use std::path::PathBuf;

use maestro_config::Secret;
use serde::{Deserialize, Serialize};

use crate::control::Control;

/// One of the three kinds of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// PostgreSQL.
    Postgres,
    /// Redis, or a server that speaks its protocol.
    Redis,
    /// RabbitMQ with its management API.
    Rabbitmq,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Rabbitmq];

    /// Lower-case name, as in paths and log lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Rabbitmq => "rabbitmq",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Rabbitmq => "RabbitMQ",
        })
    }
}

/// Where a server came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Origin {
    /// A `MAESTRO_TEST_*` variable: somebody else's server.
    Explicit,
    /// A container.
    Docker,
    /// A server binary of this machine.
    Local,
}

/// How to reach a server as its administrator.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The port for TLS, if the server speaks it; PostgreSQL does on its only one.
    pub(crate) tls_port: Option<u16>,
    /// RabbitMQ's management API.
    pub(crate) management: Option<(String, u16)>,
    /// Directory of PostgreSQL's socket, where the administrator needs no password.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) user: String,
    pub(crate) password: Secret<String>,
    /// The administrator's database (PostgreSQL) or vhost (RabbitMQ).
    pub(crate) database: String,
}

impl Address {
    pub(crate) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    pub(crate) fn tls_authority(&self) -> Option<String> {
        Some(authority(&self.host, self.tls_port?))
    }
}

/// `host:port`, with the brackets an IPv6 address needs.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// A server that answered as its administrator.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) service: Service,
    pub(crate) origin: Origin,
    pub(crate) address: Address,
    /// What the server says it is: `15.18`, `7.0.15`, `3.10.8`.
    pub(crate) version: String,
    /// Why it comes from where it comes from, for the line of output.
    pub(crate) reason: String,
    pub(crate) control: Control,
}

/// What is written down about a server, so that other processes join it. Readable by its owner
/// alone: it holds the administrator's password.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) service: Service,
    pub(crate) origin: Origin,
    pub(crate) host: String,
    pub(crate) port: u16,
    #[serde(default)]
    pub(crate) tls_port: Option<u16>,
    pub(crate) management_port: Option<u16>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) database: String,
    pub(crate) reason: String,
    /// Container, if it is one.
    pub(crate) container: Option<String>,
    /// Empty until the server answered; a record without it is of a start that was cut short.
    pub(crate) version: String,
}

impl Record {
    pub(crate) fn address(&self) -> Address {
        Address {
            host: self.host.clone(),
            port: self.port,
            tls_port: self.tls_port,
            management: self.management_port.map(|port| (self.host.clone(), port)),
            socket: self.socket.clone(),
            user: self.user.clone(),
            password: Secret::new(self.password.clone()),
            database: self.database.clone(),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("service", &self.service)
            .field("origin", &self.origin)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
