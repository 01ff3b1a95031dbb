//! Everything that is declared is measured, and nothing else is.

use std::future::IntoFuture;
use std::sync::Arc;

use maestro_config::Environment;
use maestro_messaging::{CATALOGUE, Messaging, MessagingConfig};
use maestro_metrics::{Context, Registry, coverage};
use tokio::sync::Semaphore;

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
    let end = Arc::new(Semaphore::new(0));
    let handling = Arc::clone(&end);
    let consumer = messaging
        .subscription("billing")
        .on("orders", move |_: Placed, _| {
            let end = handling.clone();
            async move {
                drop(end.acquire().await?);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;
    let acme = Context::new().with_tenant("acme");
    let event = placed(1);
    let published = acme.scope(messaging.publish(&event).into_future()).await;
    assert!(published.unwrap().routed());
    let has = |series: &str| registry.text().contains(series);
    let held = "maestro_messaging_backlog{queue=\"orders.billing\",tenant=\"acme\"}";
    eventually("the event is the tenant's backlog", || async {
        has(&format!("{held} 1"))
    })
    .await;
    end.add_permits(1);
    let unheard = messaging.publish(&Ignored { number: 1 }).await.unwrap();
    assert!(!unheard.routed());

    let checkout = messaging.saga("checkout");
    for key in ["a", "b"] {
        assert!(checkout.begin(&pool, key, "waiting").await.unwrap());
    }
    assert!(checkout.time_out(&pool, "a", "waiting").await.unwrap());
    messaging.outbox().relay(pool.clone()).start();

    eventually("the message is settled and the saga seen", || async {
        has(&format!("{held} 0"))
            && has("maestro_messaging_settled_total{queue=\"orders.billing\",result=\"acked\"} 1")
            && has("maestro_messaging_saga_oldest_age_seconds{saga=\"checkout\",state=\"waiting\"}")
            && has("maestro_messaging_connected{purpose=\"consume\"} 1")
    })
    .await;

    let text = registry.text();
    assert_eq!(coverage::undeclared(&[&CATALOGUE], &text), [""; 0]);
    assert_eq!(coverage::unmoved(&[&CATALOGUE], &text), [""; 0], "{text}");
    messaging.close().await;
}
