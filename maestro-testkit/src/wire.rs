//! Just enough of each server's protocol to administer it and to see that it is ready. The SDK's
//! own clients are not used: their tests would then see two versions of them (ADR 0003).

pub(crate) mod amqp;
pub(crate) mod http;
pub(crate) mod postgres;
pub(crate) mod redis;

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::service::{Address, Service};

/// Longest wait for one answer of a server that is up, on a machine where fifty others ask as well.
const ANSWER: Duration = Duration::from_mins(1);

/// Bounds one exchange with a server.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &str,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, future).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!("{what}: no answer within {} s", deadline.as_secs_f32()),
        )),
    }
}

/// A whole handshake as the administrator; the answer is the server's version.
pub(crate) async fn handshake(service: Service, address: &Address) -> Result<String, Error> {
    match service {
        Service::Postgres => {
            let client = postgres::connect(address, &address.database).await?;
            client.value("SHOW server_version").await
        }
        Service::Redis => {
            let mut client = redis::Client::connect(address).await?;
            let info = client.call(&["INFO", "server"]).await?.text();
            Ok(info
                .lines()
                .find_map(|line| line.strip_prefix("redis_version:"))
                .unwrap_or_default()
                .trim()
                .to_owned())
        }
        Service::Rabbitmq => {
            amqp::handshake(address, &address.database).await?;
            let overview = http::Client::new(address)?.get("/api/overview").await?;
            Ok(overview["rabbitmq_version"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        }
    }
}

/// Whether the administrator may make what sandboxes are made of.
pub(crate) async fn may_administer(service: Service, address: &Address) -> Result<bool, Error> {
    match service {
        Service::Postgres => {
            let client = postgres::connect(address, &address.database).await?;
            let rights = "SELECT 1 FROM pg_roles WHERE rolname = CURRENT_USER \
                          AND (rolsuper OR rolcreatedb AND rolcreaterole)";
            Ok(!client.column(rights).await?.is_empty())
        }
        Service::Redis => {
            let mut client = redis::Client::connect(address).await?;
            client.call(&["ACL", "USERS"]).await?;
            Ok(true)
        }
        Service::Rabbitmq => {
            let user = http::Client::new(address)?.get("/api/whoami").await?;
            // A list, or in old versions a string.
            Ok(user["tags"].to_string().contains("administrator"))
        }
    }
}
