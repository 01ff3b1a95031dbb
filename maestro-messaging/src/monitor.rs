//! Looks after the gauges: connectivity every second, queue depths every fifteen.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::client::Inner;
use crate::transport::Connectivity;

/// Starts the task; it ends with the client.
pub(crate) fn start(inner: &Arc<Inner>) {
    let task = tokio::spawn(run(Arc::downgrade(inner)));
    inner.background.lock().push(task);
}

async fn run(inner: Weak<Inner>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn = 0_u32;
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        for (purpose, up) in inner.broker.links() {
            inner
                .metrics
                .connected
                .with([purpose])
                .set(f64::from(u8::from(up)));
        }
        let connectivity = inner.broker.connectivity();
        let up = !matches!(connectivity, Connectivity::Down(_));
        let blocked = matches!(connectivity, Connectivity::Blocked);
        inner.metrics.blocked.set(f64::from(u8::from(blocked)));
        if up && turn.is_multiple_of(DEPTH_EVERY) {
            depths(&inner).await;
        }
        turn = turn.wrapping_add(1);
    }
}

async fn depths(inner: &Inner) {
    for consumer in inner.consumers() {
        let queue = consumer.queue();
        let dead = &consumer.dead_letter_queue;
        let metrics = inner.metrics.queue(queue, dead);
        // A queue that cannot be counted keeps its last value; the consumer reports the reason.
        let counted = inner.broker.count(queue).await;
        consumer.attendance.counted(&counted);
        if let Ok((ready, _)) = counted {
            metrics.depth.set(ready as f64);
        }
        if let Ok((ready, _)) = inner.broker.count(dead).await {
            metrics.dlq_depth.set(ready as f64);
        }
    }
}

const DEPTH_EVERY: u32 = 15;
