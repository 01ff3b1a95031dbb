//! Settings of three crates, shaped like the real ones, in wrong environments.

use proptest::prelude::*;

use crate::{
    Environment, FromEnvironment, Identity, Kind, Reader, ServerUrl, Table, Variable, docs,
};

macro_rules! settings {
    ($name:ident, $owner:literal, $area:literal, $scheme:literal, $alias:literal) => {
        mod $name {
            use super::*;

            pub(super) const URL: Variable = Variable::new(
                concat!($area, "URL"),
                Kind::Url {
                    schemes: &[$scheme],
                },
            )
            .required()
            .secret()
            .aliases(&[$alias])
            .doc("Where the server is.")
            .example(concat!($scheme, "://orders:<password>@maestro-server/1"));
            pub(super) const PASSWORD: Variable =
                Variable::new(concat!($area, "PASSWORD"), Kind::String)
                    .secret()
                    .doc("The password, when it is not in the URL.")
                    .example("<password>");
            pub(super) const TIMEOUT: Variable =
                Variable::new(concat!($area, "TIMEOUT"), Kind::Duration)
                    .default("5s")
                    .bounds("1ms", "1h")
                    .doc("Longest wait.");
            pub(super) const COUNT: Variable =
                Variable::new(concat!($area, "COUNT"), Kind::Count { min: 1, max: 100 })
                    .default("10")
                    .doc("How many.");
            pub(super) const CAPACITY: Variable =
                Variable::new(concat!($area, "CAPACITY"), Kind::Size)
                    .default("64MiB")
                    .doc("How much.");
            pub(super) static TABLE: Table = Table {
                owner: $owner,
                areas: &[$area],
                variables: &[URL, PASSWORD, TIMEOUT, COUNT, CAPACITY],
            };

            #[derive(Debug)]
            pub(super) struct Config {
                pub(super) url: ServerUrl,
            }

            impl FromEnvironment for Config {
                fn tables() -> Vec<&'static Table> {
                    vec![&TABLE]
                }

                fn read(reader: &mut Reader<'_>) -> Option<Self> {
                    let url = reader.server_url(&URL, Some(&PASSWORD));
                    let timeout = reader.duration(&TIMEOUT);
                    let count = reader.count(&COUNT);
                    let capacity = reader.size(&CAPACITY);
                    let (Some(_), Some(_), Some(_)) = (timeout, count, capacity) else {
                        return None;
                    };
                    Some(Self { url: url? })
                }
            }
        }
    };
}
settings!(
    db,
    "maestro-db",
    "MAESTRO_POSTGRES_",
    "postgresql",
    "DATABASE_URL"
);
settings!(
    cache,
    "maestro-cache",
    "MAESTRO_CACHE_",
    "redis",
    "REDIS_URL"
);
settings!(
    messaging,
    "maestro-messaging",
    "MAESTRO_MESSAGING_",
    "amqp",
    "RABBITMQ_URL"
);

type Service = (Identity, db::Config, cache::Config, messaging::Config);

#[test]
fn ten_mistakes_over_three_crates_are_ten_entries_of_one_report() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let environment = Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "9orders"),
        ("MAESTRO_SERVICE_VERSION", "1.4.2"),
        ("MAESTRO_ENVIRONMENT", "production"),
        (
            "MAESTRO_POSTGRES_URL",
            "postgresql://orders:canary/1@maestro-postgres/orders",
        ),
        ("MAESTRO_POSTGRES_TIMEOUT", "30"),
        ("MAESTRO_POSTGRES_COUNT", "1000"),
        ("MAESTRO_POSTGRES_POOL", "canary-is-no-secret-here"),
        (
            "MAESTRO_CACHE_URL",
            "redis://orders:canary-22@maestro-redis:27379/1",
        ),
        ("REDIS_URL", "redis://orders:canary-33@maestro-redis:6379/1"),
        ("MAESTRO_CACHE_CAPACITY", "64MB"),
        (
            "MAESTRO_MESSAGING_URL",
            "amqp://guest:canary-44@maestro-rabbitmq/maestro",
        ),
        ("MAESTRO_MESSAGING_PASSWORD_FILE", empty.to_str().unwrap()),
    ]);
    let error = environment.read::<Service>().unwrap_err();
    let shown = error.to_string();
    let found: Vec<_> = error
        .problems()
        .iter()
        .map(|p| (p.variable(), p.fix()))
        .collect();
    assert_eq!(
        found,
        [
            (
                "MAESTRO_SERVICE_NAME",
                "MAESTRO_SERVICE_NAME=quality-fabric"
            ),
            (
                "MAESTRO_POSTGRES_URL",
                "write these characters of a password as %2F, %3F, %23, and an `@` anywhere else as %40"
            ),
            ("MAESTRO_POSTGRES_TIMEOUT", "MAESTRO_POSTGRES_TIMEOUT=30s"),
            ("MAESTRO_POSTGRES_COUNT", "MAESTRO_POSTGRES_COUNT=10"),
            (
                "MAESTRO_CACHE_URL",
                "keep MAESTRO_CACHE_URL, remove REDIS_URL (given pairs)"
            ),
            ("MAESTRO_CACHE_URL", "inside the network the port is 6379"),
            ("MAESTRO_CACHE_CAPACITY", "MAESTRO_CACHE_CAPACITY=64MiB"),
            (
                "MAESTRO_MESSAGING_URL",
                "use the service's own user, named like its role"
            ),
            ("MAESTRO_MESSAGING_PASSWORD", "write the secret into it"),
            (
                "MAESTRO_POSTGRES_POOL",
                "remove MAESTRO_POSTGRES_POOL; docs/configuration.md lists what there is"
            ),
        ],
        "{shown}"
    );
    assert!(!shown.contains("canary"), "{shown}");
    assert!(
        shown.starts_with("the environment has 10 problems:\n   1. "),
        "{shown}"
    );
}

#[test]
fn a_right_environment_is_read_and_warns_of_nothing() {
    let environment = Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "orders"),
        ("MAESTRO_SERVICE_VERSION", "1.4.2"),
        ("MAESTRO_ENVIRONMENT", "production"),
        (
            "MAESTRO_POSTGRES_URL",
            "postgresql://orders:k3-Yz9@maestro-postgres:5432/orders",
        ),
        ("REDIS_URL", "redis://orders@maestro-redis:6379/1"),
        ("MAESTRO_CACHE_PASSWORD", "k3-Yz9"),
        (
            "MAESTRO_MESSAGING_URL",
            "amqp://orders:k3-Yz9@maestro-rabbitmq:5672/maestro",
        ),
    ]);
    let (service, warnings) = environment.read_with_warnings::<Service>().unwrap();
    assert_eq!(warnings, []);
    let (_, db, cache, messaging) = service;
    let urls = [db.url, cache.url, messaging.url].map(|url| url.current().expose().clone());
    assert_eq!(
        urls,
        [
            "postgresql://orders:k3-Yz9@maestro-postgres:5432/orders",
            "redis://orders:k3-Yz9@maestro-redis:6379/1",
            "amqp://orders:k3-Yz9@maestro-rabbitmq:5672/maestro",
        ]
    );
}

#[test]
fn a_problem_that_two_crates_find_is_reported_once() {
    let error = Environment::from_pairs([("A", "b")])
        .read::<(Identity, Identity)>()
        .unwrap_err();
    assert_eq!(error.problems().len(), 2, "name and environment: {error}");
}

/// Names that hold secrets, and ways to set them.
const SECRETS: [&str; 12] = [
    "MAESTRO_POSTGRES_URL",
    "MAESTRO_POSTGRES_PASSWORD",
    "MAESTRO_CACHE_URL",
    "MAESTRO_CACHE_PASSWORD",
    "MAESTRO_MESSAGING_URL",
    "MAESTRO_MESSAGING_PASSWORD",
    "DATABASE_URL",
    "REDIS_URL",
    "RABBITMQ_URL",
    "ORDERS_DB_PASSWORD",
    "SERVICE_DB_PASSWORD",
    "SOME_TOKEN",
];
const CANARY: &str = "c4naRyXq7";

/// A secret value around the canary, sound or damaged.
fn secret_value() -> impl Strategy<Value = String> {
    let damage = "[ -~]{0,6}";
    let shape = prop_oneof![
        Just("{}"),
        Just("redis://orders:{}@maestro-redis:6379/1"),
        Just("postgresql://orders:{}@maestro-postgres/orders"),
        Just("amqp://guest:{}@maestro-rabbitmq:27672/a/b"),
        Just("amqp://{}@h"),
        Just("redis://{}"),
        Just("'{}"),
        Just("\"{}"),
        Just("pa${}"),
        Just("${X:-{}}"),
        Just("`{}`"),
    ];
    (shape, damage, damage)
        .prop_map(|(shape, before, after)| shape.replace("{}", &format!("{before}{CANARY}{after}")))
}

fn everything_shown(environment: &Environment) -> String {
    let read = environment.read_with_warnings::<Service>();
    let explained = environment.explain::<Service>();
    let text = match &read {
        Ok((value, warnings)) => format!("{value:?} {warnings:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    format!("{text} {explained:?} {environment:?}")
}

proptest! {
    // More where PROPTEST_CASES says so.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(512)))]

    #[test]
    fn no_output_ever_holds_a_secret(
        secrets in prop::collection::vec((0..SECRETS.len(), secret_value()), 1..5),
        deployment in prop::sample::select(vec!["development", "production", "prod", ""]),
        in_file: bool,
        reference: bool,
    ) {
        let mut lines = vec![
            ("MAESTRO_SERVICE_NAME".to_owned(), "orders".to_owned()),
            ("MAESTRO_POSTGRES_TIMEOUT".to_owned(), "soon".to_owned()),
        ];
        lines.extend(secrets.into_iter().map(|(i, value)| (SECRETS[i].to_owned(), value)));
        if reference {
            lines.push(("MAESTRO_CACHE_TIMEOUT".to_owned(), "${ORDERS_DB_PASSWORD:-1}".to_owned()));
            lines.push(("MAESTRO_CACHE_COUNT".to_owned(), "$SOME_TOKEN".to_owned()));
        }
        let environment = if in_file {
            let directory = tempfile::tempdir().unwrap();
            let text: String = lines.iter().map(|(n, v)| n.clone() + "=" + v + "\n").collect();
            std::fs::write(directory.path().join(".env"), text).unwrap();
            let process = [("MAESTRO_ENVIRONMENT".into(), deployment.into())];
            Environment::load_in(directory.path(), process)
        } else {
            Environment::from_pairs(lines).with_pairs([("MAESTRO_ENVIRONMENT", deployment)])
        };
        let shown = everything_shown(&environment);
        prop_assert!(!shown.contains(CANARY), "{}", shown);
    }

    #[test]
    fn no_environment_makes_the_reader_fall_over(
        pairs in prop::collection::vec(("[A-Z_]{1,8}|MAESTRO_CACHE_[A-Z]{1,8}", any::<String>()), 0..8),
        values in prop::collection::vec(any::<String>(), 8),
    ) {
        let tables = Service::tables();
        let names = tables.iter().flat_map(|t| t.variables).map(|v| v.name().to_owned());
        let pairs = pairs.into_iter().chain(names.zip(values));
        let environment = Environment::from_pairs(pairs);
        let _ = everything_shown(&environment);
    }
}

#[test]
fn the_tables_of_the_three_crates_are_sound() {
    assert_eq!(docs::faults(&Service::tables()), Vec::<String>::new());
}
