//! `maestro-cache` beside the clients of Redis, and its memory level beside the caches a process can have.

mod memory;
mod remote;

use std::time::Duration;

use maestro_testkit::Service;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

use crate::harness::{Result, Row};
use crate::sandbox::Place;

/// What is cached: some 200 bytes of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Report {
    id: u64,
    title: String,
    scores: Vec<u32>,
}

/// Runs every comparison.
pub async fn run(rounds: usize) -> Result<Vec<Row>> {
    let place = Place::new().await?;
    let mut rows = memory::run(&place, rounds).await?;
    rows.extend(remote::run(&place, rounds).await?);
    Ok(rows)
}

fn report() -> Report {
    Report {
        id: KEY,
        title: "Quality of the nightly build".to_owned(),
        scores: (0..32).collect(),
    }
}

/// The key under which the peers find the same report. Theirs is the server's administrator: what some of
/// them ask when they connect, a service may not.
async fn of_peers(place: &Place) -> Result<(String, String)> {
    use redis::AsyncCommands as _;

    let url = place.administrator(Service::Redis)?;
    let key = format!("{}bench", place.variable("MAESTRO_CACHE_PREFIX")?);
    let mut redis = connect(&url, Duration::from_secs(10)).await?;
    let () = redis.set(&key, serde_json::to_vec(&report())?).await?;
    Ok((url, key))
}

/// A connection that waits so long for an answer.
async fn connect(url: &str, deadline: Duration) -> Result<MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(deadline));
    let client = redis::Client::open(url)?;
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    Ok(connection.await?)
}

const KEY: u64 = 7;
