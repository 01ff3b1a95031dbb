//! `/metrics`: encoded off the async threads, into buffers that are used again.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, VARY,
};
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::encode::Format;
use crate::registry::Registry;

#[derive(Clone)]
pub(crate) struct Scraper {
    registry: Registry,
    buffers: Arc<Buffers>,
    /// Scrapes encoded at a time; two Prometheus servers are usual, a stampede is not.
    permits: Arc<Semaphore>,
}

const AT_A_TIME: usize = 2;
/// Prometheus gives a scrape 10 s by default; what cannot begin by then is not wanted any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// Below, the header costs more than it saves.
const WORTH_COMPRESSING: usize = 1_024;

impl Scraper {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            buffers: Arc::new(Buffers(Mutex::default())),
            permits: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }

    pub(crate) async fn scrape(&self, headers: &HeaderMap) -> Response<Body> {
        let waited = tokio::time::timeout(PATIENCE, Arc::clone(&self.permits).acquire_owned());
        let Ok(Ok(permit)) = waited.await else {
            return unavailable("too many scrapes at a time");
        };
        let format = format(text(headers, &ACCEPT));
        let gzip = accepts_gzip(text(headers, &ACCEPT_ENCODING));
        let registry = self.registry.clone();
        let buffers = Arc::clone(&self.buffers);
        let encoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut text = buffers.take();
            registry.encode(format, &mut text.bytes);
            if gzip && text.bytes.len() > WORTH_COMPRESSING {
                let mut packed = buffers.take();
                // Writing to memory cannot fail.
                let mut encoder = GzEncoder::new(&mut packed.bytes, Compression::fast());
                let _ = encoder.write_all(&text.bytes);
                let _ = encoder.finish();
                return (packed, true);
            }
            (text, false)
        })
        .await;
        // An observed value that panics is somebody else's mistake.
        let Ok((buffer, packed)) = encoded else {
            return unavailable("encoding the metrics failed; the log says why");
        };
        let mut response = Response::new(Body::from(Bytes::from_owner(buffer)));
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        );
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if packed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

fn unavailable(why: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(why));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// Buffers between two scrapes; as many as were used at the same time, but no large ones more than
/// a few.
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(self: &Arc<Self>) -> Buffer {
        let mut bytes = self.0.lock().pop().unwrap_or_default();
        bytes.clear();
        Buffer {
            bytes,
            home: Arc::clone(self),
        }
    }
}

/// A buffer that goes back when the response has been sent.
struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.0.lock();
        if free.len() < 2 * AT_A_TIME {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The format with the highest weight; text where nothing is said.
fn format(accept: &str) -> Format {
    let mut best = (Format::Text, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (mut weight, mut version) = (1.0, None);
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("q", q)) => weight = q.parse().unwrap_or(0.0),
                Some(("version", v)) => version = Some(v.trim_matches('"')),
                _ => {}
            }
        }
        let format = match (media, version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => Format::OpenMetrics,
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Format::Text,
            _ => continue,
        };
        // The first of equals, which is the order the client wrote them in.
        if weight > best.1 {
            best = (format, weight);
        }
    }
    best.0
}

fn accepts_gzip(accept: &str) -> bool {
    accept.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let refused = |parameter: &str| {
            parameter
                .strip_prefix("q=")
                .is_some_and(|q| q.parse().unwrap_or(0.0) == 0.0)
        };
        matches!(parts.next(), Some("gzip" | "x-gzip" | "*")) && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_format_wins() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,\
                            application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            application/openmetrics-text;version=0.0.1;q=0.4,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            (prometheus_2, Format::OpenMetrics),
            (prometheus_3, Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html", Format::Text),
            (
                "application/openmetrics-text;q=0.1, text/plain;q=0.9",
                Format::Text,
            ),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
        ] {
            assert_eq!(format(accept), expected, "{accept}");
        }
    }

    #[test]
    fn gzip_is_used_when_it_is_accepted() {
        for (accept, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(accept), expected, "{accept}");
        }
    }
}
