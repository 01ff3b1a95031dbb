//! Who the service is.

use std::fmt;

use crate::conventions::ServiceName;
use crate::kind::Kind;
use crate::reader::{FromEnvironment, Reader};
use crate::variable::{Table, Variable};

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

    pub(crate) fn parse(word: &str) -> Option<Self> {
        [
            Self::Development,
            Self::Test,
            Self::Demo,
            Self::Staging,
            Self::Production,
        ]
        .into_iter()
        .find(|deployment| deployment.as_str() == word)
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
    .doc("Version of the service; must be set outside development and test.")
    .example("1.4.2");
pub(crate) const ENVIRONMENT: Variable = Variable::new(
    "MAESTRO_ENVIRONMENT",
    Kind::Choice {
        words: &["development", "test", "demo", "staging", "production"],
    },
)
.required()
.doc("Kind of environment. Staging and production turn the strict rules on, and no env file is read there. No default, because forgetting it must not turn the rules off.")
.example("development");
const TEAM: Variable = Variable::new("MAESTRO_TEAM", Kind::String)
    .default("unassigned")
    .doc("Team that owns the service.")
    .example("platform");
const INSTANCE: Variable = Variable::new("MAESTRO_INSTANCE_ID", Kind::String)
    .doc("This process among the replicas; the host name when absent.")
    .example("quality-fabric-7d4b9");
pub(crate) const ENV_FILES: Variable = Variable::new("MAESTRO_ENV_FILES", Kind::Paths)
    .doc("Env files to read instead of searching for them, later ones above earlier ones. Process environment only; refused in staging and production.")
    .example(".env.shared,.env");

static TABLE: Table = Table {
    owner: "maestro-config",
    areas: &[
        "MAESTRO_SERVICE_",
        "MAESTRO_ENV",
        "MAESTRO_TEAM",
        "MAESTRO_INSTANCE",
    ],
    variables: &[NAME, VERSION, ENVIRONMENT, TEAM, INSTANCE, ENV_FILES],
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
        let deployment = Deployment::parse(&deployment?);
        let unversioned =
            deployment.is_some_and(|d| !matches!(d, Deployment::Development | Deployment::Test));
        if unversioned && !reader.is_set(&VERSION) {
            reader.problem(
                &VERSION,
                "is not set, and traces and metrics could not tell releases apart",
                VERSION.fix(None),
            );
        }
        Some(Self {
            service: service?,
            version: version?,
            deployment: deployment?,
            team: team?,
            instance: instance?.unwrap_or_else(|| reader.host_name().to_owned()),
        })
    }
}

/// The name of this host, for the instance id.
pub(crate) fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    if name.trim().is_empty() {
        return "localhost".to_owned();
    }
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use crate::{Environment, Identity};

    const NAMED: (&str, &str) = ("MAESTRO_SERVICE_NAME", "orders");

    #[test]
    fn a_version_is_optional_only_in_development_and_test() {
        for (deployment, accepted) in [
            ("development", true),
            ("test", true),
            ("demo", false),
            ("staging", false),
            ("production", false),
        ] {
            let pairs = [NAMED, ("MAESTRO_ENVIRONMENT", deployment)];
            let environment = Environment::from_pairs(pairs);
            assert_eq!(
                environment.read::<Identity>().is_ok(),
                accepted,
                "{deployment}"
            );
            let versioned = environment.with_pairs([("MAESTRO_SERVICE_VERSION", "1.10")]);
            let identity = versioned.read::<Identity>().unwrap();
            assert_eq!(identity.version(), "1.10", "text stays text");
        }
    }

    #[test]
    fn forgetting_the_kind_of_environment_is_a_problem_and_not_development() {
        let error = Environment::from_pairs([NAMED])
            .read::<Identity>()
            .unwrap_err();
        assert_eq!(error.problems()[0].variable(), "MAESTRO_ENVIRONMENT");
        let error = Environment::from_pairs([NAMED, ("MAESTRO_ENVIRONMENT", "prod")])
            .read::<Identity>()
            .unwrap_err();
        assert_eq!(error.problems()[0].fix(), "MAESTRO_ENVIRONMENT=production");
    }

    #[test]
    fn a_name_in_another_spelling_is_given_back_in_the_right_one() {
        for (name, fix) in [
            ("Orders_Service", "MAESTRO_SERVICE_NAME=orders-service"),
            ("order service", "MAESTRO_SERVICE_NAME=order-service"),
            ("9lives", "MAESTRO_SERVICE_NAME=quality-fabric"),
        ] {
            let pairs = [
                ("MAESTRO_SERVICE_NAME", name),
                ("MAESTRO_ENVIRONMENT", "test"),
            ];
            let error = Environment::from_pairs(pairs)
                .read::<Identity>()
                .unwrap_err();
            assert_eq!(error.problems()[0].fix(), fix);
        }
        let pairs = [NAMED, ("MAESTRO_ENVIRONMENT", "prodution")];
        let error = Environment::from_pairs(pairs)
            .read::<Identity>()
            .unwrap_err();
        assert_eq!(error.problems()[0].fix(), "MAESTRO_ENVIRONMENT=production");
    }

    #[test]
    fn the_instance_is_the_host_by_default() {
        let directory = tempfile::tempdir().unwrap();
        let pairs = [NAMED, ("MAESTRO_ENVIRONMENT", "test")];
        let pairs = pairs.map(|(name, value)| (name.into(), value.into()));
        let environment = Environment::load_in(directory.path(), pairs);
        let identity = environment.read::<Identity>().unwrap();
        assert_eq!(identity.instance(), super::host_name());
    }
}
