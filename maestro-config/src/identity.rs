//! Who the service is.

use std::fmt;

use crate::conventions::ServiceName;
use crate::reader::{FromEnvironment, Reader};
use crate::variable::{Kind, Table, Variable};

/// The kind of environment a process runs in; strict rules hold in staging and production.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deployment {
    /// A developer's machine.
    Development,
    /// An automated test.
    Test,
    /// A demonstration.
    Demo,
    /// As production, with other data.
    Staging,
    /// The real thing.
    Production,
}

impl Deployment {
    /// The word used in `MAESTRO_ENVIRONMENT` and in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Test => "test",
            Self::Demo => "demo",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }

    /// True in staging and production.
    pub const fn is_strict(self) -> bool {
        matches!(self, Self::Staging | Self::Production)
    }
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Identity of the running service: on every metric, span, log line, connection and message.
#[derive(Clone, Debug)]
pub struct Identity {
    service: ServiceName,
    version: String,
    deployment: Deployment,
    team: String,
    instance: String,
}

impl Identity {
    /// The service's name.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The service's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The kind of environment.
    pub fn deployment(&self) -> Deployment {
        self.deployment
    }

    /// The team that owns the service.
    pub fn team(&self) -> &str {
        &self.team
    }

    /// This process among the service's replicas; the host name by default.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

const NAME: Variable = Variable::new("MAESTRO_SERVICE_NAME", Kind::Name)
    .required()
    .doc("Name of the service; everything it owns on the shared servers is named after it.")
    .example("quality-fabric");
const VERSION: Variable = Variable::new("MAESTRO_SERVICE_VERSION", Kind::String)
    .default("0.0.0")
    .doc("Version of the service; required in staging and production.")
    .example("1.4.2");
const ENVIRONMENT: Variable = Variable::new(
    "MAESTRO_ENVIRONMENT",
    Kind::Choice {
        words: &["development", "test", "demo", "staging", "production"],
    },
)
.required()
.doc("Kind of environment; staging and production turn the strict rules on.")
.example("development");
const TEAM: Variable = Variable::new("MAESTRO_TEAM", Kind::String)
    .default("unassigned")
    .doc("Team that owns the service.")
    .example("platform");
const INSTANCE: Variable = Variable::new("MAESTRO_INSTANCE_ID", Kind::String)
    .doc("This process among the replicas; the host name when absent.")
    .example("quality-fabric-7d4b9");

static TABLE: Table = Table {
    owner: "maestro-config",
    areas: &["MAESTRO_SERVICE_"],
    variables: &[NAME, VERSION, ENVIRONMENT, TEAM, INSTANCE],
};

impl FromEnvironment for Identity {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let service = reader.service_name(&NAME);
        let version = reader.string(&VERSION);
        let deployment = reader.choice(&ENVIRONMENT);
        let team = reader.string(&TEAM);
        let instance = reader.optional(&INSTANCE, Reader::string);
        Some(Self {
            service: service?,
            version: version?,
            deployment: match deployment?.as_str() {
                "development" => Deployment::Development,
                "test" => Deployment::Test,
                "demo" => Deployment::Demo,
                "staging" => Deployment::Staging,
                _ => Deployment::Production,
            },
            team: team?,
            instance: instance?.unwrap_or_else(|| "localhost".to_owned()),
        })
    }
}
