//! Making and removing what a sandbox owns, through connections kept per process and server.

use maestro_config::provision::postgres::{LOCK_KEY, RunIn, Step};
use maestro_config::provision::rabbitmq::ApiRequest;
use maestro_config::provision::{ServiceResources, postgres, rabbitmq, redis};
use maestro_config::{Secret, provision::Passwords};
use tokio::sync::{Mutex, OnceCell};

use crate::error::Error;
use crate::local::password;
use crate::scram;
use crate::service::{Address, Service};
use crate::wire;

/// What a template's comment begins with; the time it was made follows.
const TEMPLATE_COMMENT: &str = "maestro-testkit template ";

/// Administrator of one server.
#[derive(Debug)]
pub(crate) struct Administrator {
    service: Service,
    address: Address,
    /// Not somebody else's server: passwords may be kept in a form that costs little.
    ours: bool,
    postgres: Mutex<Option<wire::postgres::Client>>,
    /// Removing has its own connection, so that making never waits for it.
    postgres_removing: Mutex<Option<wire::postgres::Client>>,
    redis: Mutex<Option<wire::redis::Client>>,
    redis_server: OnceCell<redis::Server>,
    /// Users made on Redis, which keeps them in memory alone: a server that was killed comes back
    /// without them.
    redis_users: Mutex<Vec<Vec<String>>>,
    rabbitmq: Mutex<Option<wire::http::Client>>,
}

impl Administrator {
    pub(crate) fn new(service: Service, address: Address, ours: bool) -> Self {
        Self {
            service,
            address,
            ours,
            postgres: Mutex::new(None),
            postgres_removing: Mutex::new(None),
            redis: Mutex::new(None),
            redis_server: OnceCell::new(),
            redis_users: Mutex::default(),
            rabbitmq: Mutex::new(None),
        }
    }

    /// Makes a service's place on this server; its database is a clone if there is a template.
    pub(crate) async fn create(
        &self,
        resources: &ServiceResources,
        template: Option<&ServiceResources>,
    ) -> Result<(), Error> {
        match self.service {
            Service::Postgres => {
                let resources = self.as_kept(resources);
                let steps = match template {
                    Some(template) => postgres::clone_steps(&resources, template),
                    None => postgres::service_steps(&resources),
                };
                self.run_steps(&steps).await
            }
            Service::Redis => {
                let server = self.redis_server().await?;
                let user = redis::service_user(resources, server);
                let command = user.set_user();
                self.redis(&command).await?;
                self.redis_users.lock().await.push(command);
                Ok(())
            }
            Service::Rabbitmq => self.requests(&rabbitmq::service_requests(resources)).await,
        }
    }

    /// Makes the users again that a restart has lost; the platform's own Redis has them in a file.
    pub(crate) async fn restore_users(&self) -> Result<(), Error> {
        for command in self.redis_users.lock().await.iter() {
            self.redis(command).await?;
        }
        Ok(())
    }

    /// Removes a service's place from this server (`database` is its number in Redis); what is not
    /// there is fine. RabbitMQ's vhost is left, because other services of the sandbox live in it.
    pub(crate) async fn remove(
        &self,
        resources: &ServiceResources,
        database: u16,
    ) -> Result<(), Error> {
        match self.service {
            Service::Postgres => {
                let mut slot = self.postgres_removing.lock().await;
                let client = self.client(&mut slot).await?;
                // Without the lock: these names are nobody else's, and dropping takes long.
                self.execute(&client, &postgres::drop_steps(resources))
                    .await?;
                *slot = Some(client);
                Ok(())
            }
            Service::Redis => {
                // The server closes the user's connections: nothing is written from here on.
                self.redis(&redis::delete_user(resources)).await?;
                self.remove_keys(resources.prefix(), database).await
            }
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

    /// Once per server of ours: nobody but administrators connects to `postgres` and `template1`,
    /// and the administrator's own password is kept in the form that costs little.
    pub(crate) async fn close_server(&self) -> Result<(), Error> {
        if self.service != Service::Postgres {
            return Ok(());
        }
        self.run_steps(&postgres::server_steps()).await?;
        let verifier = scram::verifier(self.address.password.expose());
        let sql = format!("ALTER ROLE CURRENT_USER PASSWORD '{verifier}'");
        let client = wire::postgres::connect(&self.address, &self.address.database).await?;
        client
            .run("keeping the administrator's password", &sql)
            .await
    }

    /// Executes steps in order, under the lock that keeps provisioning apart over all processes.
    pub(crate) async fn run_steps(&self, steps: &[Step]) -> Result<(), Error> {
        let mut slot = self.postgres.lock().await;
        let client = self.client(&mut slot).await?;
        // On any failure the connection is dropped, and the lock with it.
        let lock = format!("SELECT pg_advisory_lock({LOCK_KEY})");
        client
            .wait("waiting for the provisioning lock", &lock)
            .await?;
        self.execute(&client, steps).await?;
        let unlock = format!("SELECT pg_advisory_unlock({LOCK_KEY})");
        client
            .run("releasing the provisioning lock", &unlock)
            .await?;
        *slot = Some(client);
        Ok(())
    }

    /// Prepares an empty database that becomes a template, under a lock that its connection holds.
    /// `None` if the template is finished already.
    pub(crate) async fn begin_template(
        &self,
        resources: &ServiceResources,
    ) -> Result<Option<wire::postgres::Client>, Error> {
        let finished = format!(
            "SELECT 1 FROM pg_database WHERE datname = '{}' AND NOT datallowconn",
            resources.database()
        );
        let client = wire::postgres::connect(&self.address, &self.address.database).await?;
        if !client.column(&finished).await?.is_empty() {
            return Ok(None);
        }
        // Of its own kind: provisioning goes on while somebody migrates.
        let lock = format!(
            "SELECT pg_advisory_lock(hashtext('{}'), 1)",
            resources.database()
        );
        client
            .wait("waiting for another test's migration", &lock)
            .await?;
        if !client.column(&finished).await?.is_empty() {
            return Ok(None);
        }
        // Half of what a failed or killed run had made.
        self.execute(&client, &postgres::drop_steps(resources))
            .await?;
        let resources = self.as_kept(resources);
        self.run_steps(&postgres::service_steps(&resources)).await?;
        Ok(Some(client))
    }

    /// Seals a template. On a server that lives on, templates of other fingerprints that are a week
    /// old go.
    pub(crate) async fn finish_template(
        &self,
        client: wire::postgres::Client,
        resources: &ServiceResources,
        given: bool,
    ) -> Result<(), Error> {
        let made = format!(
            "COMMENT ON DATABASE {} IS '{TEMPLATE_COMMENT}{}'",
            resources.database(),
            client
                .value("SELECT extract(epoch FROM now())::bigint")
                .await?
        );
        client.run("dating a template", &made).await?;
        self.execute(&client, &postgres::seal_template_steps(resources))
            .await?;
        if given {
            let old = format!(
                "SELECT datname FROM pg_database d, shobj_description(d.oid, 'pg_database') made \
                 WHERE made LIKE '{TEMPLATE_COMMENT}%' AND NOT datallowconn \
                 AND substr(made, {})::bigint < extract(epoch FROM now()) - 7 * 86400",
                TEMPLATE_COMMENT.len() + 1
            );
            for name in client.column(&old).await? {
                // Somebody may be cloning it at this moment: then it goes next time.
                let _ = client
                    .run(
                        "dropping an old template",
                        &format!("DROP DATABASE IF EXISTS \"{name}\""),
                    )
                    .await;
            }
        }
        Ok(())
    }

    async fn client(
        &self,
        slot: &mut Option<wire::postgres::Client>,
    ) -> Result<wire::postgres::Client, Error> {
        match slot.take() {
            Some(client) if !client.is_closed() => Ok(client),
            _ => wire::postgres::connect(&self.address, &self.address.database).await,
        }
    }

    async fn execute(&self, client: &wire::postgres::Client, steps: &[Step]) -> Result<(), Error> {
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
        Ok(())
    }

    /// The resources with PostgreSQL's passwords as the server will keep them.
    fn as_kept(&self, resources: &ServiceResources) -> ServiceResources {
        let plain = resources.passwords();
        if !self.ours {
            return resources.clone();
        }
        resources.clone().with_passwords(Passwords {
            postgres: Secret::new(scram::verifier(plain.postgres.expose())),
            migrator: Secret::new(scram::verifier(plain.migrator.expose())),
            ..plain.clone()
        })
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

    /// Removes the keys under a prefix, which holds no character with a meaning in a pattern.
    async fn remove_keys(&self, prefix: &str, database: u16) -> Result<(), Error> {
        let mut client = wire::redis::Client::connect(&self.address).await?;
        client.call(&["SELECT", &database.to_string()]).await?;
        let mut cursor = "0".to_owned();
        loop {
            let pattern = format!("{prefix}*");
            let scan = ["SCAN", &cursor, "MATCH", &pattern, "COUNT", "1000"];
            let (next, keys) = client.call(&scan).await?.page();
            if !keys.is_empty() {
                let unlink = std::iter::once("UNLINK").chain(keys.iter().map(String::as_str));
                client.call(&unlink.collect::<Vec<_>>()).await?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
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
