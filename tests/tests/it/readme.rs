//! The README's service, run as printed.

use std::path::Path;

use anyhow::Result;
use maestro_testkit::Stack;
use maestro_tests::{Process, until};
use reqwest::StatusCode;

use crate::{BOOT, SETTLE, STOP};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_of_the_readme_runs_as_printed() -> Result<()> {
    let stack = Stack::start().await?;
    let sandbox = stack.sandbox("customers").await?;
    let pairs = sandbox.environment();
    let url = pairs
        .iter()
        .find_map(|(name, value)| (name == "MAESTRO_POSTGRES_MIGRATION_URL").then_some(value))
        .expect("a sandbox has a migrator");
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(
            "create table customers (id bigint primary key, name text not null);
             insert into customers values (17, 'Ada Lovelace');
             grant select on customers to public;",
        )
        .await?;

    let logs = tempfile::tempdir()?;
    let binary = Path::new(env!("CARGO_BIN_EXE_readme-process"));
    let mut service = Process::start("customers", binary, &pairs, logs.path())?;
    service.ready(BOOT).await?;
    assert_eq!(service.text("/customers/17/name").await?, "Ada Lovelace");
    let (status, problem) = service.get("/customers/18/name").await?;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(problem["detail"], "no such customer");
    // Once loaded, the name is read from the cache, and stays right.
    until(SETTLE, "a hit of the cache", async || {
        assert_eq!(service.text("/customers/17/name").await?, "Ada Lovelace");
        let metrics = service.text("/metrics").await?;
        let mut hits = metrics.lines().filter(|line| {
            line.starts_with("maestro_cache_requests_total{")
                && line.contains("region=\"name\"")
                && line.contains("result=\"hit\"")
                && !line.ends_with(" 0")
        });
        Ok(hits.next().map(drop))
    })
    .await?;
    let (code, _) = service.terminate(STOP).await?;
    assert_eq!(code, Some(0), "{}", service.log()?);
    Ok(())
}
