use super::*;
use crate::kind::Kind;
use crate::layers::{Definition, Layer};
use crate::template::Template;

const VARIABLE: Variable =
    Variable::new("MAESTRO_CACHE_URL", Kind::String).aliases(&["REDIS_URL", "CACHE"]);

fn layers(layers: &[&[(&str, &str)]]) -> Layers {
    let layer = |pairs: &&[(&str, &str)]| Layer {
        definitions: pairs
            .iter()
            .map(|(name, value)| Definition {
                name: (*name).to_owned(),
                value: Some(Template::text((*value).to_owned())),
                origin: Origin::Given,
            })
            .collect(),
    };
    Layers(layers.iter().map(layer).collect())
}

/// The name and text that win, and the number of conflicts.
fn merged(pairs: &[&[(&str, &str)]]) -> (Option<(&'static str, String)>, usize) {
    let merged = merge(&layers(pairs), [&VARIABLE]);
    let entry = merged.entries.get("MAESTRO_CACHE_URL");
    let entry = entry.map(|entry| {
        let text = entry.value.as_ref().map(|value| value.text.to_string());
        (entry.name, text.unwrap_or_else(Fault::message))
    });
    (entry, merged.problems.len())
}

#[test]
fn text_survives_the_merge_as_it_is() {
    for text in ["1.10", "007", "true", "a.b", "[1]", "{}", "", "1e5", "null"] {
        let (entry, _) = merged(&[&[("MAESTRO_CACHE_URL", text)]]);
        assert_eq!(entry, Some(("MAESTRO_CACHE_URL", text.to_owned())));
    }
}

#[test]
fn a_higher_layer_wins_under_whichever_name() {
    for (pairs, name, text) in [
        (
            &[
                &[("MAESTRO_CACHE_URL", "a")][..],
                &[("MAESTRO_CACHE_URL", "b")],
            ],
            "MAESTRO_CACHE_URL",
            "b",
        ),
        (
            &[&[("REDIS_URL", "a")], &[("REDIS_URL", "b")]],
            "REDIS_URL",
            "b",
        ),
        (
            &[&[("MAESTRO_CACHE_URL", "a")], &[("REDIS_URL", "a")]],
            "REDIS_URL",
            "a",
        ),
        (
            &[&[("MAESTRO_CACHE_URL", "a")], &[("OTHER", "b")]],
            "MAESTRO_CACHE_URL",
            "a",
        ),
        (
            &[&[("MAESTRO_CACHE_URL", "a")], &[("MAESTRO_CACHE_URL", "")]],
            "MAESTRO_CACHE_URL",
            "",
        ),
    ] {
        assert_eq!(
            merged(pairs),
            (Some((name, text.to_owned())), 0),
            "{pairs:?}"
        );
    }
    assert_eq!(merged(&[&[("maestro_cache_url", "a")]]), (None, 0));
    assert_eq!(merged(&[]), (None, 0));
}

#[test]
fn a_variable_and_its_alias_with_different_values_conflict_in_any_two_layers() {
    for pairs in [
        &[&[("MAESTRO_CACHE_URL", "a"), ("REDIS_URL", "b")][..]][..],
        &[&[("MAESTRO_CACHE_URL", "a")], &[("REDIS_URL", "b")]],
        &[&[("REDIS_URL", "a")], &[("CACHE", "b")]],
    ] {
        assert_eq!(merged(pairs).1, 1, "{pairs:?}");
    }
    for pairs in [
        [("MAESTRO_CACHE_URL", "a"), ("REDIS_URL", "a")],
        [("MAESTRO_CACHE_URL", "a"), ("REDIS_URL", "")],
        [("MAESTRO_CACHE_URL", ""), ("REDIS_URL", "a")],
    ] {
        let (entry, conflicts) = merged(&[&pairs]);
        assert_eq!(
            (entry.unwrap().1.as_str(), conflicts),
            ("a", 0),
            "{pairs:?}"
        );
    }
}

#[test]
fn a_conflict_names_both_places_and_the_one_to_remove() {
    let layers = layers(&[&[("MAESTRO_CACHE_URL", "canary1"), ("REDIS_URL", "canary2")]]);
    let problem = merge(&layers, [&VARIABLE]).problems.remove(0).to_string();
    assert!(problem.contains("remove REDIS_URL"), "{problem}");
    assert!(!problem.contains("canary"), "{problem}");
    let lower = self::layers(&[&[("REDIS_URL", "a")], &[("MAESTRO_CACHE_URL", "b")]]);
    let problem = merge(&lower, [&VARIABLE]).problems.remove(0);
    assert!(
        problem
            .fix()
            .starts_with("keep MAESTRO_CACHE_URL, remove REDIS_URL")
    );
    let aliases = self::layers(&[&[("REDIS_URL", "canary1"), ("CACHE", "canary2")]]);
    let problem = merge(&aliases, [&VARIABLE]).problems.remove(0);
    let fix = "give MAESTRO_CACHE_URL the right one of the two values, remove REDIS_URL and CACHE";
    assert_eq!(problem.fix(), fix);
}

#[test]
fn a_name_and_its_file_conflict_in_one_layer_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, "from the file\n").unwrap();
    let path = path.to_str().unwrap();
    let both = [("MAESTRO_CACHE_URL", "a"), ("MAESTRO_CACHE_URL_FILE", path)];
    let (entry, _) = merged(&[&both]);
    assert!(entry.unwrap().1.contains("set both as"));
    for (pairs, text) in [
        ([&both[..1], &both[1..]], "from the file"),
        ([&both[1..], &both[..1]], "a"),
        ([&[("REDIS_URL_FILE", path)], &[]], "from the file"),
    ] {
        assert_eq!(merged(&pairs).0.unwrap().1, text, "{pairs:?}");
    }
}
