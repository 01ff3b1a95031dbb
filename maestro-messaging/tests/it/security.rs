//! Passwords that rotate.

use std::time::Duration;

use maestro_config::Environment;
use maestro_messaging::{Messaging, MessagingConfig};
use maestro_testkit::{Service, Stack};
use serde_json::json;

use crate::support::{eventually, placed};

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_is_taken_from_its_file_without_a_restart() {
    let stack = Stack::builder()
        .only([Service::Rabbitmq])
        .start()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let mut pairs = sandbox.environment();
    let position = pairs.iter().position(|(n, _)| n == "MAESTRO_MESSAGING_URL");
    let url = &mut pairs[position.unwrap()].1;
    let mut parsed: url::Url = url.parse().unwrap();
    let user = parsed.username().to_owned();
    let first = parsed.password().unwrap().to_owned();
    // The password is in its file alone.
    parsed.set_password(None).unwrap();
    *url = parsed.to_string();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, &first).unwrap();
    pairs.push((
        "MAESTRO_MESSAGING_PASSWORD_FILE".to_owned(),
        file.to_str().unwrap().to_owned(),
    ));
    // The last publish of a round waits for a connection, and those that are refused come seconds apart.
    let patience = ("MAESTRO_MESSAGING_CONFIRM_TIMEOUT", "60s");
    pairs.push((patience.0.to_owned(), patience.1.to_owned()));
    let config: MessagingConfig = Environment::from_pairs(pairs).read().unwrap();
    let messaging = Messaging::connect(config).await.unwrap();
    messaging.publish(&placed(1)).await.unwrap();

    let broker = stack.rabbitmq().unwrap();
    for (number, password) in [(2, "rotated/once%"), (3, "rotated twice")] {
        change_password(&broker, &user, password).await;
        // An open connection stays; a new one is refused until the file has followed.
        sandbox.messaging_link().reset().await.unwrap();
        eventually("the old password is refused", || async {
            let health = messaging.health_check().run().await;
            let reason = health.reason().unwrap_or_default();
            reason.contains("check user, password")
        })
        .await;
        std::fs::write(&file, password).unwrap();
        let published = messaging.publish(&placed(number)).await;
        assert!(published.is_ok(), "{published:?}");
    }
    messaging.close().await;
}

async fn change_password(broker: &maestro_testkit::Server, user: &str, password: &str) {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let admin: url::Url = broker.admin_url().expose().parse().unwrap();
    let base = broker.management_url().unwrap();
    let changed = reqwest::Client::new()
        .put(format!("{base}/api/users/{user}"))
        .basic_auth(admin.username(), admin.password())
        .json(&json!({"password": password, "tags": ""}))
        .timeout(Duration::from_mins(1))
        .send()
        .await
        .unwrap();
    assert!(changed.status().is_success(), "{}", changed.status());
}
