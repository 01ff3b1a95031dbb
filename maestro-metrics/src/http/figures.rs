//! Rate, errors and duration of requests, by matched route.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Version};
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::RwLock;

use crate::family::Family;
use crate::handle::{Counter, Gauge, Histogram};
use crate::metrics::{
    HTTP_ACTIVE, HTTP_DURATION, HTTP_PANICS, HTTP_REQUEST_SIZE, HTTP_RESPONSE_SIZE,
};
use crate::propagation::TraceContext;
use crate::registry::Registry;

/// The route of requests that match none: scanners' paths would make a series each.
pub(crate) const UNMATCHED: &str = "_unmatched";

/// What a request is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Labels<'a> {
    pub(crate) route: &'a str,
    pub(crate) method: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) protocol: &'static str,
    /// 0 when there was no response.
    pub(crate) status: u16,
    pub(crate) error: Error,
}

/// Why there is no response of the handler's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Error {
    None,
    /// The status says it.
    Status,
    Panic,
    /// The client went away.
    Cancelled,
}

pub(crate) struct Figures {
    duration: Family<Histogram, 6>,
    request_size: Family<Histogram, 6>,
    response_size: Family<Histogram, 6>,
    active: Family<Gauge, 2>,
    panics: Family<Counter, 1>,
    hasher: DefaultHashBuilder,
    /// Three families under the same labels are looked up once.
    resolved: RwLock<HashTable<(Key, Arc<Resolved>)>>,
}

struct Key {
    route: Box<str>,
    method: &'static str,
    scheme: &'static str,
    protocol: &'static str,
    status: u16,
    error: Error,
}

pub(crate) struct Resolved {
    duration: Histogram,
    request_size: Histogram,
    response_size: Histogram,
}

/// Sets of labels remembered; beyond, the families bound themselves.
const RESOLVED: usize = 4_096;

impl Figures {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            duration: registry.family(&HTTP_DURATION),
            request_size: registry.family(&HTTP_REQUEST_SIZE),
            response_size: registry.family(&HTTP_RESPONSE_SIZE),
            active: registry.family(&HTTP_ACTIVE),
            panics: registry.family(&HTTP_PANICS),
            hasher: DefaultHashBuilder::default(),
            resolved: RwLock::default(),
        }
    }

    pub(crate) fn active(&self, method: &'static str, scheme: &'static str) -> Gauge {
        self.active.with([method, scheme])
    }

    pub(crate) fn panicked(&self, route: &str) {
        self.panics.with([route]).increment();
    }

    pub(crate) fn resolve(&self, labels: Labels<'_>) -> Arc<Resolved> {
        let hash = self.hasher.hash_one(labels);
        if let Some((_, resolved)) = self.resolved.read().find(hash, |(key, _)| key.is(labels)) {
            return Arc::clone(resolved);
        }
        let status = labels.status.to_string();
        let values = [
            labels.method,
            labels.scheme,
            labels.route,
            if labels.status == 0 { "" } else { &status },
            match labels.error {
                Error::None => "",
                Error::Status => &status,
                Error::Panic => "panic",
                Error::Cancelled => "cancelled",
            },
            labels.protocol,
        ];
        let resolved = Arc::new(Resolved {
            duration: self.duration.with(values),
            request_size: self.request_size.with(values),
            response_size: self.response_size.with(values),
        });
        let mut table = self.resolved.write();
        if table.len() < RESOLVED && table.find(hash, |(key, _)| key.is(labels)).is_none() {
            let entry = (Key::new(labels), Arc::clone(&resolved));
            let hasher = &self.hasher;
            table.insert_unique(hash, entry, |(key, _)| hasher.hash_one(key.labels()));
        }
        resolved
    }
}

impl Key {
    fn new(labels: Labels<'_>) -> Self {
        Self {
            route: labels.route.into(),
            method: labels.method,
            scheme: labels.scheme,
            protocol: labels.protocol,
            status: labels.status,
            error: labels.error,
        }
    }

    fn labels(&self) -> Labels<'_> {
        Labels {
            route: &self.route,
            method: self.method,
            scheme: self.scheme,
            protocol: self.protocol,
            status: self.status,
            error: self.error,
        }
    }

    fn is(&self, labels: Labels<'_>) -> bool {
        self.labels() == labels
    }
}

impl Resolved {
    pub(crate) fn request(&self, took: Duration, bytes: u64, trace: Option<&TraceContext>) {
        self.duration.observe_traced(took, trace);
        self.request_size.observe(bytes as f64);
    }

    pub(crate) fn response(&self, bytes: u64) {
        self.response_size.observe(bytes as f64);
    }
}

pub(crate) fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        // Anybody can invent methods.
        _ => "_OTHER",
    }
}

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}
