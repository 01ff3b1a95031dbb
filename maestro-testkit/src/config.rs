//! The variables of the dev services.

use maestro_config::{Environment, FromEnvironment, Kind, Reader, Secret, Table, Variable};

use crate::error::{Error, ErrorKind};

/// Which ways of bringing a server are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Docker where it answers, else local binaries.
    #[default]
    Auto,
    /// Containers only.
    Docker,
    /// Local binaries only.
    Local,
    /// Nothing is started: only servers given by `MAESTRO_TEST_*_URL`.
    Off,
}

/// Settings of the dev services, read from the process environment by
/// [`Stack::start`](crate::Stack::start).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DevServicesConfig {
    /// `MAESTRO_DEV_SERVICES`, default `auto`.
    pub source: Source,
    /// `MAESTRO_TEST_POSTGRES_URL`: administrator's URL of a PostgreSQL that is there already.
    pub postgres_url: Option<Secret<String>>,
    /// `MAESTRO_TEST_CACHE_URL`: administrator's URL of a Redis that is there already.
    pub cache_url: Option<Secret<String>>,
    /// `MAESTRO_TEST_MESSAGING_URL`: administrator's URL of a RabbitMQ that is there already.
    pub messaging_url: Option<Secret<String>>,
    /// `MAESTRO_TEST_MESSAGING_MANAGEMENT_URL`, default port 15672 on the same host.
    pub messaging_management_url: Option<Secret<String>>,
}

impl DevServicesConfig {
    pub(crate) fn load() -> Result<Self, Error> {
        Environment::load()
            .and_then(|environment| environment.read())
            .map_err(|e| {
                Error::new(ErrorKind::Config, "reading the dev services' settings").with(e)
            })
    }
}

const SOURCE: Variable = Variable::new(
    "MAESTRO_DEV_SERVICES",
    Kind::Choice {
        words: &["auto", "docker", "local", "off"],
    },
)
.default("auto")
.doc("Where tests and demos get servers from: containers, binaries of this machine, whichever is there, or nowhere.")
.example("local");
const POSTGRES_URL: Variable = Variable::new(
    "MAESTRO_TEST_POSTGRES_URL",
    Kind::Url {
        schemes: &["postgresql", "postgres"],
    },
)
.secret()
.doc("Administrator's URL of a PostgreSQL that is there already; tests create databases and roles on it.")
.example("postgresql://postgres:secret@127.0.0.1:5432/postgres");
const CACHE_URL: Variable = Variable::new(
    "MAESTRO_TEST_CACHE_URL",
    Kind::Url {
        schemes: &["redis"],
    },
)
.secret()
.doc("Administrator's URL of a Redis that is there already; tests create ACL users on it.")
.example("redis://:secret@127.0.0.1:6379/0");
const MESSAGING_URL: Variable = Variable::new(
    "MAESTRO_TEST_MESSAGING_URL",
    Kind::Url { schemes: &["amqp"] },
)
.secret()
.doc(
    "Administrator's URL of a RabbitMQ that is there already; tests create vhosts and users on it.",
)
.example("amqp://admin:secret@127.0.0.1:5672/%2F");
const MANAGEMENT_URL: Variable = Variable::new(
    "MAESTRO_TEST_MESSAGING_MANAGEMENT_URL",
    Kind::Url { schemes: &["http"] },
)
.secret()
.doc("Management API of that RabbitMQ; port 15672 on the same host when absent.")
.example("http://127.0.0.1:15672");

static TABLE: Table = Table {
    owner: "maestro-testkit",
    areas: &["MAESTRO_TEST_", "MAESTRO_DEV_"],
    variables: &[
        SOURCE,
        POSTGRES_URL,
        CACHE_URL,
        MESSAGING_URL,
        MANAGEMENT_URL,
    ],
};

impl FromEnvironment for DevServicesConfig {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let source = reader.choice(&SOURCE);
        let postgres_url = reader.optional(&POSTGRES_URL, Reader::url);
        let cache_url = reader.optional(&CACHE_URL, Reader::url);
        let messaging_url = reader.optional(&MESSAGING_URL, Reader::url);
        let messaging_management_url = reader.optional(&MANAGEMENT_URL, Reader::url);
        Some(Self {
            source: match source?.as_str() {
                "docker" => Source::Docker,
                "local" => Source::Local,
                "off" => Source::Off,
                _ => Source::Auto,
            },
            postgres_url: postgres_url?,
            cache_url: cache_url?,
            messaging_url: messaging_url?,
            messaging_management_url: messaging_management_url?,
        })
    }
}
