use maestro_config::Environment;
use maestro_testkit::{DevServicesConfig, ErrorKind, Origin, Service, Stack};

fn config(pairs: &[(&str, &str)]) -> DevServicesConfig {
    Environment::from_pairs(pairs.iter().copied())
        .read()
        .unwrap()
}

#[tokio::test]
async fn a_given_server_is_used_and_never_reconfigured_or_stopped() {
    let ours = Stack::start().await.unwrap();
    let pairs = ours.test_environment();
    let pairs = pairs
        .iter()
        .map(|(name, url)| (name.as_str(), url.expose().as_str()));
    let given: DevServicesConfig = Environment::from_pairs(pairs).read().unwrap();
    let stack = Stack::builder().config(given).start().await.unwrap();
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
