use maestro_config::Environment;
use maestro_testkit::{DevServicesConfig, ErrorKind, Origin, Service, Stack};

use crate::clients::{postgres, variable};

fn config(pairs: &[(&str, &str)]) -> DevServicesConfig {
    Environment::from_pairs(pairs.iter().copied())
        .read()
        .unwrap()
}

/// Settings as another project would have them that is given these servers.
fn given(stack: &Stack) -> DevServicesConfig {
    let pairs = stack.test_environment();
    let pairs = pairs
        .iter()
        .map(|(name, url)| (name.as_str(), url.expose().as_str()));
    Environment::from_pairs(pairs).read().unwrap()
}

#[tokio::test]
async fn a_given_server_is_used_and_not_to_be_killed() {
    let ours = Stack::start().await.unwrap();
    let stack = Stack::builder().config(given(&ours)).start().await.unwrap();
    for service in Service::ALL {
        let server = stack.server(service).unwrap();
        assert_eq!(server.origin(), Origin::Explicit);
        assert_eq!(
            server.authority(),
            ours.server(service).unwrap().authority()
        );
        let refused = server.kill().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
    let sandbox = stack.sandbox("orders").await.unwrap();
    sandbox.close().await.unwrap();
}

#[tokio::test]
async fn a_given_postgres_stays_as_open_as_its_owner_has_it() {
    let owner = Stack::builder()
        .only([Service::Postgres])
        .dedicated()
        .await
        .unwrap();
    let admin = postgres(owner.postgres().unwrap().admin_url().expose())
        .await
        .unwrap();
    admin
        .batch_execute("GRANT CONNECT ON DATABASE postgres, template1 TO PUBLIC")
        .await
        .unwrap();
    let only = Stack::builder().only([Service::Postgres]);
    let guest = only.config(given(&owner)).start().await.unwrap();
    let sandbox = guest.sandbox("orders").await.unwrap();
    let open = "SELECT bool_and(has_database_privilege($1, datname, 'CONNECT')) FROM pg_database \
                WHERE datname IN ('postgres', 'template1')";
    let role = sandbox.resources().role();
    assert!(
        admin
            .query_one(open, &[&role])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
    // Its owner's hash of a password has the rounds its owner chose.
    let rounds = "SELECT rolpassword LIKE 'SCRAM-SHA-256$4096:%' FROM pg_authid WHERE rolname = $1";
    assert!(
        admin
            .query_one(rounds, &[&role])
            .await
            .unwrap()
            .get::<_, bool>(0)
    );
    sandbox.close().await.unwrap();
}

#[tokio::test]
async fn a_given_server_that_does_not_answer_is_an_error_that_names_the_variable_and_no_password() {
    let given = config(&[(
        "MAESTRO_TEST_CACHE_URL",
        "redis://admin:canary-password@127.0.0.1:1/0",
    )]);
    let stack = Stack::builder().only([Service::Redis]).config(given);
    let error = stack.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = format!("{error} {error:?}");
    assert!(text.contains("MAESTRO_TEST_CACHE_URL"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test]
async fn a_given_server_whose_user_is_no_administrator_is_refused_before_the_first_sandbox() {
    let ours = Stack::builder().only([Service::Postgres]);
    let ours = ours.start().await.unwrap();
    let sandbox = ours.sandbox("orders").await.unwrap();
    let url = variable(&sandbox, "MAESTRO_POSTGRES_URL");
    let given = config(&[("MAESTRO_TEST_POSTGRES_URL", &url)]);
    let stack = Stack::builder().only([Service::Postgres]).config(given);
    let error = stack.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    assert!(text.contains("MAESTRO_TEST_POSTGRES_URL"), "{text}");
    assert!(text.contains("CREATEROLE"), "{text}");
}

#[tokio::test]
async fn with_everything_off_the_error_says_what_to_set() {
    let scratch = tempfile::tempdir().unwrap();
    let off = config(&[("MAESTRO_DEV_SERVICES", "off")]);
    let stack = Stack::builder().clone_at(scratch.path()).config(off);
    let error = stack.only([Service::Rabbitmq]).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    let text = error.to_string();
    assert!(text.contains("MAESTRO_TEST_MESSAGING_URL"), "{text}");
    assert!(text.contains("unset MAESTRO_DEV_SERVICES"), "{text}");
}

#[test]
fn a_wrong_setting_is_refused_with_the_words_that_are_right() {
    let environment = Environment::from_pairs([("MAESTRO_DEV_SERVICES", "podman")]);
    let error = environment.read::<DevServicesConfig>().unwrap_err();
    assert!(error.to_string().contains("docker"), "{error}");
}
