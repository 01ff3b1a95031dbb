//! Waking the relay.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// Wakes the relay when an event was committed; reconnects for as long as the relay runs.
pub(super) async fn listen(
    options: PgConnectOptions,
    wake: watch::Sender<()>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::reconnect();
    loop {
        let listening = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(Duration::from_secs(5))
                .connect_lazy_with(options.clone());
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            listener.listen("maestro_outbox").await?;
            // What was committed before this connection was there.
            wake.send_replace(());
            backoff.reset();
            // `None` when the connection was lost.
            while listener.try_recv().await?.is_some() {
                // A burst wakes once.
                while listener.next_buffered().is_some() {}
                wake.send_replace(());
            }
            Ok::<(), sqlx::Error>(())
        };
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = listening => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(error = %error, "the outbox relay cannot listen; it polls meanwhile");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}
