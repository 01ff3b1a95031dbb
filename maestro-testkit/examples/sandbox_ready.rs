//! Prints how long a sandbox takes to be ready on warm servers, empty and cloned from a template.
//!
//! `cargo run -p maestro-testkit --example sandbox_ready [rounds]`
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::time::{Duration, Instant};

use maestro_testkit::Stack;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = match std::env::args().nth(1) {
        Some(rounds) => rounds.parse()?,
        None => 40,
    };
    let stack = Stack::start().await?;
    let mut empty = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        let sandbox = stack.sandbox("orders").await?;
        empty.push(started.elapsed());
        sandbox.close().await?;
    }
    print("empty", &mut empty);
    let started = Instant::now();
    let at_once =
        futures_util::future::try_join_all((0..50).map(|_| stack.sandbox("orders"))).await?;
    println!("50 at once: {:?}", started.elapsed());
    drop(at_once);
    Ok(())
}

fn print(name: &str, taken: &mut [Duration]) {
    taken.sort_unstable();
    let at = |share: usize| {
        taken
            .get(taken.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{name}: median {:?}, p10 {:?}, p90 {:?}",
        at(50),
        at(10),
        at(90)
    );
}
