use super::*;
use crate::{FromEnvironment, Identity, Kind};

static TABLE: Table = Table {
    owner: "maestro-cache",
    areas: &["MAESTRO_CACHE_"],
    variables: &[
        Variable::new(
            "MAESTRO_CACHE_URL",
            Kind::Url {
                schemes: &["redis", "rediss"],
            },
        )
        .required()
        .secret()
        .aliases(&["REDIS_URL"])
        .doc("Where | the cache is.")
        .example("redis://orders:<password>@maestro-redis:6379/1"),
        Variable::new("MAESTRO_CACHE_DEFAULT_TTL", Kind::Duration)
            .default("5m")
            .bounds("1ms", "720h")
            .zero("no expiry")
            .doc("How long entries live."),
    ],
};

#[test]
fn the_page_tells_everything_the_table_knows() {
    let page = markdown(&[&TABLE, &TABLE]);
    assert_eq!(page.matches("## maestro-cache").count(), 1);
    for row in [
        "| `MAESTRO_CACHE_URL` | url | required | Where \\| the cache is. Begins with `redis://` or \
         `rediss://`. Secret. Alias: `REDIS_URL`. Example: \
         `redis://orders:<password>@maestro-redis:6379/1`. |",
        "| `MAESTRO_CACHE_DEFAULT_TTL` | duration | `5m` | How long entries live. From 1ms to 720h. \
         `0`: no expiry. |",
    ] {
        assert!(page.contains(row), "{page}");
    }
}

#[test]
fn the_schema_knows_every_name_a_variable_can_have() {
    let schema = json_schema(&[&TABLE]);
    let properties = &schema["properties"];
    for name in [
        "MAESTRO_CACHE_URL",
        "MAESTRO_CACHE_URL_FILE",
        "REDIS_URL",
        "REDIS_URL_FILE",
    ] {
        assert!(properties[name].is_object(), "{name}");
    }
    assert_eq!(properties["MAESTRO_CACHE_URL"]["writeOnly"], true);
    assert_eq!(properties["REDIS_URL"]["deprecated"], true);
    assert_eq!(
        properties["MAESTRO_CACHE_DEFAULT_TTL"]["pattern"],
        "^(0|[0-9]+(ms|s|m|h))$"
    );
    assert_eq!(
        schema["allOf"][0]["anyOf"].as_array().map(Vec::len),
        Some(4)
    );
}

#[test]
fn the_tables_of_this_crate_are_sound() {
    assert_eq!(faults(&Identity::tables()), Vec::<String>::new());
}

#[test]
fn a_careless_table_is_found_out() {
    static CARELESS: Table = Table {
        owner: "careless",
        areas: &[],
        variables: &[
            Variable::new("MAESTRO_A", Kind::Duration)
                .default("30")
                .bounds("1", "2h"),
            Variable::new(
                "cache_b_FILE",
                Kind::Choice {
                    words: &["on", "off"],
                },
            )
            .aliases(&["MAESTRO_A"])
            .default("yes")
            .doc("Something."),
        ],
    };
    let found = faults(&[&CARELESS]).join("\n");
    for fault in [
        "MAESTRO_A: has no documentation",
        "MAESTRO_A: the default `30` has no unit",
        "MAESTRO_A: the bound `1` has no unit",
        "cache_b_FILE: MAESTRO_A is declared twice",
        "MAESTRO_A: lies in no area",
        "cache_b_FILE: ends in _FILE",
        "cache_b_FILE: is not upper-case",
        "cache_b_FILE: the default `yes` is none of the words",
    ] {
        assert!(found.contains(fault), "{fault} is missing from:\n{found}");
    }
}
