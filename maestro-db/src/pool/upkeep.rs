//! The tasks of a pool: one rolls back what was dropped, one closes what is over and keeps the
//! minimum warm. Neither waits for the other.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sqlx::Connection as _;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::lease::Lease;
use super::manager::close_all;
use super::{SETTLE, Shared};

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Rolls back transactions whose handle was dropped, and hands their connections back.
pub(super) async fn roll_back_dropped(mut dropped: mpsc::Receiver<Lease>) {
    // Bounded by the pool: each holds a connection of it.
    let mut rollbacks = JoinSet::new();
    loop {
        tokio::select! {
            lease = dropped.recv() => match lease {
                Some(lease) => {
                    rollbacks.spawn(lease.roll_back());
                }
                None => return,
            },
            Some(_) = rollbacks.join_next() => {}
        }
    }
}

pub(super) struct Upkeep {
    /// Weak, so that the task never keeps a pool alive that nobody uses.
    pub(super) shared: Weak<Shared>,
    /// Unused for longer than this is closed.
    pub(super) idle: Option<Duration>,
    /// Connections to keep open.
    pub(super) min: usize,
}

/// How often connections are looked at. Limits are minutes, so a second more does not matter.
const PERIOD: Duration = Duration::from_secs(1);

impl Upkeep {
    pub(super) async fn run(self) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rotation = 0;
        loop {
            tick.tick().await;
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            follow_rotation(&shared, &mut rotation).await;
            self.sweep(&shared).await;
            self.warm(&shared).await;
        }
    }

    /// Closes connections that are too old, and those beyond the minimum that nobody uses.
    async fn sweep(&self, shared: &Arc<Shared>) {
        let now = Instant::now();
        let mut spare = shared.connections.status().size.saturating_sub(self.min);
        let over = shared.connections.retain(|pooled, _| {
            let unused = self
                .idle
                .is_some_and(|idle| now.duration_since(pooled.returned) > idle);
            let over = pooled.is_over(now, &shared.health) || (unused && spare > 0);
            if over {
                spare = spare.saturating_sub(1);
            }
            !over
        });
        close_all(over.removed, SETTLE).await;
    }

    /// Opens connections up to the minimum.
    async fn warm(&self, shared: &Arc<Shared>) {
        if shared.connections.status().size >= self.min || shared.connections.is_closed() {
            return;
        }
        let now_or_never = deadpool::managed::Timeouts {
            wait: Some(Duration::ZERO),
            ..deadpool::managed::Timeouts::default()
        };
        // Held together until the last is open, because the pool hands out a free one before it
        // opens another.
        let mut held = Vec::with_capacity(self.min);
        for _ in 0..self.min {
            match shared.connections.timeout_get(&now_or_never).await {
                Ok(object) => held.push(object),
                // Busy or unreachable: callers find out for themselves, and the next tick tries again.
                Err(_) => return,
            }
        }
    }
}

/// Replaces open connections once the server accepts what the secret files hold now; before that they
/// are all there is. `seen` is the rotation that was followed last.
async fn follow_rotation(shared: &Shared, seen: &mut u64) {
    let connector = shared.connections.manager().connector();
    if connector.has_rotated()
        && !shared.connections.is_closed()
        && let Ok(connection) = connector.open().await
    {
        // Nobody waits for it.
        let _ = tokio::time::timeout(SETTLE, connection.close()).await;
    }
    let rotations = connector.rotations();
    if std::mem::replace(seen, rotations) != rotations {
        tracing::info!("the database password changed; open connections are replaced");
        shared.health.retire();
    }
}
