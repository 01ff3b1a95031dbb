//! Where the collector listens, and the mistakes people make in writing it.

use std::fmt;

use reqwest::Url;

/// The address of a collector, with what was mended in it.
#[derive(Clone)]
pub struct Endpoint {
    url: Url,
    protocol: Protocol,
    warning: Option<String>,
}

/// How the collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Protobuf in HTTP/1.1 requests.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &str = "/v1/traces";
const HTTP_PORT: u16 = 4318;
const GRPC_PORT: u16 = 4317;
const JAEGER_THRIFT_PORT: u16 = 14268;

impl Endpoint {
    /// Reads a base URL (`http://collector:4318`), or the whole URL with `/v1/traces`. Port 4317 is
    /// gRPC, every other one HTTP.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err("expected `http://host:port` or `https://host:port`".to_owned());
        }
        url.set_query(None);
        url.set_fragment(None);
        let mut warning = None;
        if url.port() == Some(JAEGER_THRIFT_PORT) {
            let _ = url.set_port(Some(HTTP_PORT));
            url.set_path("");
            warning = Some(format!(
                "port {JAEGER_THRIFT_PORT} is Jaeger's Thrift port and does not take OTLP; using {} \
                 instead: set MAESTRO_TRACING_ENDPOINT to it",
                shown(&url)
            ));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let protocol = if url.port() == Some(GRPC_PORT) {
            if path.ends_with(HTTP_PATH) {
                warning = Some(format!(
                    "port {GRPC_PORT} is OTLP over gRPC and has no path {HTTP_PATH}; using gRPC: \
                     drop the path, or use port {HTTP_PORT} for HTTP"
                ));
            }
            url.set_path(GRPC_METHOD);
            Protocol::Grpc
        } else {
            if !path.ends_with(HTTP_PATH) {
                url.set_path(&format!("{path}{HTTP_PATH}"));
            }
            Protocol::Http
        };
        Ok(Self {
            url,
            protocol,
            warning,
        })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What was mended and how to write it right.
    pub(crate) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

/// Without user and password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.url))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self}, {:?})", self.protocol)
    }
}

fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_once() {
        for (text, url) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
            ("http://c:4318/v1/traces/", "http://c:4318/v1/traces/"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.url().as_str(), url);
            assert_eq!(endpoint.protocol(), Protocol::Http);
            assert_eq!(endpoint.warning(), None);
        }
    }

    #[test]
    fn the_grpc_port_speaks_grpc_whatever_the_path() {
        let plain = Endpoint::parse("http://c:4317").unwrap();
        assert_eq!((plain.protocol(), plain.warning()), (Protocol::Grpc, None));
        assert!(plain.url().path().ends_with("TraceService/Export"));
        let mixed = Endpoint::parse("http://c:4317/v1/traces").unwrap();
        assert_eq!(mixed.protocol(), Protocol::Grpc);
        assert!(mixed.warning().unwrap().contains("4318"));
    }

    #[test]
    fn the_thrift_port_is_mapped_with_a_warning_that_names_the_fix() {
        let endpoint = Endpoint::parse("http://maestro-jaeger:14268/api/traces").unwrap();
        assert_eq!(
            endpoint.url().as_str(),
            "http://maestro-jaeger:4318/v1/traces"
        );
        let warning = endpoint.warning().unwrap();
        assert!(warning.contains("http://maestro-jaeger:4318"), "{warning}");
    }

    #[test]
    fn credentials_are_not_shown() {
        let endpoint = Endpoint::parse("https://user:canary@c:4318").unwrap();
        assert!(!format!("{endpoint} {endpoint:?}").contains("canary"));
    }
}
