//! Metrics of jobs that end before anybody scrapes them, sent by remote write.

mod request;
mod snappy;

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use maestro_config::{Identity, Secret};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};

use crate::error::{Error, ErrorKind};
use crate::registry::Registry;

/// Sends a registry's metrics to a Prometheus: for batch jobs, at their end.
///
/// ```no_run
/// use std::time::{Duration, Instant};
/// use maestro_config::{Environment, Identity};
/// use maestro_metrics::{MetricsConfig, Pusher, Registry};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let (identity, config) = Environment::load()?.read::<(Identity, MetricsConfig)>()?;
/// let registry = Registry::new(&identity);
/// // … the job …
/// if let Some(endpoint) = &config.endpoint {
///     let pusher = Pusher::new(endpoint, &identity, &registry)?;
///     pusher.push(Instant::now() + Duration::from_secs(5)).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// Every series gets the labels `job` (the service) and `instance` beside the registry's own, as a
/// scrape would give them. The server must run with `--web.enable-remote-write-receiver`.
pub struct Pusher {
    client: Client,
    url: Url,
    /// Without user and password.
    shown: String,
    registry: Registry,
    job: String,
    instance: String,
}

/// Attempts of one push, within its deadline.
const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Answers are one line; what is longer is cut.
const SAID: usize = 200;

impl Pusher {
    /// Sends to a Prometheus at this base URL. Opens nothing yet.
    pub fn new(
        endpoint: &Secret<String>,
        identity: &Identity,
        registry: &Registry,
    ) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::new(
                ErrorKind::Config,
                format!("MAESTRO_METRICS_ENDPOINT {why}: it is the base URL of a Prometheus"),
            )
        };
        let mut url = Url::parse(endpoint.expose()).map_err(|_| invalid("is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(invalid("is not an HTTP URL"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if !path.ends_with(WRITE) {
            url.set_path(&format!("{path}{WRITE}"));
        }
        let mut shown = url.clone();
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        // With two providers compiled in, rustls refuses to choose; ours is *ring*.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().map_err(|error| {
            Error::new(
                ErrorKind::Config,
                "making the HTTP client of the push failed",
            )
            .with_source(error)
        })?;
        Ok(Self {
            client,
            url,
            shown: shown.into(),
            registry: registry.clone(),
            job: identity.service().as_str().to_owned(),
            instance: identity.instance().to_owned(),
        })
    }

    /// Sends the metrics as they are now; returns once the server has taken them. Tries again, up to
    /// four times in all and until the deadline, while the server is away or busy. Dropping the
    /// future leaves it open whether they arrived; pushing twice is harmless.
    pub async fn push(&self, deadline: Instant) -> Result<(), Error> {
        let start = Instant::now();
        let labels = [
            ("job", self.job.as_str()),
            ("instance", self.instance.as_str()),
        ];
        let message = request::encode(&self.registry, &labels, SystemTime::now());
        let body = bytes::Bytes::from(snappy::pack(&message));
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            let error = match tokio::time::timeout_at(deadline.into(), self.attempt(&body)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "pushing metrics to {}: no answer by the deadline, after {:?}",
                        self.shown,
                        start.elapsed()
                    ),
                ),
            };
            let room = Instant::now() + wait < deadline;
            if !error.is_transient() || attempt == ATTEMPTS || !room {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
            attempt += 1;
        }
    }

    async fn attempt(&self, body: &bytes::Bytes) -> Result<(), Error> {
        let request = self
            .client
            .post(self.url.clone())
            .header(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-protobuf"),
            )
            .header(CONTENT_ENCODING, HeaderValue::from_static("snappy"))
            .header(VERSION, HeaderValue::from_static("0.1.0"))
            .body(body.clone());
        let response = request.send().await.map_err(|error| {
            let message = format!(
                "pushing metrics to {} failed: nobody answers there; look at the Prometheus",
                self.shown
            );
            // The URL in it could hold a password.
            Error::new(ErrorKind::Unavailable, message).with_source(error.without_url())
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let said = response.text().await.unwrap_or_default();
        let said: String = said.trim().chars().take(SAID).collect();
        let (kind, hint) = match status {
            StatusCode::NOT_FOUND => (
                ErrorKind::Rejected,
                ": start the Prometheus with --web.enable-remote-write-receiver",
            ),
            StatusCode::TOO_MANY_REQUESTS => (ErrorKind::Unavailable, ""),
            status if status.is_server_error() => (ErrorKind::Unavailable, ""),
            _ => (ErrorKind::Rejected, ""),
        };
        Err(Error::new(
            kind,
            format!(
                "pushing metrics to {}: answered {status} {said}{hint}",
                self.shown
            ),
        ))
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher")
            .field("url", &self.shown)
            .finish_non_exhaustive()
    }
}

const WRITE: &str = "/api/v1/write";
const VERSION: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");
