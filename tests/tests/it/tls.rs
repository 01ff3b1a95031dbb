//! TLS to all three servers at once: drivers that brought a crypto provider each would panic at the
//! first handshake of the second.

use anyhow::{Result, ensure};
use maestro::Service;
use maestro::cache::Region;
use maestro::messaging::Event;
use maestro_config::Environment;
use maestro_metrics::HealthState;
use maestro_testkit::{Authority, Stack};
use maestro_tests::until;
use serde::{Deserialize, Serialize};

use crate::SETTLE;

#[derive(Debug, Serialize, Deserialize)]
struct Placed {
    number: u32,
}

impl Event for Placed {
    const TYPE: &'static str = "order.placed.v1";
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_speaks_tls_with_all_three_servers_by_an_authority_of_its_own() -> Result<()> {
    let authority = Authority::new()?;
    let stack = Stack::builder().encrypted(&authority).dedicated().await?;
    let sandbox = stack.sandbox("orders").await?;
    let directory = tempfile::tempdir()?;
    let ca = authority.write(directory.path(), "ca")?;
    let client = authority.client("orders")?;
    let (certificate, key) = client.write(directory.path(), "client")?;
    let mut pairs = sandbox.encrypted_environment();
    for server in ["POSTGRES", "CACHE", "MESSAGING"] {
        for (what, path) in [("CA", &ca), ("CERT", &certificate), ("KEY", &key)] {
            let variable = format!("MAESTRO_{server}_TLS_{what}");
            pairs.push((variable, path.display().to_string()));
        }
    }
    let service = Service::builder()
        .environment(Environment::from_pairs(pairs))
        .db()
        .cache()
        .messaging()
        .start()
        .await?;

    let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let encrypted: bool = sqlx::query_scalar(encrypted)
        .fetch_one(service.db())
        .await?;
    ensure!(encrypted, "PostgreSQL is spoken to in plain text");
    let numbers: Region<u32> = service.cache().region("number").build()?;
    // A command that a busy machine was too slow for is no failure of TLS.
    until(SETTLE, "a value through Redis", async || {
        let stored = numbers.put("one", 1).await?;
        let read = numbers.get("one").await.ok().flatten();
        Ok((stored.is_acknowledged() && read.as_deref() == Some(&1)).then_some(()))
    })
    .await?;
    service.messaging().publish(&Placed { number: 1 }).await?;
    for check in [
        service.db().health_check(),
        service.cache().health_check(),
        service.messaging().health_check(),
    ] {
        until(SETTLE, &format!("health of {}", check.name()), async || {
            let health = check.run().await;
            Ok((health.state() == HealthState::Healthy).then_some(()))
        })
        .await?;
    }
    Ok(())
}
