//! Everything that is declared is measured, and nothing else is.

use maestro_config::Environment;
use maestro_messaging::{CATALOGUE, Messaging, MessagingConfig};
use maestro_metrics::{Registry, coverage};

use crate::outbox::{pool, sandbox};
use crate::support::{Ignored, Placed, eventually, placed};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_is_emitted_and_what_is_emitted_is_declared() {
    let sandbox = sandbox().await;
    let pool = pool(&sandbox).await;
    let config: MessagingConfig = Environment::from_pairs(sandbox.environment())
        .read()
        .unwrap();
    let registry = Registry::detached();
    let messaging = Messaging::builder(config)
        .registry(&registry)
        .connect()
        .await
        .unwrap();
    let consumer = messaging
        .subscription("billing")
        .on("orders", |_: Placed, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    assert!(messaging.publish(&placed(1)).await.unwrap().routed());
    let unheard = messaging.publish(&Ignored { number: 1 }).await.unwrap();
    assert!(!unheard.routed());

    let checkout = messaging.saga("checkout");
    for key in ["a", "b"] {
        assert!(checkout.begin(&pool, key, "waiting").await.unwrap());
    }
    assert!(checkout.time_out(&pool, "a", "waiting").await.unwrap());
    messaging.outbox().relay(pool.clone()).start();

    let has = |series: &str| registry.text().contains(series);
    eventually("the message is settled and the saga seen", || async {
        has("maestro_messaging_settled_total{queue=\"orders.billing\",result=\"acked\"} 1")
            && has("maestro_messaging_saga_oldest_age_seconds{saga=\"checkout\",state=\"waiting\"}")
            && has("maestro_messaging_connected{purpose=\"consume\"} 1")
    })
    .await;

    let text = registry.text();
    assert_eq!(coverage::undeclared(&[&CATALOGUE], &text), [""; 0]);
    assert_eq!(coverage::unmoved(&[&CATALOGUE], &text), [""; 0], "{text}");
    messaging.close().await;
}
