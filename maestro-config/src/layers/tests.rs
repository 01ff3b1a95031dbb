use proptest::prelude::*;

use super::*;
use crate::env_file::{self, Item};

/// Layers from the texts of env files, lowest first.
fn layers(files: &[&str]) -> Layers {
    let layer = |text: &&str| Layer {
        definitions: env_file::parse(text)
            .items
            .into_iter()
            .filter_map(|(line, item)| match item {
                Item::Assign { name, value } => Some(Definition {
                    name,
                    value: Some(value),
                    origin: Origin::File {
                        path: "file".into(),
                        line,
                    },
                }),
                Item::Include { .. } => None,
            })
            .collect(),
    };
    Layers(files.iter().map(layer).collect())
}

fn text(layers: &Layers, name: &str) -> Option<String> {
    Some(layers.effective(name)?.ok()?.text.to_string())
}

fn fault(layers: &Layers, name: &str) -> Fault {
    layers.effective(name).unwrap().err().unwrap()
}

#[test]
fn a_higher_layer_and_a_later_line_win() {
    let layers = layers(&["A=1\nB=1", "A=2\nA=3"]);
    assert_eq!(text(&layers, "A").as_deref(), Some("3"));
    assert_eq!(text(&layers, "B").as_deref(), Some("1"));
    assert_eq!(text(&layers, "C"), None);
}

#[test]
fn a_reference_means_the_effective_value_wherever_it_stands() {
    let layers = layers(&[
        "A=<${B}>\nC=${D:-d}${E-e}${EMPTY:-f}${EMPTY-g}",
        "B=high\nEMPTY=",
    ]);
    assert_eq!(text(&layers, "A").as_deref(), Some("<high>"));
    assert_eq!(text(&layers, "C").as_deref(), Some("def"));
}

#[test]
fn a_variable_that_refers_to_itself_means_what_stands_below_it() {
    let layers = layers(&["A=1\nB=${B:-default}", "A=${A}2\nA=${A}3"]);
    assert_eq!(text(&layers, "A").as_deref(), Some("123"));
    assert_eq!(text(&layers, "B").as_deref(), Some("default"));
}

#[test]
fn a_cycle_is_named_and_not_followed() {
    let layers = layers(&["A=${B}\nB=${C:-x}\nC=${A}\nD=${D}"]);
    let names = ["A", "B", "C", "A"].map(str::to_owned).into();
    assert_eq!(fault(&layers, "A"), Fault::Cycle(names));
    assert_eq!(fault(&layers, "D"), Fault::UnsetReference("D".to_owned()));
}

#[test]
fn references_that_multiply_are_stopped() {
    let line = |n: usize| format!("V{n}=${{V{m}}}${{V{m}}}\n", m = n + 1);
    let empty: String = (0..60).map(line).collect::<String>() + "V60=\n";
    assert_eq!(fault(&layers(&[&empty]), "V0"), Fault::TooManyReferences);
    let long: String = (0..12).map(line).collect::<String>() + "V12=" + &"x".repeat(1_000);
    assert_eq!(fault(&layers(&[&long]), "V0"), Fault::TooLong);
    let chain: Vec<_> = (0..5_000)
        .map(|n| format!("V{n}=${{V{}}}\n", n + 1))
        .collect();
    let chain = chain.concat();
    assert_eq!(fault(&layers(&[&chain]), "V0"), Fault::TooManyReferences);
}

#[test]
fn an_unset_reference_is_a_fault_that_shows_no_piece_of_a_password() {
    let layers = layers(&[
        "A=${B}\nP=pa$swordcanary\nQ=${R:?ask the team}\nS=pa${canary}word\nT=pa${canary:?word}",
    ]);
    assert_eq!(fault(&layers, "A"), Fault::UnsetReference("B".to_owned()));
    for literal in ["P", "S", "T"] {
        let fault = fault(&layers, literal);
        assert_eq!(fault, Fault::PerhapsLiteralDollar, "{literal}");
        let shown = format!("{} {}", fault.message(), fault.fix(literal));
        assert!(!shown.contains("canary"), "{shown}");
    }
    assert!(fault(&layers, "Q").fix("Q").contains("ask the team"));
}

#[test]
fn what_a_secret_goes_into_is_secret() {
    let layers = layers(&["DB_PASSWORD=x\nA=<${DB_PASSWORD}>\nB=${A}\nC=c\nD=${C}"]);
    let secret = |name| layers.effective(name).unwrap().unwrap().secret;
    assert!(secret("A") && secret("B") && !secret("D"));
}

#[test]
fn a_reference_reads_a_secret_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, "from a file\n").unwrap();
    let file = format!("P_FILE={}\nA=<${{P}}>", path.display());
    assert_eq!(
        text(&layers(&[&file]), "A").as_deref(),
        Some("<from a file>")
    );
}

#[test]
fn a_secret_where_its_path_belongs_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for text in [
        "canary-hunter2",
        "postgresql://u:canary@h/db",
        "/Y2FuYXJ5canary/x==",
        "Y2FuYXJ5/canary",
        "/canary\nsecond line",
    ] {
        let fault = fault(&layers(&[&format!("P_FILE='{text}'")]), "P");
        let shown = format!("{} {}", fault.message(), fault.fix("P"));
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("does not exist"), "{shown}");
        assert!(shown.contains("P_FILE=/run/secrets/name"), "{shown}");
    }
    let folder = folder.display().to_string();
    let missing = format!("{folder}/missing");
    for path in ["./missing", "../missing", &missing, &folder] {
        let fault = fault(&layers(&[&format!("P_FILE={path}")]), "P");
        assert!(fault.message().contains(path), "{}", fault.message());
    }
}

#[test]
fn white_space_around_a_path_is_no_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, "from a file\n").unwrap();
    let padded = format!("P_FILE=' {} '", path.display());
    assert_eq!(
        text(&layers(&[&padded]), "P").as_deref(),
        Some("from a file")
    );
    assert_eq!(fault(&layers(&["P_FILE=' '"]), "P"), Fault::EmptyFileName);
}

#[test]
fn names_of_secrets_in_other_words_are_heard_as_well() {
    for name in ["DB_PASS", "PG_PWD", "APIKEY", "PASSPHRASE", "DB_PASSWORD"] {
        assert!(sounds_secret(name), "{name}");
    }
    for name in ["PWD", "PASSWORD_FILE", "CACHE_PREFIX"] {
        assert!(!sounds_secret(name), "{name}");
    }
}

#[test]
fn a_value_of_a_megabyte_is_the_longest() {
    let long = format!("A={}", "x".repeat(LONGEST_VALUE));
    assert_eq!(
        text(&layers(&[&long]), "A").map(|a| a.len()),
        Some(LONGEST_VALUE)
    );
    let longer = format!("{long}x");
    assert_eq!(fault(&layers(&[&longer]), "A"), Fault::TooLong);
}

proptest! {
    #[test]
    fn resolution_always_ends(
        files in prop::collection::vec("([A-D]=(\\$\\{[A-D](:-[a-d]?)?\\}|[a-d]){0,4}\n){0,6}", 1..4)
    ) {
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        let layers = layers(&files);
        for name in ["A", "B", "C", "D"] {
            let _ = layers.effective(name);
        }
    }
}
