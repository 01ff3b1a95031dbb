mod faults;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::{
    ConfigError, Environment, FromEnvironment, Identity, Kind, Origin, Reader, Secret, Table,
    Variable,
};

const URL: Variable = Variable::new(
    "MAESTRO_POSTGRES_URL",
    Kind::Url {
        schemes: &["postgresql"],
    },
)
.aliases(&["DATABASE_URL"])
.required()
.secret()
.example("postgresql://orders:<password>@maestro-postgres:5432/orders");
const POOL: Variable = Variable::new(
    "MAESTRO_POSTGRES_POOL_MAX",
    Kind::Count { min: 1, max: 100 },
)
.default("10");
static TABLE: Table = Table {
    owner: "maestro-db",
    areas: &["MAESTRO_POSTGRES_"],
    variables: &[URL, POOL],
};

#[derive(Debug)]
struct Db {
    url: Secret<String>,
    pool: u64,
}

impl FromEnvironment for Db {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let url = reader.url(&URL);
        let pool = reader.count(&POOL);
        Some(Self {
            url: url?,
            pool: pool?,
        })
    }
}

/// A directory tree to start a service in.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn with(files: &[(&str, &str)]) -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(place.service()).unwrap();
        for (name, text) in files {
            let path = place.root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        place
    }

    fn service(&self) -> PathBuf {
        self.root.path().join("orders")
    }

    fn environment(&self, process: &[(&str, &str)]) -> Environment {
        let process = process.iter().map(|(n, v)| ((*n).into(), (*v).into()));
        Environment::load_in(&self.service(), process)
    }
}

fn fixes(error: &ConfigError) -> Vec<(&str, &str, &str)> {
    let problem = |p| -> (&str, &str, &str) {
        let p: &crate::Problem = p;
        (p.variable(), p.origin(), p.message())
    };
    error.problems().iter().map(problem).collect()
}

const BASE: &str = "MAESTRO_SERVICE_NAME=orders\nMAESTRO_ENVIRONMENT=development\n";

#[test]
fn every_layer_stands_above_the_one_before() {
    let layers = [
        ("infrastructure/.env.infrastructure", "1"),
        ("infrastructure/.env", "2"),
        ("orders/.env.infrastructure", "3"),
        ("orders/.env.shared", "4"),
        ("orders/.env.development", "5"),
        ("orders/.env", "6"),
    ];
    let base = [("MAESTRO_ENVIRONMENT", "development")];
    for count in 0..=layers.len() {
        let texts: Vec<_> = layers[..count]
            .iter()
            .map(|(name, value)| {
                (
                    *name,
                    format!("MAESTRO_POSTGRES_POOL_MAX={value}\nDATABASE_URL=postgresql://h/db"),
                )
            })
            .collect();
        let files: Vec<_> = texts
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let environment = Place::with(&files).environment(&base);
        let environment = environment.with_pairs([("DATABASE_URL", "postgresql://h/db")]);
        let expected = [10, 1, 3, 3, 4, 5, 6][count];
        // `.env` of the infrastructure stands above its `.env.infrastructure`, and so above the
        // service's file of that name, which is the infrastructure's too.
        let expected = if count == 2 || count == 3 {
            2
        } else {
            expected
        };
        assert_eq!(
            environment.read::<Db>().unwrap().pool,
            expected,
            "{count} layers"
        );
        let above = environment.with_pairs([("MAESTRO_POSTGRES_POOL_MAX", "7")]);
        assert_eq!(above.read::<Db>().unwrap().pool, 7);
    }
}

#[test]
fn the_process_environment_stands_above_every_file() {
    let text =
        format!("{BASE}MAESTRO_POSTGRES_URL=postgresql://h/file\nMAESTRO_POSTGRES_POOL_MAX=3");
    let place = Place::with(&[("orders/.env", text.as_str())]);
    let environment = place.environment(&[("MAESTRO_POSTGRES_POOL_MAX", "4")]);
    let db: Db = environment.read().unwrap();
    assert_eq!(
        (db.pool, db.url.expose().as_str()),
        (4, "postgresql://h/file")
    );
}

#[test]
fn the_platforms_older_files_load_as_they_are() {
    let place = Place::with(&[
        (
            "infrastructure/.env.infrastructure",
            "# shared servers\nexport MAESTRO_POSTGRES_ADMIN_USER=maestro_admin\n\
             MAESTRO_POSTGRES_VERSION=15\nMAESTRO_POSTGRES_HOST_INTERNAL=maestro-postgres\n\
             ORDERS_DB_PASSWORD='p@ss word'\nQF_DB_PASSWORD=x\n",
        ),
        (
            "orders/.env.shared",
            "#!/bin/bash\nset -a\nsource ../infrastructure/.env.infrastructure\n\n\
             MAESTRO_SERVICE_NAME=orders\nMAESTRO_ENVIRONMENT=${MAESTRO_ENVIRONMENT:-development}\n\
             SERVICE_DB_PASSWORD=${ORDERS_DB_PASSWORD:-changeme}   # from the vault\n\
             DATABASE_URL=\"postgresql://orders:${DB_PASSWORD_ENCODED:-p%40ss%20word}@maestro-postgres:5432/${SERVICE_DB_NAME:-orders}\"\n\
             set +a\n",
        ),
    ]);
    let environment = place.environment(&[]);
    let ((identity, db), warnings) = environment.read_with_warnings::<(Identity, Db)>().unwrap();
    assert_eq!(identity.service().as_str(), "orders");
    assert_eq!(
        db.url.expose(),
        "postgresql://orders:p%40ss%20word@maestro-postgres:5432/orders"
    );
    let warned: Vec<_> = warnings.iter().map(crate::Problem::variable).collect();
    assert_eq!(
        warned,
        ["MAESTRO_POSTGRES_HOST_INTERNAL"],
        "only what nobody knows"
    );
    let url = environment.explain::<Db>().swap_remove(0);
    assert_eq!((url.alias, url.shown), (Some("DATABASE_URL"), None));
    assert_eq!(
        url.origin,
        Origin::File {
            path: ".env.shared".into(),
            line: 8
        }
    );
}

#[test]
fn env_files_are_not_read_in_staging_and_production() {
    let place = Place::with(&[(
        "orders/.env",
        "MAESTRO_POSTGRES_URL=postgresql://u:k3Yz9-@h/db",
    )]);
    for deployment in ["staging", "production"] {
        let environment = place.environment(&[("MAESTRO_ENVIRONMENT", deployment)]);
        let error = environment.read::<Db>().unwrap_err();
        assert_eq!(
            fixes(&error),
            [("MAESTRO_POSTGRES_URL", "not set anywhere", "is not set")]
        );
    }
    assert!(
        place
            .environment(&[("MAESTRO_ENVIRONMENT", "demo")])
            .read::<Db>()
            .is_ok()
    );
}

#[test]
fn naming_env_files_in_production_is_refused_rather_than_ignored() {
    let place = Place::with(&[("orders/.env", "")]);
    let process = [
        ("MAESTRO_ENVIRONMENT", "production"),
        ("MAESTRO_ENV_FILES", ".env"),
    ];
    let error = place.environment(&process).read::<Db>().unwrap_err();
    assert_eq!(error.problems()[0].variable(), "MAESTRO_ENV_FILES");
}

#[test]
fn a_file_cannot_turn_a_process_into_production() {
    let place = Place::with(&[(
        "orders/.env.shared",
        "MAESTRO_ENVIRONMENT=production\nMAESTRO_POSTGRES_URL=postgresql://u:k3Yz9-@maestro-postgres/db",
    )]);
    let error = place.environment(&[]).read::<Db>().unwrap_err();
    let [(variable, origin, _)] = fixes(&error)[..] else {
        panic!("{error}");
    };
    assert_eq!((variable, origin), ("MAESTRO_ENVIRONMENT", ".env.shared:1"));
}

#[test]
fn a_process_that_does_not_say_what_it_is_is_refused_whatever_is_read() {
    let place = Place::with(&[]);
    let environment = place.environment(&[("MAESTRO_POSTGRES_URL", "postgresql://h/db")]);
    let error = environment.read::<Db>().unwrap_err();
    assert_eq!(error.problems()[0].variable(), "MAESTRO_ENVIRONMENT");
}

#[test]
fn named_env_files_replace_the_search() {
    let place = Place::with(&[
        ("orders/.env", "MAESTRO_POSTGRES_POOL_MAX=1"),
        (
            "orders/a.env",
            &format!("{BASE}DATABASE_URL=postgresql://h/a\nMAESTRO_POSTGRES_POOL_MAX=2"),
        ),
        ("elsewhere/b.env", "MAESTRO_POSTGRES_POOL_MAX=3"),
    ]);
    let environment = place.environment(&[("MAESTRO_ENV_FILES", "a.env, ../elsewhere/b.env")]);
    assert_eq!(environment.read::<Db>().unwrap().pool, 3);
    let environment = place.environment(&[("MAESTRO_ENV_FILES", "a.env,missing.env")]);
    let error = environment.read::<Db>().unwrap_err();
    assert_eq!(
        fixes(&error),
        [(
            "MAESTRO_ENV_FILES",
            "process environment",
            "names the file missing.env, which does not exist"
        )]
    );
}

#[test]
fn which_files_are_read_cannot_be_said_in_a_file() {
    let text = format!("{BASE}DATABASE_URL=postgresql://h/a\nMAESTRO_ENV_FILES=other.env");
    let place = Place::with(&[("orders/.env", text.as_str())]);
    let error = place.environment(&[]).read::<Db>().unwrap_err();
    assert_eq!(error.problems()[0].origin(), ".env:4");
}

#[test]
fn includes_are_followed_once_and_say_when_they_cannot() {
    let place = Place::with(&[
        (
            "orders/.env",
            &format!("{BASE}DATABASE_URL=postgresql://h/a\nsource a.env\n"),
        ),
        (
            "orders/a.env",
            "MAESTRO_POSTGRES_POOL_MAX=2\nsource b.env\nsource sub/c.env",
        ),
        (
            "orders/b.env",
            "source a.env\n. ./missing.env\nsource missing.env || true\nsource ${NO}/x",
        ),
        (
            "orders/sub/c.env",
            "MAESTRO_POSTGRES_POOL_MAX=5\nsource ../b.env",
        ),
    ]);
    let error = place.environment(&[]).read::<Db>().unwrap_err();
    assert_eq!(
        fixes(&error),
        [
            (
                "b.env",
                "b.env:1",
                "includes a.env, which includes this file"
            ),
            (
                "b.env",
                "b.env:2",
                "includes missing.env, which does not exist"
            ),
            (
                "b.env",
                "b.env:4",
                "includes a path that refers to `NO`, which nothing sets"
            ),
        ]
    );
}

#[test]
fn an_infrastructure_folder_in_a_directory_open_to_all_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::with(&[("infrastructure/.env", "MAESTRO_POSTGRES_POOL_MAX=66")]);
    let process = [
        ("MAESTRO_ENVIRONMENT", "test"),
        ("DATABASE_URL", "postgresql://h/a"),
    ];
    assert_eq!(place.environment(&process).read::<Db>().unwrap().pool, 66);
    let open = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(place.root.path(), open).unwrap();
    assert_eq!(place.environment(&process).read::<Db>().unwrap().pool, 10);
}

#[test]
fn a_process_variable_that_is_not_utf8_is_a_problem_only_where_it_is_wanted() {
    let place = Place::with(&[]);
    let bytes = || OsString::from_vec(b"postgresql://u:\xff@h/a".to_vec());
    let process = |name: &str| {
        let pairs = [
            (OsString::from(name), bytes()),
            ("MAESTRO_ENVIRONMENT".into(), "test".into()),
        ];
        Environment::load_in(&place.service(), pairs)
    };
    let error = process("MAESTRO_POSTGRES_URL").read::<Db>().unwrap_err();
    assert_eq!(
        fixes(&error),
        [(
            "MAESTRO_POSTGRES_URL",
            "process environment",
            "is not UTF-8"
        )]
    );
    let other = process("SOMETHING").with_pairs([("DATABASE_URL", "postgresql://h/a")]);
    assert!(other.read::<Db>().is_ok());
}

#[test]
fn a_secret_file_without_a_secret_is_a_problem_that_says_where_it_was_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let text = format!("{BASE}MAESTRO_POSTGRES_URL_FILE={}\n", path.display());
    let place = Place::with(&[("orders/.env", text.as_str())]);
    let shown = || {
        let error = place.environment(&[]).read::<Db>().unwrap_err();
        let [problem] = error.problems() else {
            panic!("{error}");
        };
        assert_eq!(problem.variable(), "MAESTRO_POSTGRES_URL");
        assert!(!problem.fix().is_empty());
        error.to_string()
    };
    let long = b"canary".repeat(200_000);
    for (content, why) in [
        (None, "which does not exist"),
        (Some(b"".as_slice()), "which is empty"),
        (Some(b" \r\n"), "which is empty"),
        (Some(b"postgresql://u:canary\xff@h/a"), "which is not UTF-8"),
        (Some(long.as_slice()), "which is longer than 1 MiB"),
        (Some(b"postgresql://u:canary/1@h/a\r\n"), "after the host"),
    ] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let shown = shown();
        assert!(shown.contains(why), "{why}: {shown}");
        assert!(shown.contains(".env:3"), "{why}: {shown}");
        assert!(!shown.contains("canary"), "{why}: {shown}");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(shown().contains("which is not a file"));
    // One line end is no part of the secret, whichever system wrote the file.
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "postgresql://u:p@h/a\r\n").unwrap();
    let db: Db = place.environment(&[]).read().unwrap();
    assert_eq!(db.url.expose(), "postgresql://u:p@h/a");
}

#[test]
fn debug_shows_names_and_no_values() {
    let environment = Environment::from_pairs([("MAESTRO_POSTGRES_URL", "canary")]);
    let shown = format!("{environment:?}");
    assert!(
        shown.contains("MAESTRO_POSTGRES_URL") && !shown.contains("canary"),
        "{shown}"
    );
}
