//! Three nodes, each killed in turn under load.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use maestro_config::Environment;
use maestro_messaging::{Messaging, MessagingConfig};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::nodes::Nodes;
use crate::support::{Placed, eventually, publish_for_sure, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loses_nothing_while_each_of_its_nodes_is_killed_in_turn() {
    const TASKS: u64 = 20;
    let mut cluster = Nodes::start(3).await;
    let urls: Vec<_> = cluster
        .all
        .iter()
        .map(|node| format!("amqp://guest:guest@127.0.0.1:{}/%2F", node.port))
        .collect();
    let client = async || {
        let environment = Environment::from_pairs([
            ("MAESTRO_SERVICE_NAME", "orders"),
            ("MAESTRO_ENVIRONMENT", "test"),
            ("MAESTRO_MESSAGING_URL", urls.join(",").as_str()),
        ]);
        let config: MessagingConfig = environment.read().unwrap();
        Messaging::connect(config).await.unwrap()
    };
    let handled: Arc<Mutex<HashMap<Uuid, u32>>> = Arc::default();
    let consuming = client().await;
    let noted = Arc::clone(&handled);
    let consumer = consuming
        .subscription("cluster")
        .on("orders", move |_: Placed, context| {
            *noted.lock().entry(context.message_id()).or_default() += 1;
            async { Ok(()) }
        })
        .start()
        .await
        .unwrap();
    consumer.ready().await;

    let publishing = client().await;
    let (confirmed, retries) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (messaging, over) = (publishing.clone(), Arc::clone(&over));
        let (confirmed, retries) = (Arc::clone(&confirmed), Arc::clone(&retries));
        tasks.spawn(async move {
            let mut ids = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let number = task * 1_000_000 + ids.len() as u64;
                ids.push(publish_for_sure(&messaging, number, &retries).await);
                confirmed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            ids
        });
    }
    let more = async |what: &str| {
        let (sent, seen) = (confirmed.load(Ordering::Relaxed), handled.lock().len());
        within(Duration::from_mins(2), what, || async {
            confirmed.load(Ordering::Relaxed) >= sent + 500 && handled.lock().len() >= seen + 500
        })
        .await;
    };
    more("all nodes work").await;
    for index in 0..3 {
        cluster.all[index].kill().await;
        let killed = Instant::now();
        more("publishers and consumers carry on through the other nodes").await;
        println!(
            "node {index} killed: 500 more were confirmed and handled within {:?}",
            killed.elapsed()
        );
        cluster.all[index].start().await;
        cluster.all[index]
            .control(&["await_online_nodes", "3"])
            .await;
        more("all nodes work again").await;
    }
    over.store(true, Ordering::Relaxed);
    let mut sent = HashSet::new();
    while let Some(ids) = tasks.join_next().await {
        sent.extend(ids.unwrap());
    }
    eventually("every confirmed message is handled", || async {
        let handled = handled.lock();
        sent.iter().all(|id| handled.contains_key(id))
    })
    .await;
    let again = handled.lock().values().filter(|count| **count > 1).count();
    println!(
        "confirmed {} asked again {} handled {} handled again {again} lost 0",
        sent.len(),
        retries.load(Ordering::Relaxed),
        handled.lock().len(),
    );
    publishing.close().await;
    consuming.close().await;
}
