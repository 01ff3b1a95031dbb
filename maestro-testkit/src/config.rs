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
#[derive(Clone, Debug)]
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
    /// `MAESTRO_TEST_POSTGRES_IMAGE`, default `postgres:15`.
    pub postgres_image: String,
    /// `MAESTRO_TEST_CACHE_IMAGE`, default `redis:7-alpine`.
    pub cache_image: String,
    /// `MAESTRO_TEST_MESSAGING_IMAGE`, default `rabbitmq:3.12-management-alpine`.
    pub messaging_image: String,
    /// `DOCKER_HOST`, the daemon to ask; without it the one of this machine.
    pub docker_host: Option<String>,
}

impl Default for DevServicesConfig {
    fn default() -> Self {
        Self {
            source: Source::default(),
            postgres_url: None,
            cache_url: None,
            messaging_url: None,
            messaging_management_url: None,
            postgres_image: DEFAULT_POSTGRES_IMAGE.to_owned(),
            cache_image: DEFAULT_CACHE_IMAGE.to_owned(),
            messaging_image: DEFAULT_MESSAGING_IMAGE.to_owned(),
            docker_host: None,
        }
    }
}

impl DevServicesConfig {
    /// The same without servers of somebody else.
    pub(crate) fn without_given(self) -> Self {
        Self {
            postgres_url: None,
            cache_url: None,
            messaging_url: None,
            messaging_management_url: None,
            ..self
        }
    }

    /// Tells apart the servers that runs with other settings start; empty for the default ones.
    pub(crate) fn variant(&self) -> String {
        let images = [
            &self.postgres_image,
            &self.cache_image,
            &self.messaging_image,
        ];
        match self.source {
            Source::Auto if images == IMAGES => String::new(),
            // No image is asked for.
            Source::Local | Source::Off => format!("{:?}", self.source),
            Source::Auto | Source::Docker => format!("{:?} {images:?}", self.source),
        }
    }

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
const POSTGRES_IMAGE: Variable = Variable::new("MAESTRO_TEST_POSTGRES_IMAGE", Kind::String)
    .default(DEFAULT_POSTGRES_IMAGE)
    .doc("Image for PostgreSQL in Docker.")
    .example("postgres:17");
const CACHE_IMAGE: Variable = Variable::new("MAESTRO_TEST_CACHE_IMAGE", Kind::String)
    .default(DEFAULT_CACHE_IMAGE)
    .doc("Image for Redis, or a server that speaks its protocol, in Docker.")
    .example("valkey/valkey:8");
const MESSAGING_IMAGE: Variable = Variable::new("MAESTRO_TEST_MESSAGING_IMAGE", Kind::String)
    .default(DEFAULT_MESSAGING_IMAGE)
    .doc("Image for RabbitMQ with its management plugin in Docker.")
    .example("rabbitmq:4-management");
const DOCKER_HOST: Variable = Variable::new("DOCKER_HOST", Kind::String)
    .doc("The Docker daemon, as for the `docker` command; the one of this machine when absent.")
    .example("unix:///run/user/1000/docker.sock");

/// What the platform runs.
const IMAGES: [&str; 3] = [
    DEFAULT_POSTGRES_IMAGE,
    DEFAULT_CACHE_IMAGE,
    DEFAULT_MESSAGING_IMAGE,
];
const DEFAULT_POSTGRES_IMAGE: &str = "postgres:15";
const DEFAULT_CACHE_IMAGE: &str = "redis:7-alpine";
const DEFAULT_MESSAGING_IMAGE: &str = "rabbitmq:3.12-management-alpine";

static TABLE: Table = Table {
    owner: "maestro-testkit",
    areas: &["MAESTRO_TEST_", "MAESTRO_DEV_"],
    variables: &[
        SOURCE,
        POSTGRES_URL,
        CACHE_URL,
        MESSAGING_URL,
        MANAGEMENT_URL,
        POSTGRES_IMAGE,
        CACHE_IMAGE,
        MESSAGING_IMAGE,
        DOCKER_HOST,
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
        let postgres_image = reader.string(&POSTGRES_IMAGE);
        let cache_image = reader.string(&CACHE_IMAGE);
        let messaging_image = reader.string(&MESSAGING_IMAGE);
        let docker_host = reader.optional(&DOCKER_HOST, Reader::string);
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
            postgres_image: postgres_image?,
            cache_image: cache_image?,
            messaging_image: messaging_image?,
            docker_host: docker_host?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(pairs: [(&str, &str); N]) -> DevServicesConfig {
        Environment::from_pairs(pairs).read().unwrap()
    }

    #[test]
    fn without_variables_the_settings_are_the_default_ones() {
        let read = read([]);
        let default = DevServicesConfig::default();
        assert_eq!(format!("{read:?}"), format!("{default:?}"));
        assert_eq!(read.variant(), "");
    }

    #[test]
    fn runs_share_servers_only_if_they_would_start_the_same() {
        let docker = read([("MAESTRO_DEV_SERVICES", "docker")]);
        let local = read([("MAESTRO_DEV_SERVICES", "local")]);
        let image = ("MAESTRO_TEST_POSTGRES_IMAGE", "postgres:17");
        let other_image = read([("MAESTRO_DEV_SERVICES", "docker"), image]);
        let variants = [
            read([]).variant(),
            read([image]).variant(),
            docker.variant(),
            local.variant(),
            other_image.variant(),
        ];
        for (at, variant) in variants.iter().enumerate() {
            assert!(!variants[..at].contains(variant), "{variants:?}");
        }
        // Local binaries are the same whatever the images.
        let local_with_image = read([("MAESTRO_DEV_SERVICES", "local"), image]);
        assert_eq!(local_with_image.variant(), local.variant());
    }
}
