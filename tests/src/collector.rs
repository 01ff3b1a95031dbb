//! An OTLP endpoint that keeps what it is sent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use prost::Message;

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    /// Which service sent it (`service.name` of its resource).
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its id in hexadecimal digits.
    pub id: String,
    /// Its parent's id; empty for a root.
    pub parent: String,
    /// Its trace's id.
    pub trace: String,
    /// Its attributes; what is no text is in the notation of `Debug`.
    pub attributes: HashMap<String, String>,
}

/// A collector on loopback that speaks OTLP over HTTP; stops listening when dropped.
#[derive(Debug)]
pub struct Collector {
    endpoint: String,
    received: Arc<Mutex<Received>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    bytes: Vec<u8>,
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let received = Arc::<Mutex<Received>>::default();
        let app = Router::new()
            .route("/v1/traces", post(collect))
            .with_state(Arc::clone(&received));
        let task = tokio::spawn(async move {
            // Accepting goes on after errors of single connections.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self {
            endpoint,
            received,
            task,
        })
    }

    /// What `MAESTRO_TRACING_ENDPOINT` is to say.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The spans of one trace that have arrived.
    pub fn of_trace(&self, trace: &str) -> Vec<Span> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let of_trace = received.spans.iter().filter(|span| span.trace == trace);
        of_trace.cloned().collect()
    }

    /// How many spans have arrived.
    pub fn spans(&self) -> usize {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        received.spans.len()
    }

    /// Everything that has arrived, as it was on the wire; texts stand in protobuf as they are.
    pub fn wire(&self) -> String {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&received.bytes).into_owned()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn collect(State(received): State<Arc<Mutex<Received>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body.clone()) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    received.bytes.extend_from_slice(&body);
    for resource in request.resource_spans {
        let named = resource
            .resource
            .iter()
            .flat_map(|resource| &resource.attributes);
        let service = text(named).remove("service.name").unwrap_or_default();
        for span in resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans)
        {
            received.spans.push(Span {
                service: service.clone(),
                name: span.name,
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                trace: hex(&span.trace_id),
                attributes: text(&span.attributes),
            });
        }
    }
    StatusCode::OK
}

fn text<'a>(attributes: impl IntoIterator<Item = &'a KeyValue>) -> HashMap<String, String> {
    attributes
        .into_iter()
        .filter_map(|pair| match pair.value.as_ref()?.value.as_ref()? {
            AnyValue::StringValue(value) => Some((pair.key.clone(), value.clone())),
            other => Some((pair.key.clone(), format!("{other:?}"))),
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
