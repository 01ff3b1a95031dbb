//! One service's place on the servers of a stack.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use maestro_config::ServiceName;
use maestro_config::provision::ServiceResources;

use crate::administer::passwords;
use crate::background;
use crate::error::{Error, ErrorKind};
use crate::link::Link;
use crate::registry::Entry;
use crate::report;
use crate::service::{Origin, Service};
use crate::stack::{Member, parse_name};

/// Redis databases that every server has, whoever configured it.
const REDIS_DATABASES: u16 = 16;

pub(crate) type Members = BTreeMap<Service, Arc<Member>>;

/// A service with its own database, roles, Redis user and prefix, RabbitMQ user and vhost, in
/// which nobody else is seen. Removed in the background when dropped, from any thread.
#[derive(Debug)]
pub struct Sandbox {
    place: Place,
    links: BTreeMap<Service, Link>,
    /// The vhost, shared with the neighbours; dropped after everything that lives in it.
    scope: Arc<Scope>,
}

/// What was made for one service; removed when dropped.
#[derive(Debug)]
struct Place {
    resources: ServiceResources,
    made: Vec<(Arc<Member>, Entry)>,
}

/// What the services of one sandbox share.
#[derive(Debug)]
struct Scope {
    id: String,
    members: Members,
    resources: ServiceResources,
}

/// Makes a sandbox.
pub(crate) async fn create(
    members: &Members,
    service: ServiceName,
    template: Option<ServiceResources>,
) -> Result<Sandbox, Error> {
    let id = new_id();
    let resources = resources(&service, &id)?;
    let scope = Arc::new(Scope {
        id,
        members: members.clone(),
        resources: resources.clone(),
    });
    settle(scope, resources, template).await
}

async fn settle(
    scope: Arc<Scope>,
    resources: ServiceResources,
    template: Option<ServiceResources>,
) -> Result<Sandbox, Error> {
    background::run(async move {
        let mut place = Place {
            resources,
            made: Vec::new(),
        };
        for member in scope.members.values() {
            let entry = Entry::write(&member.registry, &scope.id, place.resources.service())?;
            place.made.push((Arc::clone(member), entry));
        }
        // Until here nothing was made; from here on dropping `place` removes it.
        let mut making = tokio::task::JoinSet::new();
        for member in scope.members.values() {
            let member = Arc::clone(member);
            let resources = place.resources.clone();
            let template = template.clone();
            making.spawn(async move {
                member
                    .administrator
                    .create(&resources, template.as_ref())
                    .await
            });
        }
        let mut links = BTreeMap::new();
        for (service, member) in &scope.members {
            let address = &member.running.address;
            links.insert(
                *service,
                Link::open(*service, &address.host, address.port).await?,
            );
        }
        while let Some(made) = making.join_next().await {
            made.map_err(|e| Error::new(ErrorKind::Io, "making a sandbox").with(e))??;
        }
        Ok(Sandbox {
            place,
            links,
            scope,
        })
    })
    .await
}

impl Sandbox {
    /// The service this sandbox was made for.
    pub fn service(&self) -> &ServiceName {
        self.place.resources.service()
    }

    /// What it owns on the servers, by name.
    pub fn resources(&self) -> &ServiceResources {
        &self.place.resources
    }

    /// The sandbox's id: its server-wide names end in `_t<id>`.
    pub fn id(&self) -> &str {
        &self.scope.id
    }

    /// Another service in the same vhost, with its own database, users and links: services of one
    /// sandbox exchange messages as they would on the platform.
    pub async fn neighbour(&self, service: &str) -> Result<Self, Error> {
        let service = parse_name(service)?;
        if service == *self.service() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{service} is in this sandbox already"),
            ));
        }
        let resources = resources(&service, &self.scope.id)?;
        settle(Arc::clone(&self.scope), resources, None).await
    }

    /// Everything a service needs to run here, for `Environment::from_pairs`. Connections go
    /// through this sandbox's links, so that [`cache_link`](Self::cache_link) and its siblings can
    /// break them.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.pairs(|service| self.links.get(&service).map(Link::authority))
    }

    /// The same with the servers' own addresses, past the links: for measuring.
    pub fn direct_environment(&self) -> Vec<(String, String)> {
        self.pairs(|service| {
            let member = self.scope.members.get(&service)?;
            Some(member.running.address.authority())
        })
    }

    /// The same over TLS, on servers that were started
    /// [`encrypted`](crate::StackBuilder::encrypted); the certificates' files are still to be named.
    /// A server that speaks none is left out.
    pub fn encrypted_environment(&self) -> Vec<(String, String)> {
        let mut pairs = self.pairs(|service| {
            let member = self.scope.members.get(&service)?;
            member.running.address.tls_authority()
        });
        for (_, value) in &mut pairs {
            for scheme in ["redis", "amqp"] {
                if value.starts_with(&format!("{scheme}://")) {
                    value.insert(scheme.len(), 's');
                }
            }
        }
        pairs
    }

    /// The network between this sandbox and PostgreSQL.
    ///
    /// # Panics
    ///
    /// If the stack was started without PostgreSQL.
    pub fn postgres_link(&self) -> &Link {
        self.link(Service::Postgres)
    }

    /// The network between this sandbox and Redis.
    ///
    /// # Panics
    ///
    /// If the stack was started without Redis.
    pub fn cache_link(&self) -> &Link {
        self.link(Service::Redis)
    }

    /// The network between this sandbox and RabbitMQ.
    ///
    /// # Panics
    ///
    /// If the stack was started without RabbitMQ.
    pub fn messaging_link(&self) -> &Link {
        self.link(Service::Rabbitmq)
    }

    /// Removes everything now, and says whether that worked. Dropping does the same in the
    /// background.
    pub async fn close(self) -> Result<(), Error> {
        let Self {
            mut place,
            scope,
            links,
            ..
        } = self;
        drop(links);
        let made = std::mem::take(&mut place.made);
        let resources = place.resources.clone();
        let id = scope.id.clone();
        background::run(async move {
            for (member, entry) in made {
                member
                    .administrator
                    .remove(&resources, redis_database(&id))
                    .await?;
                entry.remove();
            }
            drop(scope);
            Ok(())
        })
        .await
    }

    #[expect(
        clippy::panic,
        reason = "asking a stack for a server that was left out of it is a mistake of the test"
    )]
    fn link(&self, service: Service) -> &Link {
        match self.links.get(&service) {
            Some(link) => link,
            None => panic!("this sandbox' stack was started without {service}"),
        }
    }

    fn pairs(&self, authority: impl Fn(Service) -> Option<String>) -> Vec<(String, String)> {
        environment(&self.place.resources, &self.scope.id, authority)
    }
}

/// Everything a service needs to run on servers at these addresses.
pub(crate) fn environment(
    resources: &ServiceResources,
    id: &str,
    authority: impl Fn(Service) -> Option<String>,
) -> Vec<(String, String)> {
    let mut pairs = vec![
        ("MAESTRO_SERVICE_NAME", resources.service().to_string()),
        ("MAESTRO_SERVICE_VERSION", "0.0.0".to_owned()),
        ("MAESTRO_ENVIRONMENT", "test".to_owned()),
        ("MAESTRO_TEAM", "platform".to_owned()),
        ("MAESTRO_INSTANCE_ID", format!("t{id}")),
        ("MAESTRO_SHUTDOWN_DELAY", "0s".to_owned()),
    ];
    if let Some(server) = authority(Service::Postgres) {
        let url = resources.postgres_url(&server);
        pairs.push(("MAESTRO_POSTGRES_URL", url.expose().clone()));
        pairs.push(("MAESTRO_POSTGRES_DIRECT_URL", url.expose().clone()));
        let url = resources.postgres_migration_url(&server);
        pairs.push(("MAESTRO_POSTGRES_MIGRATION_URL", url.expose().clone()));
    }
    if let Some(server) = authority(Service::Redis) {
        let url = resources.cache_url(&server, redis_database(id));
        pairs.push(("MAESTRO_CACHE_URL", url.expose().clone()));
        pairs.push(("MAESTRO_CACHE_PREFIX", resources.prefix().to_owned()));
    }
    if let Some(server) = authority(Service::Rabbitmq) {
        let url = resources.messaging_url(&server);
        pairs.push(("MAESTRO_MESSAGING_URL", url.expose().clone()));
    }
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl Drop for Place {
    fn drop(&mut self) {
        let (done, all_done) = mpsc::channel();
        for (member, entry) in std::mem::take(&mut self.made) {
            let resources = self.resources.clone();
            let id = entry.id.clone();
            let done = outlives_us(&member).then(|| done.clone());
            // Failing to start a thread leaves an orphan, which the next start sweeps.
            let _ = background::spawn(async move {
                match member
                    .administrator
                    .remove(&resources, redis_database(&id))
                    .await
                {
                    Ok(()) => entry.remove(),
                    Err(e) => explain(&member, &e),
                }
                drop(done);
            });
        }
        drop(done);
        background::wait_for_all(&all_done, TIDY_UP);
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if let Some(member) = self.members.get(&Service::Rabbitmq).cloned() {
            let resources = self.resources.clone();
            let (done, all_done) = mpsc::channel();
            let done = outlives_us(&member).then_some(done);
            let _ = background::spawn(async move {
                if let Err(e) = member.administrator.remove_vhost(&resources).await {
                    explain(&member, &e);
                }
                drop(done);
            });
            background::wait_for_all(&all_done, TIDY_UP);
        }
    }
}

/// Longest wait for the removal of a sandbox on somebody else's server. A test process may end the
/// moment its last sandbox is dropped; on a server of ours nobody would mind.
const TIDY_UP: Duration = Duration::from_secs(10);

fn outlives_us(member: &Member) -> bool {
    member.running.origin == Origin::Explicit
}

/// Removes what a dead process left on one server.
pub(crate) async fn remove(member: &Member, orphan: &Entry) {
    let Ok(resources) = resources(&orphan.service, &orphan.id) else {
        return orphan.remove();
    };
    let database = redis_database(&orphan.id);
    let mut removed = member.administrator.remove(&resources, database).await;
    if removed.is_ok() && member.running.service == Service::Rabbitmq {
        removed = member.administrator.remove_vhost(&resources).await;
    }
    match removed {
        Ok(()) => orphan.remove(),
        Err(e) => explain(member, &e),
    }
}

/// A server that is dedicated may be down on purpose, and takes its sandboxes with it.
fn explain(member: &Member, error: &Error) {
    if !member.dedicated {
        report::line(format_args!("removing a sandbox: {error}"));
    }
}

/// An id for names that must not meet: 40 random bits.
pub(crate) fn new_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    std::iter::repeat_with(|| char::from(ALPHABET[fastrand::usize(0..ALPHABET.len())]))
        .take(8)
        .collect()
}

/// The number of a sandbox's database in Redis: sandboxes spread over what every server has, and
/// whoever removes one knows where it was.
fn redis_database(id: &str) -> u16 {
    id.bytes().map(u16::from).sum::<u16>() % REDIS_DATABASES
}

/// What a sandbox of a service owns.
pub(crate) fn resources(service: &ServiceName, id: &str) -> Result<ServiceResources, Error> {
    ServiceResources::conventional(service, passwords())
        // Tests start replicas with pools of their own: the platform's limit of 40 connections is
        // for another size of machine.
        .with_connection_limit(200)
        .sandboxed(id)
        .map_err(|e| Error::new(ErrorKind::Config, "naming a sandbox").with(e))
}
