//! One load among all processes: who has the turn loads, the others wait for what it stores.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::key::Key;
use crate::load::Load;
use crate::read::Found;
use crate::server::Server;

/// Whose turn it is to load.
pub(crate) enum Turn<T> {
    /// Another process has loaded the value.
    Brought(Option<Arc<T>>),
    /// This process loads: with the right to, or because it waited long enough.
    Ours(Option<LoadTurn>),
}

/// The right to load a value. Not given back, it ends with its lease.
pub(crate) struct LoadTurn {
    server: Server,
    key: Key,
    holder: String,
}

impl LoadTurn {
    pub(crate) async fn end(self) {
        if let Err(error) = self.server.end_turn(&self.key, &self.holder).await {
            tracing::debug!(%error, "others wait until the turn to load is over by itself");
        }
    }
}

/// Beyond the longest load: storing what it brought.
const TURN_MARGIN: Duration = Duration::from_secs(1);

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Load<T> {
    /// Waits for another process that loads the same value, or for the right to load it.
    pub(crate) async fn take_turn(&self, wait: Duration) -> Turn<T> {
        let deadline = Instant::now() + wait;
        let mut pause = Duration::from_millis(5);
        loop {
            let ours = self.try_turn().await;
            // Looked at once more in either case: whoever had the turn stored before giving it up.
            let found = self.region.read(&self.id, &self.tags, None).await;
            match found {
                Ok(Found::Current { value, .. }) if self.optional || value.is_some() => {
                    if let Some(turn) = ours {
                        turn.end().await;
                    }
                    return Turn::Brought(value);
                }
                Ok(_) if ours.is_none() && Instant::now() < deadline => {}
                // Ours, too late, or Redis is away: better two loads than none.
                _ => return Turn::Ours(ours),
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// The right to load, unless another process has it.
    pub(crate) async fn try_turn(&self) -> Option<LoadTurn> {
        let region = &self.region;
        let inner = region.inner();
        let key = inner.keys.load_lock(&region.state.name, &self.id);
        let lease = region.options.load_timeout + TURN_MARGIN;
        let server = inner.server.clone();
        let holder = uuid::Uuid::new_v4().simple().to_string();
        let ours = server.try_turn(&key, &holder, lease).await;
        matches!(ours, Ok(true)).then_some(LoadTurn {
            server,
            key,
            holder,
        })
    }
}
