//! Provisioning: a service's database, roles and rights, made and audited as the administrator.

mod audit;

use std::time::Duration;

use maestro_config::Secret;
use maestro_config::provision::ServiceResources;
use maestro_config::provision::postgres::{self, LOCK_KEY, RunIn, Step};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use crate::config::Endpoint;
use crate::connect::Connector;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;
use crate::tenant::Finding;

/// Makes, audits and removes what services own on a server. For the platform's command line and for
/// tests; a service has no administrator's password.
///
/// ```no_run
/// # async fn example(
/// #     admin_url: maestro_config::Secret<String>,
/// #     resources: maestro_config::provision::ServiceResources,
/// # ) -> Result<(), maestro_db::Error> {
/// use maestro_db::Provisioner;
///
/// let provisioner = Provisioner::new(&admin_url)?;
/// provisioner.close_server().await?; // once, on a server of the platform's own
/// provisioner.provision(&resources).await?; // again and again, with the same result
/// for finding in provisioner.verify(&resources).await? {
///     println!("{finding}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Provisioner {
    admin: Connector,
    /// To other databases of the server, as the same administrator.
    endpoint: Endpoint,
}

/// Longest wait for one step. `CREATE DATABASE` copies a template; everything else is catalogue rows.
const STEP: Duration = Duration::from_mins(2);

/// Longest wait for another run of provisioning on the same server.
const LOCK: Duration = Duration::from_mins(5);

impl Provisioner {
    /// As the administrator in this URL; its database is where server-wide work is done,
    /// conventionally `postgres`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the URL is none of PostgreSQL.
    pub fn new(admin_url: &Secret<String>) -> Result<Self, Error> {
        let endpoint = Endpoint::parse(admin_url).map_err(|problem| {
            Error::new(
                ErrorKind::Config,
                format!("the administrator's URL {problem}"),
            )
        })?;
        Ok(Self {
            admin: Connector::administrator(&endpoint)?,
            endpoint,
        })
    }

    /// Creates or mends everything of one service: roles, database, privileges, limits. Can be
    /// repeated, and runs of several at once wait for each other.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] when the administrator may not do a step, which is named.
    ///
    /// # Cancellation
    /// Dropping the future stops between or in steps; provisioning again completes them.
    pub async fn provision(&self, resources: &ServiceResources) -> Result<(), Error> {
        self.run(&postgres::service_steps(resources)).await
    }

    /// Once per server that is the platform's own: nobody but administrators connects to `postgres`
    /// and `template1`.
    pub async fn close_server(&self) -> Result<(), Error> {
        self.run(&postgres::server_steps()).await
    }

    /// Removes a service's database with all its data, and its roles.
    ///
    /// ```no_run
    /// # use maestro_config::provision::ServiceResources;
    /// # use maestro_db::{Error, ErrorKind, Provisioner};
    /// # async fn example(provisioner: Provisioner, resources: ServiceResources) -> Result<(), Error> {
    /// provisioner.remove(&resources).await?;
    /// let gone = provisioner.verify(&resources).await;
    /// assert!(gone.is_err_and(|error| error.kind() == ErrorKind::NotFound));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn remove(&self, resources: &ServiceResources) -> Result<(), Error> {
        self.run(&postgres::drop_steps(resources)).await
    }

    /// Looks at what is really there, whoever changed it since: who may connect where, who is
    /// member of what, who owns what, which limits hold, and in a database with tenants whether its
    /// policies do. Empty is good.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the service has no database.
    pub async fn verify(&self, resources: &ServiceResources) -> Result<Vec<Finding>, Error> {
        audit::verify(self, resources).await
    }

    async fn run(&self, steps: &[Step]) -> Result<(), Error> {
        let mut maintenance = self.admin.open().await?;
        lock(&mut maintenance).await?;
        let result = self.run_locked(&mut maintenance, steps).await;
        // The lock goes with the session.
        good_bye(maintenance).await;
        result
    }

    async fn run_locked(
        &self,
        maintenance: &mut PgConnection,
        steps: &[Step],
    ) -> Result<(), Error> {
        for step in steps {
            if let Some(question) = step.skip_if() {
                let query =
                    sqlx::raw_sql(AssertSqlSafe(question)).fetch_optional(&mut *maintenance);
                if bounded(step.title(), query).await?.is_some() {
                    continue;
                }
            }
            match step.run_in() {
                RunIn::Database(name) => {
                    let mut inside = self.open(name).await?;
                    tell(&mut inside, step).await?;
                    good_bye(inside).await;
                }
                _ => tell(maintenance, step).await?,
            }
        }
        Ok(())
    }

    /// A connection to another database of the server.
    async fn open(&self, database: &str) -> Result<PgConnection, Error> {
        let endpoint = Endpoint {
            database: database.to_owned(),
            ..self.endpoint.clone()
        };
        Connector::administrator(&endpoint)?.open().await
    }
}

async fn tell(connection: &mut PgConnection, step: &Step) -> Result<(), Error> {
    let work = sqlx::raw_sql(AssertSqlSafe(step.sql())).execute(connection);
    bounded(step.title(), work).await.map(|_| ())
}

/// Polled, because a wait in the server would hold a snapshot for all that time.
async fn lock(connection: &mut PgConnection) -> Result<(), Error> {
    let what = "waiting for another run of provisioning";
    let started = std::time::Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
    loop {
        let question =
            sqlx::query_scalar("select pg_catalog.pg_try_advisory_lock($1)").bind(LOCK_KEY);
        if bounded(what, question.fetch_one(&mut *connection)).await? {
            return Ok(());
        }
        if started.elapsed() > LOCK {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "{what} took longer than {LOCK:?}: look for advisory lock {LOCK_KEY} in pg_locks"
                ),
            ));
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// The step's name and the server's answer; never the statement, which may hold a password.
async fn bounded<T>(
    what: &str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(STEP, work).await {
        Ok(result) => {
            result.map_err(|error| Error::during(format!("provisioning: {what} failed"), error))
        }
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!("provisioning: {what} got no answer within {STEP:?}"),
        )),
    }
}

async fn good_bye(connection: PgConnection) {
    let _ = tokio::time::timeout(Duration::from_secs(1), connection.close()).await;
}
