//! The cache between an HTTP reader and an event that changes what it reads.

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::Platform;

use crate::{BOOT, LADDER, SETTLE, binaries};

/// Runs that are submitted and read at the same time.
const AT_ONCE: usize = 8;
/// Rounds of them.
const ROUNDS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_polls_sees_every_run_completed() -> Result<()> {
    let stack = Stack::start().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 0).await?;
    for _ in 0..ROUNDS {
        // Each is read over and over while its completion is under way, so that loads and
        // invalidations of the same entry meet in every order.
        let runs = (0..AT_ONCE).map(|_| async {
            let id = platform.submit("smoke").await?;
            platform.completed(&id, SETTLE).await
        });
        futures_util::future::try_join_all(runs).await?;
    }
    Ok(())
}
