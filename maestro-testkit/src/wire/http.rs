//! RabbitMQ's management API.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use maestro_config::Secret;
use maestro_config::provision::rabbitmq::ApiRequest;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{ANSWER, within};
use crate::background;
use crate::error::{Error, ErrorKind};
use crate::service::{Address, authority};

/// Longest answer taken: a list of a few thousand queues.
const LONGEST_ANSWER: usize = 64 << 20;

/// A client that keeps one connection for its requests.
#[derive(Debug)]
pub(crate) struct Client {
    host: String,
    port: u16,
    authorization: Secret<String>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(crate) fn new(address: &Address) -> Result<Self, Error> {
        let Some((host, port)) = address.management.clone() else {
            return Err(Error::new(
                ErrorKind::Config,
                "RabbitMQ's management API is needed to create vhosts: set MAESTRO_TEST_MESSAGING_MANAGEMENT_URL",
            ));
        };
        let credentials = format!("{}:{}", address.user, address.password.expose());
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        Ok(Self {
            host,
            port,
            authorization: Secret::new(format!("Basic {encoded}")),
            connection: None,
        })
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value, Error> {
        let body = self.send(Method::GET, path, String::new()).await?;
        serde_json::from_slice(&body).map_err(|e| {
            Error::new(ErrorKind::Unavailable, format!("GET {path} of RabbitMQ")).with(e)
        })
    }

    /// Executes a request that configuration rendered.
    pub(crate) async fn execute(&mut self, request: &ApiRequest) -> Result<(), Error> {
        let method = match request.method {
            "DELETE" => Method::DELETE,
            _ => Method::PUT,
        };
        self.send(method, &request.path, request.body.expose().clone())
            .await?;
        Ok(())
    }

    async fn send(&mut self, method: Method, path: &str, body: String) -> Result<Bytes, Error> {
        let what = format!(
            "{method} {path} of RabbitMQ's management API at {}",
            authority(&self.host, self.port)
        );
        within(ANSWER, &what, self.exchange(method, path, body, &what)).await
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: String,
        what: &str,
    ) -> Result<Bytes, Error> {
        let lost = |e: hyper::Error| Error::new(ErrorKind::Unavailable, what).with(e);
        let body = Bytes::from(body);
        // The server closes idle connections; a request that was never written is safe to repeat,
        // and all requests here are idempotent.
        for attempt in 0..2 {
            let mut connection = match self.connection.take() {
                Some(connection) if connection.is_ready() => connection,
                _ => self.connect(what).await?,
            };
            let request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(HOST, authority(&self.host, self.port))
                .header(AUTHORIZATION, self.authorization.expose())
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone()))
                .map_err(|e| Error::new(ErrorKind::Config, what).with(e))?;
            let response = match connection.send_request(request).await {
                Ok(response) => response,
                Err(_) if attempt == 0 => continue,
                Err(e) => return Err(lost(e)),
            };
            let status = response.status();
            let answer = Limited::new(response.into_body(), LONGEST_ANSWER)
                .collect()
                .await
                .map_err(|e| Error::new(ErrorKind::Unavailable, what).with(e))?
                .to_bytes();
            self.connection = Some(connection);
            // What is to be deleted and is not there is deleted.
            let gone = method == Method::DELETE && status == StatusCode::NOT_FOUND;
            if status.is_success() || gone {
                return Ok(answer);
            }
            return Err(Error::new(
                ErrorKind::Refused,
                format!("{what}: {status} {}", String::from_utf8_lossy(&answer)),
            ));
        }
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    async fn connect(&self, what: &str) -> Result<SendRequest<Full<Bytes>>, Error> {
        let host = self.host.trim_matches(['[', ']']);
        let stream = within(Duration::from_secs(15), what, async {
            TcpStream::connect((host, self.port))
                .await
                .map_err(|e| Error::new(ErrorKind::Unavailable, what).with(e))
        })
        .await?;
        // Best effort: without it a request may wait 40 ms for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| Error::new(ErrorKind::Unavailable, what).with(e))?;
        background::spawn(async move {
            // The same error reaches the sender.
            let _ = connection.await;
        })?;
        Ok(sender)
    }
}
