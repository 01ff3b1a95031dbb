//! The settings of all crates of a service, read together.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use maestro_cache::CacheConfig;
use maestro_config::{Environment, FromEnvironment, Identity, Problem, docs};
use maestro_db::DbConfig;
use maestro_messaging::MessagingConfig;
use maestro_metrics::TelemetryConfig;
use tracing_subscriber::fmt::MakeWriter;

type Service = (
    Identity,
    TelemetryConfig,
    DbConfig,
    CacheConfig,
    MessagingConfig,
);

const SOUND: [(&str, &str); 6] = [
    ("MAESTRO_SERVICE_NAME", "orders"),
    ("MAESTRO_SERVICE_VERSION", "1.4.2"),
    ("MAESTRO_ENVIRONMENT", "production"),
    (
        "MAESTRO_POSTGRES_URL",
        "postgresql://orders:zK3-canary@maestro-postgres:5432/orders",
    ),
    (
        "MAESTRO_CACHE_URL",
        "redis://orders:zK3-canary@maestro-redis:6379/1",
    ),
    (
        "MAESTRO_MESSAGING_URL",
        "amqp://orders:zK3-canary@maestro-rabbitmq:5672/maestro",
    ),
];

fn with(changes: &[(&str, &str)]) -> Environment {
    Environment::from_pairs(SOUND).with_pairs(changes.iter().copied())
}

#[test]
fn ten_mistakes_over_three_crates_are_ten_entries_of_one_report() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("password");
    let error = with(&[
        (
            "MAESTRO_POSTGRES_URL",
            "postgresql://orders:canary/1@maestro-postgres/orders",
        ),
        ("MAESTRO_POSTGRES_POOL_MAX", "ten"),
        ("MAESTRO_POSTGRES_ACQUIRE_TIMEOUT", "30"),
        ("MAESTRO_POSTGRES_POOLER", "PgBouncer"),
        (
            "MAESTRO_CACHE_URL",
            "redis://orders:canary-22@maestro-redis:27379/1",
        ),
        ("MAESTRO_CACHE_LOCAL_CAPACITY", "64MB"),
        ("MAESTRO_CACHE_LOCAL_TLL", "60s"),
        (
            "MAESTRO_MESSAGING_URL",
            "amqp://guest:canary-33@maestro-rabbitmq:5672/maestro",
        ),
        ("MAESTRO_MESSAGING_PASSWORD_FILE", missing.to_str().unwrap()),
        ("MAESTRO_MESSAGING_RETRY_DELAYS", "1s;10s"),
    ])
    .read::<Service>()
    .unwrap_err();
    let found: Vec<_> = error.problems().iter().map(Problem::variable).collect();
    assert_eq!(
        found,
        [
            "MAESTRO_POSTGRES_URL",
            "MAESTRO_POSTGRES_POOLER",
            "MAESTRO_POSTGRES_POOL_MAX",
            "MAESTRO_POSTGRES_ACQUIRE_TIMEOUT",
            "MAESTRO_CACHE_URL",
            "MAESTRO_CACHE_LOCAL_CAPACITY",
            "MAESTRO_MESSAGING_URL",
            "MAESTRO_MESSAGING_PASSWORD",
            "MAESTRO_MESSAGING_RETRY_DELAYS",
            "MAESTRO_CACHE_LOCAL_TLL",
        ],
        "{error}"
    );
    assert!(
        error
            .problems()
            .iter()
            .all(|problem| !problem.fix().is_empty())
    );
    assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
}

#[test]
fn the_tables_of_all_crates_are_sound_and_render() {
    let tables = [
        Service::tables(),
        maestro::ServiceConfig::tables(),
        maestro_testkit::DevServicesConfig::tables(),
    ]
    .concat();
    assert_eq!(docs::faults(&tables), Vec::<String>::new());
    let page = docs::markdown(&tables);
    for (name, _) in SOUND {
        assert_eq!(page.matches(&format!("| `{name}` |")).count(), 1, "{name}");
    }
}

/// Everything logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn a_canary_in_every_secret_variable_is_logged_at_no_level_and_shown_by_no_type() {
    // With one subscriber in a process, a place in the code that another thread comes to first (another
    // test) is silent for good: tracing then asks that thread's subscriber alone.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let tables = Service::tables();
        let secret = tables.iter().flat_map(|table| table.variables);
        let names: Vec<_> = secret
            .filter(|v| v.is_secret())
            .map(maestro_config::Variable::name)
            .collect();
        assert!(names.len() >= 9, "{names:?}");
        for deployment in ["development", "production"] {
            for name in &names {
                for value in [
                    "c4naRy-1",
                    "x://c4naRy-2@h",
                    "c4naRy-3\n",
                    "redis://:c4naRy/4@h",
                ] {
                    let changes = [
                        ("MAESTRO_ENVIRONMENT", deployment),
                        (*name, value),
                        ("MAESTRO_CACHE_UNKNOWN", "1s"),
                    ];
                    let environment = with(&changes);
                    let mut shown =
                        format!("{environment:?} {:?}", environment.explain::<Service>());
                    match environment.read::<Service>() {
                        Ok(service) => write!(shown, "{service:?}").unwrap(),
                        Err(error) => write!(shown, "{error} {error:?}").unwrap(),
                    }
                    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
                    let both = format!("{shown}\n{logged}");
                    assert!(!both.contains("c4naRy"), "{name}: {both}");
                }
            }
        }
        let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(
            logged.contains("MAESTRO_CACHE_UNKNOWN"),
            "the log is looked at: {logged}"
        );
    });
}
