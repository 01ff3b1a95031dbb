//! What running services emit is what the crates' catalogues declare.

use anyhow::Result;
use maestro_metrics::coverage;
use maestro_testkit::Stack;
use maestro_tests::{Platform, until};

use crate::{BOOT, LADDER, SETTLE, binaries};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_services_emit_nothing_that_no_catalogue_declares() -> Result<()> {
    let catalogues = [
        &maestro_metrics::CATALOGUE,
        &maestro_db::CATALOGUE,
        &maestro_cache::CATALOGUE,
        &maestro_messaging::CATALOGUE,
    ];
    let stack = Stack::start().await?;
    let mut platform = Platform::start(&stack, &binaries(), &[LADDER]).await?;
    platform.healthy(BOOT).await?;
    platform.define("smoke", 1).await?;
    let id = platform.submit("smoke").await?;
    platform.completed(&id, SETTLE).await?;
    for service in [&platform.fabric, &platform.conductor] {
        // Each crate's own test shows every one of its metrics; a run shows the most of them, or
        // this looked at a page that is not the service's. They publish through the outbox alone. A
        // broker's confirmation may arrive after the run that it was about is completed.
        let all: usize = catalogues.iter().map(|one| one.metrics.len()).sum();
        let what = format!("most metrics of {}, publishing among them", service.name());
        let (text, unmoved) = until(SETTLE, &what, async || {
            let text = service.text("/metrics").await?;
            let unmoved = coverage::unmoved(&catalogues, &text);
            let publishing = unmoved.iter().any(|name| {
                name.starts_with("messaging_client_sent") || name.starts_with("messaging_client_op")
            });
            let moved = unmoved.len() * 2 < all && !publishing;
            Ok(moved.then_some((text, unmoved)))
        })
        .await?;
        eprintln!("{}: of {all} not moved: {unmoved:?}", service.name());
        assert_eq!(
            coverage::undeclared(&catalogues, &text),
            [""; 0],
            "{}",
            service.name()
        );
    }
    Ok(())
}
