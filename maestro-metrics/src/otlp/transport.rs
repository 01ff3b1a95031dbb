//! One attempt to deliver one request, over HTTP or gRPC, and what its answer means.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TE};
use reqwest::{Body, Client, Response, StatusCode};

use super::endpoint::{Endpoint, Protocol};
use super::request::{PartialSuccess, decode_response};
use crate::telemetry::SecretHeaders;

/// What an attempt came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The collector has the batch, perhaps without some spans.
    Delivered(PartialSuccess),
    /// It may take it later.
    Retry {
        why: String,
        after: Option<Duration>,
    },
    /// It will not take it.
    Refused { why: String },
}

pub(crate) struct Transport {
    client: Client,
    endpoint: Endpoint,
    headers: HeaderMap,
    timeout: Duration,
}

/// An answer of a collector is a few bytes; what is longer is an error page of something else.
const ANSWER: usize = 64 << 10;

impl Transport {
    /// Opens nothing yet. Must run inside the exporter's runtime.
    pub(crate) fn new(
        endpoint: Endpoint,
        secret: Option<&SecretHeaders>,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let builder = Client::builder()
            // Proxy variables are no settings of the service: only its configuration is read.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout)
            .pool_max_idle_per_host(1)
            .tcp_keepalive(Duration::from_secs(30));
        let client = match endpoint.protocol() {
            Protocol::Http => builder.http1_only(),
            Protocol::Grpc => builder.http2_prior_knowledge(),
        }
        .build()?;
        let mut headers = HeaderMap::new();
        match endpoint.protocol() {
            Protocol::Http => {
                headers.insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("application/x-protobuf"),
                );
            }
            Protocol::Grpc => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        }
        for (name, value) in secret.iter().flat_map(|secret| secret.iter()) {
            // Both were checked when the settings were read.
            if let (Ok(name), Ok(mut value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_str(value),
            ) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        Ok(Self {
            client,
            endpoint,
            headers,
            timeout,
        })
    }

    /// Sends a request; takes at most the timeout.
    pub(crate) async fn send(&self, message: &[u8]) -> Outcome {
        match tokio::time::timeout(self.timeout, self.exchange(message)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Retry {
                why: format!("no answer within {:?}", self.timeout),
                after: None,
            },
        }
    }

    async fn exchange(&self, message: &[u8]) -> Outcome {
        let body = match self.endpoint.protocol() {
            Protocol::Http => message.to_vec(),
            Protocol::Grpc => framed(message),
        };
        let request = self
            .client
            .post(self.endpoint.url().clone())
            .headers(self.headers.clone())
            .body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                return Outcome::Retry {
                    why: cause(&error),
                    after: None,
                };
            }
        };
        match self.endpoint.protocol() {
            Protocol::Http => http_outcome(response).await,
            Protocol::Grpc => grpc_outcome(response).await,
        }
    }
}

async fn http_outcome(response: Response) -> Outcome {
    let status = response.status();
    if status.is_success() {
        return match read(response.into()).await {
            Ok(answer) => Outcome::Delivered(decode_response(&answer.body)),
            // It said yes before the connection broke.
            Err(_) => Outcome::Delivered(PartialSuccess::default()),
        };
    }
    let why = format!("answered {status}");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Outcome::Retry {
            why,
            after: retry_after(response.headers()),
        },
        _ => Outcome::Refused { why },
    }
}

async fn grpc_outcome(response: Response) -> Outcome {
    let status = response.status();
    if status != StatusCode::OK {
        return Outcome::Refused {
            why: format!("answered {status}, which is not gRPC: OTLP over HTTP has port 4318"),
        };
    }
    // An answer without message has its status among the headers.
    let headers = response.headers().clone();
    let answer = match read(response.into()).await {
        Ok(answer) => answer,
        Err(why) => return Outcome::Retry { why, after: None },
    };
    let trailers = answer.trailers.unwrap_or(headers);
    let code = trailers
        .get("grpc-status")
        .and_then(|code| code.to_str().ok()?.parse::<u32>().ok());
    let message = trailers
        .get("grpc-message")
        .and_then(|text| text.to_str().ok())
        .unwrap_or_default();
    match code {
        Some(0) => Outcome::Delivered(decode_response(answer.body.get(5..).unwrap_or_default())),
        Some(code) if GRPC_TRANSIENT.contains(&code) => Outcome::Retry {
            why: format!("answered gRPC status {code} {message}"),
            after: None,
        },
        Some(code) => Outcome::Refused {
            why: format!("answered gRPC status {code} {message}"),
        },
        None => Outcome::Refused {
            why: "answered without a gRPC status: OTLP over HTTP has port 4318".to_owned(),
        },
    }
}

/// Cancelled, deadline exceeded, resource exhausted, aborted, out of range, unavailable, data loss:
/// the codes the OTLP specification lists as worth another attempt.
const GRPC_TRANSIENT: [u32; 7] = [1, 4, 8, 10, 11, 14, 15];

struct Answer {
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

async fn read(response: http::Response<Body>) -> Result<Answer, String> {
    let mut body = std::pin::pin!(response.into_body());
    let mut answer = Answer {
        body: Vec::new(),
        trailers: None,
    };
    loop {
        let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await;
        match frame {
            None => return Ok(answer),
            Some(Err(error)) => return Err(cause(&error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if answer.body.len() + data.len() > ANSWER {
                        return Err(format!("answered with more than {ANSWER} bytes"));
                    }
                    answer.body.extend_from_slice(&data);
                }
                Err(frame) => answer.trailers = frame.into_trailers().ok(),
            },
        }
    }
}

/// gRPC's frame: not compressed, four bytes of length, the message.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(5 + message.len());
    frame.push(0);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// Longest wait a collector may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The innermost cause, which says what happened (`Connection refused`); the outer ones repeat the
/// URL.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    let mut source = error.source();
    while let Some(inner) = source {
        innermost = inner;
        source = inner.source();
    }
    innermost.to_string()
}
