//! A set of servers for tests and demos.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maestro_config::{Secret, ServiceName};

use crate::administer::Administrator;
use crate::authority::Authority;
use crate::background;
use crate::config::{DevServicesConfig, Source};
use crate::error::{Error, ErrorKind};
use crate::home::{Home, Lock, Mode};
use crate::provider::{Obtained, Wanted, obtain};
use crate::registry::{Entry, remove_if_empty};
use crate::sandbox::{self, Sandbox};
use crate::server::Server;
use crate::service::{Origin, Running, Service, authority};
use crate::template::{self, Blank, Template};

/// How long warm servers wait for the next run. Two minutes after the last process nothing is left:
/// this, and what a loaded machine takes to count and to stop.
const GRACE: Duration = Duration::from_secs(100);

/// Locks of shared servers, held until this process ends: they keep the servers warm between the
/// tests of one binary.
static HELD: Mutex<BTreeMap<PathBuf, Lock>> = Mutex::new(BTreeMap::new());

/// Servers that run. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let stack = maestro_testkit::Stack::start().await?;
/// let sandbox = stack.sandbox("orders").await?;
/// let environment = maestro_config::Environment::from_pairs(sandbox.environment());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Stack {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    members: BTreeMap<Service, Arc<Member>>,
}

/// One server of a stack.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) running: Running,
    pub(crate) administrator: Administrator,
    /// Where it is written down who made what on this server.
    pub(crate) registry: PathBuf,
    /// True if nobody else uses the server.
    pub(crate) dedicated: bool,
    /// Dropped with the stack when the server is dedicated: then its guard stops it.
    _lock: Option<Lock>,
}

impl Stack {
    /// The servers of this clone of the project: joins them if they run, else starts them. All
    /// processes of the clone share them; they stay warm for two minutes after the last one ended.
    ///
    /// Dropping the future leaves a half-started server to its guard, which stops it.
    pub async fn start() -> Result<Self, Error> {
        Self::builder().start().await
    }

    /// Servers of this process' own, which keep what they acknowledged over a kill, to be stopped,
    /// killed, paused and started. They end when the stack is dropped. RabbitMQ takes seconds to
    /// boot: ask for less with [`StackBuilder::only`].
    pub async fn dedicated() -> Result<Self, Error> {
        Self::builder().dedicated().await
    }

    /// A stack with options.
    pub fn builder() -> StackBuilder {
        StackBuilder::default()
    }

    /// A place of its own for one service on every server of the stack: database and roles, Redis
    /// user and prefix, vhost and RabbitMQ user, with the conventional privileges.
    ///
    /// Dropping the future lets the sandbox be made and removed again in the background.
    pub async fn sandbox(&self, service: &str) -> Result<Sandbox, Error> {
        sandbox::create(&self.inner.members, parse_name(service)?, None).await
    }

    /// A database of `service` that was migrated once, to be cloned for every test. `migrate` runs
    /// only if no template with this fingerprint is there; other tests and processes wait for it.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn migrate(_: Vec<(String, String)>) -> std::io::Result<()> { Ok(()) }
    /// let stack = maestro_testkit::Stack::start().await?;
    /// let fingerprint = maestro_testkit::fingerprint(["migrations"])?;
    /// let template = stack
    ///     .template("orders", &fingerprint, |blank| migrate(blank.environment()))
    ///     .await?;
    /// let sandbox = template.sandbox().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping the future drops the half-migrated database at the next call.
    pub async fn template<F, E>(
        &self,
        service: &str,
        fingerprint: &str,
        migrate: impl FnOnce(Blank) -> F,
    ) -> Result<Template, Error>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let service = parse_name(service)?;
        template::obtain(&self.inner.members, service, fingerprint, migrate).await
    }

    /// The PostgreSQL of the stack.
    pub fn postgres(&self) -> Result<Server, Error> {
        self.server(Service::Postgres)
    }

    /// The Redis of the stack.
    pub fn redis(&self) -> Result<Server, Error> {
        self.server(Service::Redis)
    }

    /// The RabbitMQ of the stack.
    pub fn rabbitmq(&self) -> Result<Server, Error> {
        self.server(Service::Rabbitmq)
    }

    /// One server of the stack.
    pub fn server(&self, service: Service) -> Result<Server, Error> {
        match self.inner.members.get(&service) {
            Some(member) => Ok(Server::new(Arc::clone(member))),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                format!("this stack was started without {service}"),
            )),
        }
    }

    /// Variables under which another process uses these servers as its own
    /// (`MAESTRO_TEST_POSTGRES_URL` and so on), with the administrators' passwords.
    pub fn test_environment(&self) -> Vec<(String, Secret<String>)> {
        let mut pairs = Vec::new();
        for member in self.inner.members.values() {
            let name = crate::explicit::variable(member.running.service);
            pairs.push((name.to_owned(), admin_url(&member.running)));
            if let Some((host, port)) = &member.running.address.management {
                pairs.push((
                    "MAESTRO_TEST_MESSAGING_MANAGEMENT_URL".to_owned(),
                    Secret::new(format!("http://{}", authority(host, *port))),
                ));
            }
        }
        pairs
    }
}

/// Options of a [`Stack`].
#[derive(Clone, Debug)]
#[must_use]
pub struct StackBuilder {
    services: Vec<Service>,
    grace: Duration,
    config: Option<DevServicesConfig>,
    clone: Option<PathBuf>,
    never_given: bool,
    authority: Option<Authority>,
}

impl Default for StackBuilder {
    fn default() -> Self {
        Self {
            services: Service::ALL.to_vec(),
            grace: GRACE,
            config: None,
            clone: None,
            never_given: false,
            authority: None,
        }
    }
}

impl StackBuilder {
    /// Only these servers. Default: all three.
    pub fn only(mut self, services: impl IntoIterator<Item = Service>) -> Self {
        self.services = services.into_iter().collect();
        self
    }

    /// How long a shared server that this call starts waits for its next user, in whole seconds.
    /// Default 100 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Settings instead of those of the process environment.
    pub fn config(mut self, config: DevServicesConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Servers that this project starts, also where `MAESTRO_TEST_*` gives others: for tests of what
    /// happens to servers.
    pub fn never_given(mut self) -> Self {
        self.never_given = true;
        self
    }

    /// The servers of another clone of the project than the one around the working directory.
    pub fn clone_at(mut self, root: impl AsRef<Path>) -> Self {
        self.clone = Some(root.as_ref().to_owned());
        self
    }

    /// Servers that speak TLS as well, with a certificate of this authority, and let only those in
    /// there who show one: see [`Sandbox::encrypted_environment`]. For [`dedicated`](Self::dedicated)
    /// servers, which are then programs of this machine.
    pub fn encrypted(mut self, authority: &Authority) -> Self {
        self.authority = Some(authority.clone());
        self
    }

    /// Joins or starts the shared servers.
    pub async fn start(self) -> Result<Stack, Error> {
        if self.authority.is_some() {
            let why = "servers that others share speak no TLS: ask for dedicated()";
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let config = self.settings()?;
        let home = self.home(&config)?;
        sweep_dedicated(&home)?;
        let wanted = Wanted {
            home,
            config,
            grace: self.grace,
            durable: false,
            authority: None,
        };
        background::run(start(self.services, wanted, false)).await
    }

    /// Starts servers of this process' own.
    pub async fn dedicated(self) -> Result<Stack, Error> {
        let mut config = self.settings()?;
        if self.authority.is_some() {
            config.source = Source::Local;
        }
        let home = self.home(&config)?;
        sweep_dedicated(&home)?;
        let wanted = Wanted {
            home: home.dedicated(&sandbox::new_id()),
            // Somebody else's servers are not to be broken.
            config: config.without_given(),
            grace: Duration::ZERO,
            durable: true,
            authority: self.authority,
        };
        background::run(start(self.services, wanted, true)).await
    }

    /// The directory in which the shared servers live, with their logs: to look at when one of them
    /// does not start.
    pub fn home_directory(&self) -> Result<PathBuf, Error> {
        Ok(self.home(&self.settings()?)?.path().to_owned())
    }

    fn home(&self, config: &DevServicesConfig) -> Result<Home, Error> {
        let variant = config.variant();
        match &self.clone {
            Some(root) => Ok(Home::of_clone(root, &variant)),
            None => Home::of_this_clone(&variant),
        }
    }

    fn settings(&self) -> Result<DevServicesConfig, Error> {
        let config = match &self.config {
            Some(config) => config.clone(),
            None => DevServicesConfig::load()?,
        };
        Ok(if self.never_given {
            config.without_given()
        } else {
            config
        })
    }
}

/// Removes in the background what nobody uses of a clone's dedicated servers: their guards were killed
/// with the run that had them, or it was before they were started.
fn sweep_dedicated(home: &Home) -> Result<(), Error> {
    for sibling in home.dedicated_siblings() {
        background::spawn(crate::provider::sweep_dedicated(sibling))?;
    }
    Ok(())
}

async fn start(services: Vec<Service>, wanted: Wanted, dedicated: bool) -> Result<Stack, Error> {
    let wanted = Arc::new(wanted);
    // RabbitMQ boots for seconds: the others start meanwhile.
    let mut starting = tokio::task::JoinSet::new();
    for service in services {
        let wanted = Arc::clone(&wanted);
        starting.spawn(async move { member(service, &wanted, dedicated).await });
    }
    let mut members = BTreeMap::new();
    while let Some(member) = starting.join_next().await {
        let member =
            member.map_err(|e| Error::new(ErrorKind::Io, "starting the servers").with(e))??;
        members.insert(member.running.service, Arc::new(member));
    }
    for member in members.values() {
        // Owned by the background runtime; ends by itself, since every exchange has a deadline.
        background::spawn(remove_orphans(Arc::clone(member)))?;
    }
    Ok(Stack {
        inner: Arc::new(Inner { members }),
    })
}

async fn member(service: Service, wanted: &Wanted, dedicated: bool) -> Result<Member, Error> {
    let Obtained { running, lock } = obtain(service, wanted).await?;
    let directory = wanted.home.path().join(service.as_str());
    let mut kept = None;
    if dedicated {
        kept = lock;
    } else if let (Some(lock), Ok(mut held)) = (lock, HELD.lock()) {
        held.insert(directory.clone(), lock);
    }
    let administrator = Administrator::new(
        service,
        running.address.clone(),
        running.origin != Origin::Explicit,
    );
    let registry = if running.origin == Origin::Explicit {
        let name = format!("{}-{}", service.as_str(), running.address.authority());
        Home::of_given_servers().directory(&name.replace('/', "_"), None)?
    } else {
        directory.join("sandboxes")
    };
    Ok(Member {
        running,
        administrator,
        registry,
        dedicated,
        _lock: kept,
    })
}

/// Removes what dead processes made on a server.
async fn remove_orphans(member: Arc<Member>) {
    if !member.registry.is_dir() {
        return;
    }
    // One process at a time: of the many that a test run starts, the others have their tests to do.
    let sweeping = member.registry.join(".sweeping");
    let Ok(Some(_lock)) = Lock::try_take(&sweeping, Mode::Exclusive) else {
        return;
    };
    for orphan in Entry::orphans(&member.registry) {
        sandbox::remove(&member, &orphan).await;
    }
    // Both may be gone with the last entry, and come back with the next.
    let _ = std::fs::remove_file(&sweeping);
    remove_if_empty(&member.registry);
}

pub(crate) fn parse_name(service: &str) -> Result<ServiceName, Error> {
    service
        .parse()
        .map_err(|e| Error::new(ErrorKind::Config, "naming a sandbox").with(e))
}

/// The administrator's URL of a server.
pub(crate) fn admin_url(running: &Running) -> Secret<String> {
    let address = &running.address;
    let (scheme, database) = match running.service {
        Service::Postgres => ("postgresql", address.database.clone()),
        Service::Redis => ("redis", address.database.clone()),
        Service::Rabbitmq => ("amqp", address.database.replace('/', "%2F")),
    };
    let text = format!("{scheme}://{}/{database}", address.authority());
    // An address that was connected to is a valid one.
    let Ok(mut url) = url::Url::parse(&text) else {
        return Secret::new(text);
    };
    // Both fail for URLs without host only.
    let _ = url.set_username(&address.user);
    let password = address.password.expose();
    let _ = url.set_password((!password.is_empty()).then_some(password));
    Secret::new(url.into())
}
