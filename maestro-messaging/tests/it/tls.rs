//! TLS with an authority of one's own.

use std::time::Duration;

use maestro_config::Environment;
use maestro_messaging::{ErrorKind, Messaging, MessagingConfig};
use maestro_metrics::HealthState;
use maestro_testkit::{Authority, Service, Stack};

use crate::support::{Placed, placed};

#[tokio::test(flavor = "multi_thread")]
async fn an_own_authority_and_client_certificates_keep_others_out() {
    let authority = Authority::new().unwrap();
    let stack = Stack::builder()
        .only([Service::Rabbitmq])
        .encrypted(&authority)
        .dedicated()
        .await
        .unwrap();
    let sandbox = stack.sandbox("orders").await.unwrap();
    let certificates = tempfile::tempdir().unwrap();
    let at = certificates.path();
    authority.write(at, "ca").unwrap();
    authority
        .client("orders")
        .unwrap()
        .write(at, "client")
        .unwrap();
    Authority::new().unwrap().write(at, "stranger").unwrap();
    let path = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let client = async |extra: &[(&str, String)]| {
        let extra = extra
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        let pairs = sandbox.encrypted_environment().into_iter().chain(extra);
        let config: MessagingConfig = Environment::from_pairs(pairs).read().unwrap();
        Messaging::connect(config).await.unwrap()
    };
    let ca = ("MAESTRO_MESSAGING_TLS_CA", path("ca.pem"));
    let cert = ("MAESTRO_MESSAGING_TLS_CERT", path("client.pem"));
    let key = ("MAESTRO_MESSAGING_TLS_KEY", path("client.key"));

    let messaging = client(&[ca.clone(), cert.clone(), key.clone()]).await;
    let (handled, mut seen) = tokio::sync::mpsc::channel(1);
    let consumer = messaging
        .subscription("encrypted")
        .on("orders", move |event: Placed, _| {
            let handled = handled.clone();
            async move { Ok(handled.send(event.number).await?) }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    messaging.publish(&placed(7)).require_route().await.unwrap();
    assert_eq!(seen.recv().await, Some(7));
    messaging.close().await;

    let stranger = path("stranger.pem");
    for (what, extra) in [
        ("no authority", vec![cert.clone(), key.clone()]),
        (
            "another authority",
            vec![("MAESTRO_MESSAGING_TLS_CA", stranger), cert, key],
        ),
        ("no certificate", vec![ca]),
    ] {
        let messaging = client(&extra).await;
        let error = messaging
            .publish(&placed(8))
            .deadline(Duration::from_secs(3))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
        let health = messaging.health_check().run().await;
        assert_eq!(health.state(), HealthState::Unhealthy, "{what}");
        messaging.close().await;
    }
}
