//! Clients that press a service while something happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::process::{http, percentile, until};

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
    answers: Arc<AtomicUsize>,
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
        let answers = Arc::new(AtomicUsize::new(0));
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
                answers.clone(),
            ));
        }
        Self {
            stop,
            answers,
            tasks: set,
        }
    }

    /// Waits until so many requests were answered.
    pub async fn answered(&self, requests: usize, within: Duration) -> Result<()> {
        until(within, "answers", async || {
            Ok((self.answers.load(Ordering::Relaxed) >= requests).then_some(()))
        })
        .await
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
    answers: Arc<AtomicUsize>,
) -> Outcome {
    let mut outcome = Outcome::default();
    while !stop.load(Ordering::Relaxed) {
        let mut request = client.request(method.clone(), &url).timeout(PATIENCE);
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
        answers.fetch_add(1, Ordering::Relaxed);
    }
    outcome
}

/// Longest wait of one client for its answer: longer than every deadline of the services, when many
/// clients share a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
