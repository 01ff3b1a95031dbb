use maestro_config::Environment;

use super::*;

const MAIN: (&str, &str) = (
    "MAESTRO_POSTGRES_URL",
    "postgresql://orders:canary@maestro-postgres:5432/orders",
);

fn read(pairs: &[(&str, &str)]) -> Result<DbConfig, maestro_config::ConfigError> {
    let identity = [
        ("MAESTRO_SERVICE_NAME", "orders"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("MAESTRO_INSTANCE_ID", "orders-1"),
    ];
    Environment::from_pairs(identity.into_iter().chain(pairs.iter().copied())).read::<DbConfig>()
}

fn problems(pairs: &[(&str, &str)]) -> String {
    read(pairs)
        .expect_err("the settings were accepted")
        .to_string()
}

#[test]
fn defaults_are_those_of_the_conventions() {
    let config = read(&[MAIN]).unwrap();
    assert_eq!((config.pool_max(), config.pool_min()), (10, 0));
    assert_eq!(config.timeouts.acquire, Duration::from_secs(5));
    assert_eq!(config.timeouts.statement, Some(Duration::from_secs(30)));
    assert_eq!(config.timeouts.lock, Some(Duration::from_secs(10)));
    assert_eq!(
        config.timeouts.idle_in_transaction,
        Some(Duration::from_mins(1))
    );
    assert_eq!(config.timeouts.slow_query, Some(Duration::from_millis(500)));
    assert_eq!(config.application_name, "orders/0.0.0/orders-1");
    assert_eq!(config.direct.to_string(), config.main.to_string());
    assert_eq!(config.migration.to_string(), config.main.to_string());
}

#[test]
fn zero_means_no_limit_except_for_waits_on_the_pool_and_the_connection() {
    let config = read(&[MAIN, ("MAESTRO_POSTGRES_STATEMENT_TIMEOUT", "0")]).unwrap();
    assert_eq!(config.timeouts.statement, None);
    for name in [
        "MAESTRO_POSTGRES_ACQUIRE_TIMEOUT",
        "MAESTRO_POSTGRES_CONNECT_TIMEOUT",
    ] {
        assert!(problems(&[MAIN, (name, "0")]).contains(name));
    }
}

#[test]
fn a_url_is_taken_apart_with_escapes_ipv6_and_default_port() {
    let config = read(&[(
        "MAESTRO_POSTGRES_URL",
        "postgres://or%40ders:p%40ss%2Fw@[::1]/my%20db?sslmode=verify-full",
    )])
    .unwrap();
    let main = config.main;
    assert_eq!((main.host.as_str(), main.port), ("::1", 5432));
    assert_eq!(
        (main.user.as_str(), main.database.as_str()),
        ("or@ders", "my db")
    );
    assert_eq!(main.password.unwrap().expose(), "p@ss/w");
    assert_eq!(main.ssl_mode, Some(SslMode::VerifyFull));
}

#[test]
fn a_password_apart_from_the_url_belongs_to_its_role_only() {
    let config = read(&[
        MAIN,
        ("MAESTRO_POSTGRES_PASSWORD", "rotated"),
        (
            "MAESTRO_POSTGRES_DIRECT_URL",
            "postgresql://orders:old@db:5432/orders",
        ),
        (
            "MAESTRO_POSTGRES_MIGRATION_URL",
            "postgresql://orders_migrator:other@db:5432/orders",
        ),
    ])
    .unwrap();
    let password = |endpoint: &Endpoint| endpoint.password.clone().unwrap().expose().clone();
    assert_eq!(password(&config.main), "rotated");
    assert_eq!(password(&config.direct), "rotated");
    assert_eq!(password(&config.migration), "other");
}

#[test]
fn wrong_urls_are_refused_without_showing_the_password() {
    for (url, expected) in [
        ("mysql://orders:canary@db/orders", "postgresql://"),
        (
            "postgresql+asyncpg://orders:canary@db/orders",
            "postgresql://",
        ),
        ("postgresql://db:5432/orders", "names no role"),
        ("postgresql://orders:canary@db:5432", "names no database"),
        ("postgresql://orders:canary%+4@db/orders", "%25"),
        ("postgresql://orders:canary%4@db/orders", "%25"),
        (
            "postgresql://orders:canary@db/orders?options=-c%20a%3Db",
            "`options`",
        ),
        (
            "postgresql://orders:canary@db/orders?sslmode=maybe",
            "`sslmode`",
        ),
    ] {
        let report = problems(&[("MAESTRO_POSTGRES_URL", url)]);
        assert!(report.contains(expected), "{url}: {report}");
        assert!(!report.contains("canary"), "{url}: {report}");
    }
}

#[test]
fn every_problem_is_in_one_report_and_none_twice() {
    let report = problems(&[
        ("MAESTRO_POSTGRES_URL", "postgresql://orders@db:5432"),
        ("MAESTRO_POSTGRES_POOL_MAX", "0"),
        ("MAESTRO_POSTGRES_LOCK_TIMEOUT", "10"),
        ("MAESTRO_POSTGRES_TLS_CERT", "Cargo.toml"),
    ]);
    for name in ["_URL", "_POOL_MAX", "_LOCK_TIMEOUT", "_TLS_KEY"] {
        assert!(
            report.contains(&format!("MAESTRO_POSTGRES{name}")),
            "{name}: {report}"
        );
    }
    let error = Environment::from_pairs([MAIN])
        .read::<(Identity, DbConfig)>()
        .unwrap_err();
    let names: Vec<_> = error
        .problems()
        .iter()
        .map(maestro_config::Problem::variable)
        .collect();
    assert_eq!(names, ["MAESTRO_SERVICE_NAME", "MAESTRO_ENVIRONMENT"]);
}

#[test]
fn a_minimum_above_the_maximum_is_refused() {
    let report = problems(&[
        MAIN,
        ("MAESTRO_POSTGRES_POOL_MAX", "2"),
        ("MAESTRO_POSTGRES_POOL_MIN", "3"),
    ]);
    assert!(report.contains("MAESTRO_POSTGRES_POOL_MIN"), "{report}");
}

#[test]
fn an_application_name_fits_into_what_the_server_shows() {
    let config = read(&[
        MAIN,
        ("MAESTRO_SERVICE_VERSION", "1.0 größer"),
        ("MAESTRO_INSTANCE_ID", &"x".repeat(80)),
    ]);
    let name = config.unwrap().application_name;
    assert_eq!(name.len(), 63);
    assert!(name.starts_with("orders/1.0?gr??er/x"), "{name}");
}

#[test]
fn debug_output_holds_no_secret() {
    let config = read(&[MAIN, ("MAESTRO_POSTGRES_PASSWORD", "canary-2")]).unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(
        shown.contains("postgresql://orders@maestro-postgres:5432/orders"),
        "{shown}"
    );
}
