//! Clients that press a service while something happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::process::{http, percentile};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// What became of the requests of a [`Load`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// How long each answer took.
    pub took: Vec<Duration>,
    /// Ids of the runs whose submission was answered with 202.
    pub accepted: Vec<String>,
    /// Answers other than 2xx, with their bodies.
    pub refused: Vec<(StatusCode, Value)>,
    /// Requests that got no answer although the connection had been made.
    pub broken: Vec<String>,
}

impl Outcome {
    /// The time below which 99 of 100 answers came.
    pub fn p99(&mut self) -> Duration {
        percentile(&mut self.took, 99)
    }
}

/// Tasks that send one request after the other until told to stop, or until nobody listens any more.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Outcome>,
}

impl Load {
    /// Reads `url` over and over.
    pub fn reading(tasks: usize, url: &str) -> Self {
        Self::start(tasks, &Method::GET, url, &Value::Null)
    }

    /// Submits runs of `suite` to `url` over and over.
    pub fn submitting(tasks: usize, url: &str, suite: &str) -> Self {
        Self::start(
            tasks,
            &Method::POST,
            url,
            &json!({"project": "load", "suite": suite}),
        )
    }

    fn start(tasks: usize, method: &Method, url: &str, body: &Value) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        // Made once, because reading the roots of trust takes longer than many requests. It opens as many
        // connections as there are requests at a time.
        let client = http();
        for _ in 0..tasks {
            set.spawn(press(
                client.clone(),
                method.clone(),
                url.to_owned(),
                body.clone(),
                stop.clone(),
            ));
        }
        Self { stop, tasks: set }
    }

    /// Stops and gives the account of all tasks.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Outcome::default();
        for outcome in self.tasks.join_all().await {
            total.took.extend(outcome.took);
            total.accepted.extend(outcome.accepted);
            total.refused.extend(outcome.refused);
            total.broken.extend(outcome.broken);
        }
        total
    }
}

async fn press(
    client: reqwest::Client,
    method: Method,
    url: String,
    body: Value,
    stop: Arc<AtomicBool>,
) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        let mut request = client
            .request(method.clone(), &url)
            .timeout(Duration::from_secs(15));
        if !body.is_null() {
            request = request.json(&body);
        }
        let started = Instant::now();
        let answer = match request.send().await {
            Ok(answer) => answer,
            // Nobody listens any more: the service was told to stop, this request never began.
            Err(error) if error.is_connect() => break,
            Err(error) => {
                outcome.broken.push(format!("{error:?}"));
                continue;
            }
        };
        let status = answer.status();
        match answer.json::<Value>().await {
            Ok(value) if status.is_success() => outcome
                .accepted
                .extend(value["id"].as_str().map(str::to_owned)),
            Ok(value) => outcome.refused.push((status, value)),
            Err(error) => outcome.broken.push(format!("{status}: {error:?}")),
        }
        outcome.took.push(started.elapsed());
    }
    outcome
}
