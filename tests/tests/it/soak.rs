//! A short share of each campaign of `cargo xtask soak`, with a fixed seed.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::soak::{Plan, backlog, cache, db, drain, messaging};

use crate::binaries;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_at_random_moments_resets_no_request_and_loses_no_message() -> Result<()> {
    let plan = Plan::new(DRAIN, Duration::ZERO);
    drain::rounds_of(&plan, 4, &Stack::start().await?, binaries()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messaging_loses_nothing_while_broker_and_replicas_die() -> Result<()> {
    messaging::run(Plan::new(MESSAGING, Duration::from_secs(8))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_the_outbox_drains_in_order_and_its_table_does_not_grow() -> Result<()> {
    backlog::run(&Plan::new(1, Duration::ZERO), 10_000).await
}

/// Stops each service, and both.
const DRAIN: u64 = 7;
/// Kills a replica and the broker within its first seconds.
const MESSAGING: u64 = 1242;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_of_the_database_dropped_anywhere_leave_nothing_behind() -> Result<()> {
    db::run(&Plan::new(7, Duration::ZERO), 1_600).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_reads_from_the_cache_what_is_older_than_the_bound() -> Result<()> {
    let plan = Plan::new(CACHE, Duration::from_secs(8));
    cache::run(&plan, Path::new(env!("CARGO_BIN_EXE_soak"))).await
}

/// Pauses a process and breaks its network within its first seconds.
const CACHE: u64 = 1;
