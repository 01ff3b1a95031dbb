use super::*;
use crate::{ConfigError, Environment};

const TTL: Variable = Variable::new("MAESTRO_CACHE_TTL", Kind::Duration)
    .default("5m")
    .bounds("1ms", "720h")
    .example("5m");
const LIMIT: Variable = Variable::new("MAESTRO_CACHE_LIMIT", Kind::Duration)
    .bounds("10ms", "1h")
    .zero("no limit");
const DELAYS: Variable = Variable::new("MAESTRO_CACHE_DELAYS", Kind::Durations).bounds("1s", "1h");
const CAPACITY: Variable =
    Variable::new("MAESTRO_CACHE_CAPACITY", Kind::Size).bounds("1MiB", "1GiB");
const PASSWORD: Variable = Variable::new("MAESTRO_CACHE_PASSWORD", Kind::String).secret();
const URL: Variable = Variable::new(
    "MAESTRO_CACHE_URL",
    Kind::Url {
        schemes: &["redis"],
    },
)
.required()
.secret()
.example("redis://orders:<password>@maestro-redis:6379/1");
const MODE: Variable = Variable::new(
    "MAESTRO_CACHE_MODE",
    Kind::Choice {
        words: &["near", "remote"],
    },
);
const NOTE: Variable = Variable::new("MAESTRO_CACHE_NOTE", Kind::String);
const PATHS: Variable = Variable::new("MAESTRO_CACHE_PATHS", Kind::Paths);

static TABLE: Table = Table {
    owner: "maestro-cache",
    areas: &["MAESTRO_CACHE_"],
    variables: &[
        TTL, LIMIT, DELAYS, CAPACITY, PASSWORD, URL, MODE, NOTE, PATHS,
    ],
};

/// Reads one variable by a getter.
macro_rules! reads {
    ($name:ident, $output:ty, $variable:expr, $getter:expr) => {
        #[derive(Debug)]
        #[allow(dead_code, reason = "of some only the problem is looked at")]
        struct $name($output);

        impl FromEnvironment for $name {
            fn tables() -> Vec<&'static Table> {
                vec![&TABLE]
            }

            fn read(reader: &mut Reader<'_>) -> Option<Self> {
                $getter(reader, &$variable).map($name)
            }
        }
    };
}
reads!(Ttl, Duration, TTL, Reader::duration);
reads!(Limit, Duration, LIMIT, Reader::duration);
reads!(Delays, Vec<Duration>, DELAYS, Reader::durations);
reads!(Capacity, u64, CAPACITY, Reader::size);
reads!(Password, Secret<String>, PASSWORD, Reader::secret);
reads!(Url, Secret<String>, URL, Reader::url);
reads!(Mode, String, MODE, Reader::choice);
reads!(Note, String, NOTE, Reader::string);
reads!(Paths, Vec<PathBuf>, PATHS, Reader::paths);
reads!(
    Maybe,
    Option<Secret<String>>,
    PASSWORD,
    |r: &mut Reader<'_>, v| r.optional(v, Reader::secret)
);

fn read<T: FromEnvironment>(name: &str, value: &str) -> Result<T, ConfigError> {
    Environment::from_pairs([(name, value)]).read()
}

fn problem<T: FromEnvironment + fmt::Debug>(name: &str, value: &str) -> Problem {
    let error = read::<T>(name, value).expect_err(value);
    let [problem] = error.problems() else {
        panic!("{error}");
    };
    assert_eq!(problem.variable(), name);
    assert!(!problem.fix().is_empty());
    problem.clone()
}

#[test]
fn an_empty_value_is_no_value() {
    for empty in ["", " ", "\t\n"] {
        assert_eq!(
            read::<Ttl>("MAESTRO_CACHE_TTL", empty).unwrap().0,
            Duration::from_mins(5)
        );
        assert!(
            read::<Maybe>("MAESTRO_CACHE_PASSWORD", empty)
                .unwrap()
                .0
                .is_none()
        );
        let problem = problem::<Url>("MAESTRO_CACHE_URL", empty);
        assert_eq!(
            (problem.message(), problem.origin()),
            ("is empty", "given pairs")
        );
    }
}

#[test]
fn an_empty_secret_is_refused_in_production() {
    let pairs = [
        ("MAESTRO_ENVIRONMENT", "production"),
        ("MAESTRO_CACHE_PASSWORD", ""),
    ];
    let environment = Environment::from_pairs(pairs);
    assert_eq!(
        environment.read::<Maybe>().unwrap_err().problems()[0].message(),
        "is empty"
    );
}

#[test]
fn white_space_around_a_value_is_no_part_of_it_unless_it_is_a_secret() {
    assert_eq!(
        read::<Ttl>("MAESTRO_CACHE_TTL", " 7s\r\n").unwrap().0,
        Duration::from_secs(7)
    );
    assert_eq!(
        read::<Note>("MAESTRO_CACHE_NOTE", "a b\n").unwrap().0,
        "a b"
    );
    let url = "redis://h:6379/1";
    assert_eq!(
        read::<Url>("MAESTRO_CACHE_URL", "redis://h:6379/1\n")
            .unwrap()
            .0
            .expose(),
        url
    );
    let secret = read::<Password>("MAESTRO_CACHE_PASSWORD", " pw ").unwrap();
    assert_eq!(secret.0.expose(), " pw ");
    for secret in ["pw\n", "pw\r\n", "\npw"] {
        let problem = problem::<Password>("MAESTRO_CACHE_PASSWORD", secret);
        assert!(problem.message().contains("line break"), "{problem}");
    }
}

#[test]
fn a_reference_that_nothing_expanded_is_no_password() {
    for value in ["${REDIS_PASSWORD}", "$(REDIS_PASSWORD)", "${A:-canary}"] {
        let wrong = problem::<Password>("MAESTRO_CACHE_PASSWORD", value);
        assert!(wrong.message().contains("nothing has expanded"), "{wrong}");
        assert!(!wrong.to_string().contains("canary"), "{wrong}");
    }
    for value in ["a${b", "$(", "$ecret", "{a}"] {
        assert!(
            read::<Password>("MAESTRO_CACHE_PASSWORD", value).is_ok(),
            "{value}"
        );
    }
}

#[test]
fn a_name_cannot_write_lines_of_the_report() {
    let name = "MAESTRO_CACHE_\n   2. \u{1b}[31m";
    let pairs = [(name, "x"), ("MAESTRO_ENVIRONMENT", "production")];
    let shown = Environment::from_pairs(pairs)
        .read::<Ttl>()
        .unwrap_err()
        .to_string();
    assert!(shown.contains("MAESTRO_CACHE_\\n"), "{shown}");
    assert!(
        !shown.contains('\u{1b}') && !shown.contains("\n   2."),
        "{shown}"
    );
}

#[test]
fn a_wrong_value_is_shown_with_what_was_probably_meant() {
    let wrong = problem::<Ttl>("MAESTRO_CACHE_TTL", "30");
    assert_eq!(wrong.message(), "`30` has no unit");
    assert_eq!(wrong.fix(), "MAESTRO_CACHE_TTL=30s");
    assert!(wrong.expected().contains("from 1ms to 720h"), "{wrong}");
    let wrong = problem::<Mode>("MAESTRO_CACHE_MODE", "Near");
    assert_eq!(wrong.fix(), "MAESTRO_CACHE_MODE=near");
    let wrong = problem::<Mode>("MAESTRO_CACHE_MODE", "remoet");
    assert_eq!(wrong.fix(), "MAESTRO_CACHE_MODE=remote");
    let wrong = problem::<Ttl>("MAESTRO_CACHE_TTL", "\"30s\"");
    assert!(wrong.message().contains("in quotes"), "{wrong}");
    assert_eq!(wrong.fix(), "MAESTRO_CACHE_TTL=30s");
    let wrong = problem::<Url>("MAESTRO_CACHE_URL", "'redis://u:canary@h/1'");
    assert!(wrong.message().contains("in quotes"), "{wrong}");
    assert!(!wrong.to_string().contains("canary"), "{wrong}");
    let wrong = problem::<Ttl>("MAESTRO_CACHE_TTL", "\u{1b}[31m");
    assert_eq!(
        wrong.message(),
        "`\\u{1b}[31m` does not begin with a whole number"
    );
}

#[test]
fn bounds_hold_and_zero_is_allowed_only_where_it_has_a_meaning() {
    for (value, accepted) in [
        ("0", true),
        ("10ms", true),
        ("1h", true),
        ("9ms", false),
        ("61m", false),
    ] {
        assert_eq!(
            read::<Limit>("MAESTRO_CACHE_LIMIT", value).is_ok(),
            accepted,
            "{value}"
        );
    }
    assert_eq!(
        problem::<Ttl>("MAESTRO_CACHE_TTL", "0").message(),
        "`0` is below 1ms"
    );
    assert_eq!(
        problem::<Ttl>("MAESTRO_CACHE_TTL", "721h").message(),
        "`721h` is above 720h"
    );
    assert!(read::<Delays>("MAESTRO_CACHE_DELAYS", "1s, 10s").is_ok());
    for delays in ["1s,,2s", "1s,", "1s,1ms", "1s;2s"] {
        problem::<Delays>("MAESTRO_CACHE_DELAYS", delays);
    }
    for size in ["1B", "2GiB", "-1MiB", "1e3MiB"] {
        problem::<Capacity>("MAESTRO_CACHE_CAPACITY", size);
    }
    assert_eq!(
        read::<Paths>("MAESTRO_CACHE_PATHS", "/a, b")
            .unwrap()
            .0
            .len(),
        2
    );
    problem::<Paths>("MAESTRO_CACHE_PATHS", "/a,,b");
}

#[test]
fn a_megabyte_of_text_is_a_value_and_does_not_fill_the_report() {
    let long = "x".repeat(1_000_000);
    assert_eq!(
        read::<Note>("MAESTRO_CACHE_NOTE", &long).unwrap().0.len(),
        long.len()
    );
    let shown = problem::<Ttl>("MAESTRO_CACHE_TTL", &long).to_string();
    assert!(shown.len() < 1_000, "{} bytes", shown.len());
    for text in [
        "9".repeat(1_000_000),
        format!("\"{}s\"", "9".repeat(1_000_000)),
    ] {
        let shown = problem::<Ttl>("MAESTRO_CACHE_TTL", &text).to_string();
        assert!(shown.len() < 1_000, "{} bytes", shown.len());
    }
    let longer = "x".repeat((1 << 20) + 1);
    let wrong = problem::<Note>("MAESTRO_CACHE_NOTE", &longer);
    assert_eq!(wrong.message(), "is longer than 1 MiB");
}

#[test]
fn a_secret_in_the_wrong_variable_is_not_shown_either() {
    for value in [
        "redis://orders:canary@h/1",
        "canary://a:canary@",
        "password=canary;x",
    ] {
        let wrong = problem::<Ttl>("MAESTRO_CACHE_TTL", value).to_string();
        assert!(!wrong.contains("canary"), "{wrong}");
    }
}

#[test]
fn a_missing_variable_names_the_misspelt_one_and_that_is_the_only_problem() {
    let error = Environment::from_pairs([
        ("MAESTRO_ENVIRONMENT", "production"),
        ("MAESTRO_CACHE_ULR", "redis://h/1"),
    ])
    .read::<Url>()
    .unwrap_err();
    let [wrong] = error.problems() else {
        panic!("{error}");
    };
    assert_eq!(wrong.message(), "is not set, but MAESTRO_CACHE_ULR is");
    assert_eq!(wrong.fix(), "rename MAESTRO_CACHE_ULR to MAESTRO_CACHE_URL");
}

#[test]
fn unknown_names_are_warned_of_in_development_and_refused_in_production() {
    let pairs = |deployment| {
        Environment::from_pairs([
            ("MAESTRO_ENVIRONMENT", deployment),
            ("MAESTRO_CACHE_NOTE", "x"),
            ("MAESTRO_CACHE_TLT", "5s"),
            ("MAESTRO_CACHE_UNHEARD_OF", "5s"),
            ("MAESTRO_OTHER_TLT", "5s"),
        ])
    };
    let (_, warnings) = pairs("development").read_with_warnings::<Note>().unwrap();
    let fixes: Vec<_> = warnings.iter().map(Problem::fix).collect();
    assert_eq!(
        fixes,
        [
            "rename MAESTRO_CACHE_TLT to MAESTRO_CACHE_TTL",
            "remove MAESTRO_CACHE_UNHEARD_OF; docs/configuration.md lists what there is"
        ]
    );
    let error = pairs("production").read::<Note>().unwrap_err();
    assert_eq!(error.problems(), warnings);
}

#[test]
fn a_port_is_unknown_unless_it_is_the_address_that_kubernetes_gives() {
    for (value, unknown) in [("6380", 1), ("tcp://10.0.0.7:6379", 0)] {
        let environment = Environment::from_pairs([("MAESTRO_CACHE_PORT", value)]);
        let (_, warnings) = environment.read_with_warnings::<Ttl>().unwrap();
        assert_eq!(warnings.len(), unknown, "{value}");
    }
}

#[test]
fn thousands_of_unknown_names_do_not_flood_the_report() {
    let names = (0..5_000).map(|n| (format!("MAESTRO_CACHE_X{n}"), "canary".to_owned()));
    let environment = Environment::from_pairs(names).with_pairs([("MAESTRO_ENVIRONMENT", "test")]);
    let (_, warnings) = environment.read_with_warnings::<Ttl>().unwrap();
    assert!(warnings.len() < 60, "{}", warnings.len());
    let last = warnings.last().unwrap().to_string();
    assert!(last.contains("4950 more names"), "{last}");
}

#[test]
fn a_variable_missing_in_its_table_is_still_read() {
    const FORGOTTEN: Variable = Variable::new("MAESTRO_ELSEWHERE", Kind::String);
    #[derive(Debug)]
    struct Forgetful(String);
    impl FromEnvironment for Forgetful {
        fn tables() -> Vec<&'static Table> {
            vec![&TABLE]
        }

        fn read(reader: &mut Reader<'_>) -> Option<Self> {
            reader.string(&FORGOTTEN).map(Self)
        }
    }
    assert_eq!(read::<Forgetful>("MAESTRO_ELSEWHERE", "x").unwrap().0, "x");
}

#[test]
fn settings_that_fail_without_a_word_are_a_problem() {
    #[derive(Debug)]
    struct Silent;
    impl FromEnvironment for Silent {
        fn tables() -> Vec<&'static Table> {
            Vec::new()
        }

        fn read(_: &mut Reader<'_>) -> Option<Self> {
            None
        }
    }
    let error = Environment::from_pairs([("A", "b")])
        .read::<Silent>()
        .unwrap_err();
    assert_eq!(error.problems().len(), 1);
}

#[test]
fn a_secret_that_a_crate_puts_into_its_own_message_is_scrubbed() {
    #[derive(Debug)]
    struct Careless;
    impl FromEnvironment for Careless {
        fn tables() -> Vec<&'static Table> {
            vec![&TABLE]
        }

        fn read(reader: &mut Reader<'_>) -> Option<Self> {
            let url = reader.url(&URL)?;
            let password = reader.secret(&PASSWORD)?;
            reader.problem(&URL, format!("{} is bad", url.expose()), password.expose());
            reader.problem(&NOTE, "holds p@canary-1", "write canary-2");
            None
        }
    }
    let error = Environment::from_pairs([
        ("MAESTRO_CACHE_URL", "redis://u:p%40canary-1@h/1"),
        ("MAESTRO_CACHE_PASSWORD", "canary-2"),
    ])
    .read::<Careless>()
    .unwrap_err();
    let shown = format!("{error}\n{error:?}");
    assert!(!shown.contains("canary"), "{shown}");
    assert_eq!(shown.matches("[redacted]").count(), 8, "{shown}");
}
