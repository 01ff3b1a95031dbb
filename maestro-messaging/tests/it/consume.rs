//! Consuming over a network that misbehaves; the rest is in the conformance suite.

use std::time::Duration;

use maestro_messaging::ConsumerState;

use crate::support::{Ignored, client, eventually, sandbox};

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_comes_late_is_bound_to_however_slow_the_network_is() {
    let orders = sandbox().await;
    let shop = orders.neighbour("shop").await.unwrap();
    let messaging = client(&orders, &[]).await;
    let consumer = messaging
        .subscription("mixed")
        .on("shop", |_: Ignored, _| async { Ok(()) })
        .start()
        .await
        .unwrap();
    eventually("it waits for the shop", || async {
        matches!(consumer.state(), ConsumerState::Degraded(reason) if reason.contains("shop.events"))
    })
    .await;
    // Longer than the consumer ever waits for one thing alone.
    let link = orders.messaging_link();
    link.delay(Duration::from_millis(700)).await.unwrap();
    let late = client(&shop, &[]).await;
    late.publish(&Ignored { number: 1 }).await.unwrap();
    let bound = tokio::time::timeout(Duration::from_mins(2), consumer.ready()).await;
    assert!(bound.is_ok(), "{:?}", consumer.state());
    link.restore().await.unwrap();
    late.publish(&Ignored { number: 2 })
        .require_route()
        .await
        .unwrap();
    messaging.close().await;
    late.close().await;
}
