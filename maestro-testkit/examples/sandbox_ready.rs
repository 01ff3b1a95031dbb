//! Prints how long a sandbox takes to be ready on warm servers: with an empty database, with one
//! cloned from a migrated template, and fifty at once.
//!
//! `cargo run --release -p maestro-testkit --example sandbox_ready [rounds]`
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::{Duration, Instant};

use maestro_testkit::{Blank, Stack};

/// A service with a few dozen tables, as large as those of the platform.
fn migrations() -> String {
    (0..40).fold(String::new(), |sql, table| {
        sql + &format!(
            "CREATE TABLE t{table} (id bigint PRIMARY KEY, at timestamptz NOT NULL, body jsonb);\n\
             CREATE INDEX ON t{table} (at);\n"
        )
    })
}

async fn migrate(blank: Blank) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let environment = blank.environment();
    let url = environment
        .iter()
        .find(|(name, _)| name == "MAESTRO_POSTGRES_MIGRATION_URL")
        .ok_or("no URL for migrations")?;
    let (client, connection) = tokio_postgres::connect(&url.1, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(connection);
    client.batch_execute(&migrations()).await?;
    drop(client);
    driver.await??;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse()?,
        None => 40,
    };
    let stack = Stack::start().await?;
    let template = stack.template("orders", &migrations(), migrate).await?;
    let (mut empty, mut cloned) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let started = Instant::now();
        let sandbox = stack.sandbox("orders").await?;
        empty.push(started.elapsed());
        sandbox.close().await?;
        let started = Instant::now();
        let sandbox = template.sandbox().await?;
        cloned.push(started.elapsed());
        sandbox.close().await?;
    }
    print("empty database", &mut empty);
    print("cloned from a template", &mut cloned);
    let started = Instant::now();
    let at_once = futures_util::future::try_join_all((0..50).map(|_| template.sandbox())).await?;
    println!("{} at once: {:.0?}", at_once.len(), started.elapsed());
    Ok(())
}

fn print(name: &str, taken: &mut [Duration]) {
    taken.sort_unstable();
    let at = |share: usize| {
        let index = taken.len() * share / 100;
        taken.get(index).copied().unwrap_or_default()
    };
    println!(
        "{name}: median {:.1?} (p10 {:.1?}, p90 {:.1?}, {} rounds)",
        at(50),
        at(10),
        at(90),
        taken.len()
    );
}
