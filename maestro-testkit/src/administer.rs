//! Making and removing what a sandbox owns, through connections kept per process and server.

use maestro_config::provision::postgres::{LOCK_KEY, RunIn, Step};
use maestro_config::provision::rabbitmq::ApiRequest;
use maestro_config::provision::{ServiceResources, postgres, rabbitmq, redis};
use maestro_config::{Secret, provision::Passwords};
use tokio::sync::{Mutex, OnceCell};

use crate::error::Error;
use crate::local::password;
use crate::service::{Address, Service};
use crate::wire;

/// Administrator of one server.
#[derive(Debug)]
pub(crate) struct Administrator {
    service: Service,
    address: Address,
    postgres: Mutex<Option<wire::postgres::Client>>,
    redis: Mutex<Option<wire::redis::Client>>,
    redis_server: OnceCell<redis::Server>,
    rabbitmq: Mutex<Option<wire::http::Client>>,
}

impl Administrator {
    pub(crate) fn new(service: Service, address: Address) -> Self {
        Self {
            service,
            address,
            postgres: Mutex::new(None),
            redis: Mutex::new(None),
            redis_server: OnceCell::new(),
            rabbitmq: Mutex::new(None),
        }
    }

    /// Makes a service's place on this server.
    pub(crate) async fn create(&self, resources: &ServiceResources) -> Result<(), Error> {
        match self.service {
            Service::Postgres => self.run_steps(&postgres::service_steps(resources)).await,
            Service::Redis => {
                let server = self.redis_server().await?;
                let user = redis::service_user(resources, server);
                self.redis(&user.set_user()).await
            }
            Service::Rabbitmq => self.requests(&rabbitmq::service_requests(resources)).await,
        }
    }

    /// Removes a service's place from this server; what is not there is fine. RabbitMQ's vhost is
    /// left, because other services of the sandbox live in it.
    pub(crate) async fn remove(&self, resources: &ServiceResources) -> Result<(), Error> {
        match self.service {
            Service::Postgres => self.run_steps(&postgres::drop_steps(resources)).await,
            Service::Redis => self.redis(&redis::delete_user(resources)).await,
            Service::Rabbitmq => {
                let (_, users) = split(resources);
                self.requests(&users).await
            }
        }
    }

    /// Removes the vhost of a sandbox.
    pub(crate) async fn remove_vhost(&self, resources: &ServiceResources) -> Result<(), Error> {
        let (vhost, _) = split(resources);
        self.requests(&vhost).await
    }

    /// Once per server: nobody but administrators connects to `postgres` and `template1`.
    pub(crate) async fn close_server(&self) -> Result<(), Error> {
        match self.service {
            Service::Postgres => self.run_steps(&postgres::server_steps()).await,
            Service::Redis | Service::Rabbitmq => Ok(()),
        }
    }

    /// Executes steps in order, under the lock that keeps provisioning apart over all processes.
    pub(crate) async fn run_steps(&self, steps: &[Step]) -> Result<(), Error> {
        let mut slot = self.postgres.lock().await;
        let client = match slot.take() {
            Some(client) if !client.is_closed() => client,
            _ => wire::postgres::connect(&self.address, &self.address.database).await?,
        };
        // On any failure the connection is dropped, and the lock with it.
        client
            .run(
                "taking the provisioning lock",
                &format!("SELECT pg_advisory_lock({LOCK_KEY})"),
            )
            .await?;
        for step in steps {
            if let Some(question) = step.skip_if()
                && !client.column(question).await?.is_empty()
            {
                continue;
            }
            match step.run_in() {
                RunIn::Database(name) => {
                    let inside = wire::postgres::connect(&self.address, name).await?;
                    inside.run(step.title(), step.sql()).await?;
                }
                _ => client.run(step.title(), step.sql()).await?,
            }
        }
        client
            .run(
                "releasing the provisioning lock",
                &format!("SELECT pg_advisory_unlock({LOCK_KEY})"),
            )
            .await?;
        *slot = Some(client);
        Ok(())
    }

    async fn redis_server(&self) -> Result<&redis::Server, Error> {
        self.redis_server
            .get_or_try_init(|| async {
                let mut client = wire::redis::Client::connect(&self.address).await?;
                let info = client.call(&["INFO", "modules"]).await?.text();
                Ok(redis::Server::from_info(&info))
            })
            .await
    }

    async fn redis(&self, command: &[String]) -> Result<(), Error> {
        let mut slot = self.redis.lock().await;
        let mut client = match slot.take() {
            Some(client) => client,
            None => wire::redis::Client::connect(&self.address).await?,
        };
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let reply = match client.call(&command).await {
            // A kept connection may have been closed meanwhile; these commands can be repeated.
            Err(e) if e.kind() == crate::ErrorKind::Unavailable => {
                client = wire::redis::Client::connect(&self.address).await?;
                client.call(&command).await
            }
            other => other,
        };
        reply?;
        *slot = Some(client);
        Ok(())
    }

    async fn requests(&self, requests: &[ApiRequest]) -> Result<(), Error> {
        let mut slot = self.rabbitmq.lock().await;
        let mut client = match slot.take() {
            Some(client) => client,
            None => wire::http::Client::new(&self.address)?,
        };
        for request in requests {
            client.execute(request).await?;
        }
        *slot = Some(client);
        Ok(())
    }
}

/// What removes the vhost, and what removes the user.
fn split(resources: &ServiceResources) -> (Vec<ApiRequest>, Vec<ApiRequest>) {
    rabbitmq::drop_requests(resources)
        .into_iter()
        .partition(|request| request.path.starts_with("/api/vhosts/"))
}

/// Passwords for a service whose servers are thrown away.
pub(crate) fn passwords() -> Passwords {
    let random = || Secret::new(password());
    Passwords {
        postgres: random(),
        migrator: random(),
        cache: random(),
        messaging: random(),
    }
}
