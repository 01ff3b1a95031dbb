//! Files that are not as they should be.

use super::*;

#[test]
fn faults_of_files_and_of_settings_come_in_one_report() {
    let place = Place::with(&[
        (
            "orders/.env.shared",
            "MAESTRO_SERVICE_NAME=orders\r\nMAESTRO_ENVIRONMENT = test\r\n",
        ),
        (
            "orders/.env",
            "MAESTRO_POSTGRES_POOL_MAX=many\nMAESTRO_ENVIRONMENT=test\n",
        ),
    ]);
    let error = place.environment(&[]).read::<(Identity, Db)>().unwrap_err();
    assert_eq!(
        fixes(&error),
        [
            (".env.shared", ".env.shared:2", "has spaces beside the `=`"),
            ("MAESTRO_POSTGRES_URL", "not set anywhere", "is not set"),
            (
                "MAESTRO_POSTGRES_POOL_MAX",
                ".env:1",
                "`many` is not a whole number"
            ),
        ]
    );
}

#[test]
fn a_line_that_is_not_utf8_costs_itself_and_no_other() {
    let place = Place::with(&[]);
    let mut bytes = format!("{BASE}DATABASE_URL=postgresql://h/a\nMAESTRO_TEAM=").into_bytes();
    bytes.extend(b"\xff\xfe\nMAESTRO_POSTGRES_POOL_MAX=4\n");
    std::fs::write(place.service().join(".env"), bytes).unwrap();
    let environment = place.environment(&[]);
    let error = environment.read::<Db>().unwrap_err();
    assert_eq!(fixes(&error), [(".env", ".env:4", "is not UTF-8")]);
    assert_eq!(environment.explain::<Db>()[1].shown.as_deref(), Some("4"));
}

#[test]
fn every_problem_of_a_file_says_what_was_expected_and_gives_an_example() {
    let long = "#".repeat(2 << 20);
    let place = Place::with(&[
        (
            "orders/a.env",
            "source missing.env\nsource folder\nsource a.env\n",
        ),
        ("orders/b.env", "source ${NO}\nA B\nMAESTRO_ENV_FILES=x\n"),
        ("orders/long.env", &long),
        ("orders/folder/x", ""),
        ("orders/docker-compose.yml", "services:\n"),
        (
            "orders/c.env",
            "MAESTRO_ENVIRONMENT=production\nMAESTRO_POSTGRES_ZZZ=1\n",
        ),
    ]);
    let named = "a.env,b.env,missing.env,folder,long.env,docker-compose.yml,c.env";
    std::fs::write(
        place.service().join("b.env"),
        b"A=\xff\nsource ${NO}\nA B\n",
    )
    .unwrap();
    let environment = place.environment(&[("MAESTRO_ENV_FILES", named)]);
    let error = environment.read::<Db>().unwrap_err();
    for problem in error.problems() {
        let parts = [problem.expected(), problem.example(), problem.fix()];
        assert!(parts.iter().all(|part| !part.is_empty()), "{problem}");
    }
    let shown = error.to_string();
    for part in [
        "includes folder, which is not a file",
        "names the file folder, which is not a file",
        "is longer than 1 MiB",
        "if this is no env file, name another",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn a_file_of_anything_else_does_not_flood_the_report() {
    let junk = "x y\n".repeat(10_000);
    let not_utf8 = b"\xff\n".repeat(10_000);
    let place = Place::with(&[("orders/.env.shared", BASE), ("orders/.env", &junk)]);
    let of_file = |place: &Place| {
        let error = place.environment(&[]).read::<Db>().unwrap_err();
        let problems = error.problems();
        let last = problems.iter().rfind(|p| p.variable() == ".env").unwrap();
        assert!(last.message().contains("more lines"), "{last}");
        assert!(!last.fix().is_empty());
        problems.len()
    };
    assert!(of_file(&place) < 30);
    std::fs::write(place.service().join(".env"), not_utf8).unwrap();
    assert!(of_file(&place) < 30);
    let text = Environment::from_pairs([("A", "b")]).with_env_file("junk", &junk);
    assert!(text.read::<Db>().unwrap_err().problems().len() < 30);
}

#[test]
fn a_compose_file_says_what_to_move_where() {
    let compose =
        "services:\n  orders:\n    environment:\n      - MAESTRO_CACHE_URL=redis://:canary@h\n";
    let place = Place::with(&[("orders/docker-compose.yml", compose)]);
    let environment = place.environment(&[
        ("MAESTRO_ENV_FILES", "docker-compose.yml"),
        ("MAESTRO_ENVIRONMENT", "test"),
        ("DATABASE_URL", "postgresql://h/a"),
    ]);
    let shown = environment.read::<Db>().unwrap_err().to_string();
    assert!(
        shown.contains("is a compose file") && shown.contains("MAESTRO_CACHE_URL"),
        "{shown}"
    );
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn directories_and_missing_files_are_nobodys_env_file() {
    let place = Place::with(&[("orders/.env/bin/activate", "not ours")]);
    let environment = place.environment(&[
        ("MAESTRO_ENVIRONMENT", "test"),
        ("DATABASE_URL", "postgresql://h/a"),
    ]);
    assert!(environment.read::<Db>().is_ok());
}
