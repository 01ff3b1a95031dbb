use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{Environment, FromEnvironment, Table};

const URL: Variable = Variable::new(
    "MAESTRO_MESSAGING_URL",
    Kind::Urls {
        schemes: &["amqp", "amqps"],
    },
)
.required()
.secret();
const PASSWORD: Variable = Variable::new("MAESTRO_MESSAGING_PASSWORD", Kind::String).secret();
static TABLE: Table = Table {
    owner: "maestro-messaging",
    areas: &["MAESTRO_MESSAGING_"],
    variables: &[URL, PASSWORD],
};

#[derive(Debug)]
struct Broker(ServerUrl);

impl FromEnvironment for Broker {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        reader.server_url(&URL, Some(&PASSWORD)).map(Self)
    }
}

fn broker(pairs: &[(&str, &str)]) -> ServerUrl {
    let environment = Environment::from_pairs(pairs.iter().copied());
    environment.read::<Broker>().unwrap().0
}

fn file(directory: &Path, text: &str) -> String {
    let path = directory.join("secret");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_password_beside_the_url_replaces_the_one_in_it() {
    let url = broker(&[
        (
            "MAESTRO_MESSAGING_URL",
            "amqp://orders:old@a:5672/maestro, amqp://orders@b/maestro",
        ),
        ("MAESTRO_MESSAGING_PASSWORD", "p@ss/%:"),
    ]);
    let all: Vec<_> = url.all().iter().map(|url| url.expose().clone()).collect();
    assert_eq!(
        all,
        [
            "amqp://orders:p%40ss%2F%25%3A@a:5672/maestro",
            "amqp://orders:p%40ss%2F%25%3A@b/maestro"
        ]
    );
    assert_eq!(*url.current().expose(), all[0]);
}

#[test]
fn a_rotated_password_is_in_the_next_url() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "first\n");
    let url = broker(&[
        ("MAESTRO_MESSAGING_URL", "amqp://orders@a/maestro"),
        ("MAESTRO_MESSAGING_PASSWORD_FILE", &path),
    ]);
    assert_eq!(url.current().expose(), "amqp://orders:first@a/maestro");
    assert!(!url.refresh(), "nothing changed");
    file(directory.path(), "other\n");
    assert!(url.refresh());
    assert_eq!(url.current().expose(), "amqp://orders:other@a/maestro");
}

#[test]
fn a_rotated_url_counts_only_when_it_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "amqp://orders:1@a/maestro\n");
    let url = broker(&[("MAESTRO_MESSAGING_URL_FILE", &path)]);
    file(directory.path(), "amqp://orders:22@b/maestro\n");
    assert_eq!(url.current().expose(), "amqp://orders:22@b/maestro");
    file(directory.path(), "not a url at all\n");
    assert_eq!(url.current().expose(), "amqp://orders:22@b/maestro");
    file(directory.path(), "amqp://orders:4444@c/maestro\n");
    assert_eq!(url.current().expose(), "amqp://orders:4444@c/maestro");
}

#[test]
fn debug_shows_no_password() {
    let url = broker(&[("MAESTRO_MESSAGING_URL", "amqp://orders:canary@a/maestro")]);
    assert!(!format!("{url:?}").contains("canary"));
}

proptest! {
    #[test]
    fn any_password_arrives_whole(password in "[ -~é€]{1,24}") {
        let url = with_password(
            "postgresql://orders:old@h:5432/orders",
            Some(&Secret::new(password.clone())),
        );
        let parsed: Url = url.expose().parse().unwrap();
        let decoded = rules::percent_decoded(parsed.password().unwrap_or_default());
        prop_assert_eq!(decoded, password);
        prop_assert_eq!(parsed.host_str(), Some("h"));
    }
}
