//! Settings of logs and traces.

use std::time::Duration;

use maestro_config::{FromEnvironment, Kind, Reader, Secret, Table, Variable};
use tracing_subscriber::filter::Targets;

use crate::otlp::Endpoint;

/// Settings of logs and traces.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TelemetryConfig {
    /// Where and how much to trace.
    pub tracing: TracingConfig,
    /// What to log and how.
    pub log: LogConfig,
}

/// Settings of traces.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TracingConfig {
    /// The collector; nothing is exported without one.
    pub endpoint: Option<Endpoint>,
    /// Headers sent along with every export, `name=value` separated by commas: a hosted collector's
    /// key.
    pub headers: Option<SecretHeaders>,
    /// Share of traces recorded, 0 to 1, decided at the root and followed by everybody behind it.
    /// 1 in development, test and demo and 0.1 elsewhere when not set.
    pub sample_ratio: Option<f64>,
    /// A root span that takes longer is exported even when its trace is not sampled; 0 = none.
    pub slow: Duration,
    /// Spans that wait for export at most; more are dropped and counted. About 1 KiB each.
    pub queue: usize,
    /// Longest time of one attempt to deliver a batch.
    pub timeout: Duration,
}

/// Headers that hold a credential: `Debug` shows none of them.
#[derive(Clone)]
pub struct SecretHeaders(std::sync::Arc<Vec<(String, Secret<String>)>>);

impl SecretHeaders {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let pairs = text.split(',').map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (name.trim(), value.trim());
            let valid = reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && reqwest::header::HeaderValue::from_str(value).is_ok();
            valid.then(|| (name.to_owned(), Secret::new(value.to_owned())))
        });
        pairs
            .collect::<Option<Vec<_>>>()
            .map(|pairs| Self(std::sync::Arc::new(pairs)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose().as_str()))
    }
}

impl std::fmt::Debug for SecretHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Settings of logs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogConfig {
    /// Directives such as `info,sqlx=warn`.
    pub level: LogLevel,
    /// How lines look; pretty in development and JSON elsewhere when not set.
    pub format: Option<LogFormat>,
}

/// Which events are logged: a level, and levels for targets, separated by commas
/// (`info,sqlx=warn,orders::billing=debug`).
///
/// ```
/// use maestro_metrics::LogLevel;
///
/// assert!(LogLevel::parse("info,sqlx=warn").is_some());
/// assert!(LogLevel::parse("loud=very").is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LogLevel {
    text: String,
    targets: Targets,
}

impl LogLevel {
    /// Reads directives; `None` when they are malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let given: Targets = text.parse().ok()?;
        let mut targets = Targets::new();
        let named: Vec<&str> = text
            .split(',')
            .filter_map(|part| part.split_once('=').map(|(target, _)| target.trim()))
            .collect();
        for target in QUIET {
            if !named.contains(target) {
                targets = targets.with_target(*target, tracing::Level::WARN);
            }
        }
        let default = given
            .default_level()
            .unwrap_or(tracing::level_filters::LevelFilter::OFF);
        targets.extend(
            given
                .iter()
                .map(|(target, level)| (target.to_owned(), level)),
        );
        Some(Self {
            text: text.to_owned(),
            targets: targets.with_default(default),
        })
    }

    /// The directives as they were given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn targets(&self) -> &Targets {
        &self.targets
    }
}

/// Transports below a client: their debug lines are about bytes, and there are thousands of them.
/// Naming one in the directives overrides this.
const QUIET: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "reqwest",
    "rustls",
    "tower",
    "mio",
];

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For reading in a terminal.
    Pretty,
}

const ENDPOINT: Variable = Variable::new(
    "MAESTRO_TRACING_ENDPOINT",
    Kind::Url {
        schemes: &["http", "https"],
    },
)
.doc(
    "OTLP collector that takes the traces; none means that nothing is exported. Port 4318 is OTLP \
     over HTTP, 4317 over gRPC; 14268, the Jaeger collector's Thrift port of older set-ups, is \
     mapped to 4318 with a warning.",
)
.example("http://maestro-jaeger:4318");
const HEADERS: Variable = Variable::new("MAESTRO_TRACING_HEADERS", Kind::String)
    .secret()
    .doc(
        "Headers of every export, `name=value` separated by commas: the key of a hosted collector.",
    )
    .example("authorization=Bearer 6f1c");
const SAMPLE_RATIO: Variable = Variable::new("MAESTRO_TRACING_SAMPLE_RATIO", Kind::Ratio)
    .doc(
        "Share of traces that are recorded, decided where a trace begins and followed by every \
         service behind it. 1.0 in development, test and demo and 0.1 elsewhere when not set. Root \
         spans that fail or are slow are exported whatever the share.",
    )
    .example("0.25");
const SLOW: Variable = Variable::new("MAESTRO_TRACING_SLOW", Kind::Duration)
    .default("2s")
    .doc(
        "A root span that takes longer is exported even when its trace is not sampled; 0 turns \
         this off. 2s is where the platform warns of slow requests.",
    )
    .example("500ms");
const QUEUE: Variable = Variable::new(
    "MAESTRO_TRACING_QUEUE",
    Kind::Count {
        min: 1,
        max: 1_000_000,
    },
)
.default("8192")
.doc("Spans that wait for export at most, about 1 KiB each; more are dropped and counted.")
.example("20000");
const TIMEOUT: Variable = Variable::new("MAESTRO_TRACING_TIMEOUT", Kind::Duration)
    .default("10s")
    .doc("Longest time of one attempt to deliver a batch of spans.")
    .example("5s");
const LEVEL: Variable = Variable::new("MAESTRO_LOG_LEVEL", Kind::String)
    .aliases(&["LOG_LEVEL"])
    .default("info")
    .doc(
        "What is logged: a level (error, warn, info, debug, trace, off), and levels for targets, \
         separated by commas.",
    )
    .example("info,sqlx=debug");
const FORMAT: Variable = Variable::new(
    "MAESTRO_LOG_FORMAT",
    Kind::Choice {
        words: &["json", "pretty"],
    },
)
.doc("How log lines look; pretty in development and json elsewhere when not set.")
.example("json");

static TABLE: Table = Table {
    owner: "maestro-metrics (logs and traces)",
    areas: &["MAESTRO_TRACING_", "MAESTRO_LOG_"],
    variables: &[
        ENDPOINT,
        HEADERS,
        SAMPLE_RATIO,
        SLOW,
        QUEUE,
        TIMEOUT,
        LEVEL,
        FORMAT,
    ],
};

impl FromEnvironment for TelemetryConfig {
    fn tables() -> Vec<&'static Table> {
        vec![&TABLE]
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let endpoint = reader.optional(&ENDPOINT, Reader::url);
        let headers = reader.optional(&HEADERS, Reader::secret);
        let sample_ratio = reader.optional(&SAMPLE_RATIO, Reader::ratio);
        let slow = reader.duration(&SLOW);
        let queue = reader.count(&QUEUE);
        let timeout = reader.duration(&TIMEOUT);
        let level = reader.string(&LEVEL);
        let format = reader.optional(&FORMAT, Reader::choice);

        let endpoint = endpoint.and_then(|url| match url {
            None => Some(None),
            Some(url) => match Endpoint::parse(url.expose()) {
                Ok(endpoint) => Some(Some(endpoint)),
                Err(message) => {
                    reader.problem(
                        &ENDPOINT,
                        message,
                        "MAESTRO_TRACING_ENDPOINT=http://maestro-jaeger:4318",
                    );
                    None
                }
            },
        });
        let headers = headers.and_then(|headers| match headers {
            None => Some(None),
            Some(text) => {
                let parsed = SecretHeaders::parse(text.expose());
                if parsed.is_none() {
                    reader.problem(
                        &HEADERS,
                        "expected `name=value`, several separated by commas",
                        "MAESTRO_TRACING_HEADERS=authorization=Bearer <key>",
                    );
                }
                parsed.map(Some)
            }
        });
        let level = level.and_then(|text| {
            let level = LogLevel::parse(&text);
            if level.is_none() {
                reader.problem(
                    &LEVEL,
                    "expected a level, or directives such as `info,sqlx=warn`",
                    "MAESTRO_LOG_LEVEL=info",
                );
            }
            level
        });
        if timeout == Some(Duration::ZERO) {
            reader.problem(
                &TIMEOUT,
                "an export needs a limit above 0",
                "MAESTRO_TRACING_TIMEOUT=10s",
            );
            return None;
        }
        Some(Self {
            tracing: TracingConfig {
                endpoint: endpoint?,
                headers: headers?,
                sample_ratio: sample_ratio?,
                slow: slow?,
                queue: usize::try_from(queue?).unwrap_or(usize::MAX),
                timeout: timeout?,
            },
            log: LogConfig {
                level: level?,
                format: format?.map(|word| {
                    if word == "pretty" {
                        LogFormat::Pretty
                    } else {
                        LogFormat::Json
                    }
                }),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use maestro_config::Environment;
    use tracing::Level;

    use super::*;

    #[test]
    fn transports_are_quiet_unless_named() {
        let debug = LogLevel::parse("debug").unwrap();
        assert!(debug.targets().would_enable("orders", &Level::DEBUG));
        assert!(!debug.targets().would_enable("h2::codec", &Level::DEBUG));
        assert!(debug.targets().would_enable("h2", &Level::WARN));
        let named = LogLevel::parse("info,h2=trace").unwrap();
        assert!(named.targets().would_enable("h2::codec", &Level::TRACE));
        assert!(!named.targets().would_enable("orders", &Level::DEBUG));
    }

    #[test]
    fn every_problem_is_reported_and_no_secret_shown() {
        let error = Environment::from_pairs([
            ("MAESTRO_TRACING_HEADERS", "canary-key"),
            ("MAESTRO_TRACING_SAMPLE_RATIO", "2"),
            ("MAESTRO_TRACING_TIMEOUT", "0"),
            ("MAESTRO_LOG_LEVEL", "loud=very"),
            ("MAESTRO_LOG_FORMAT", "xml"),
        ])
        .read::<TelemetryConfig>()
        .unwrap_err();
        let text = format!("{error} {error:?}");
        for name in ["HEADERS", "SAMPLE_RATIO", "TIMEOUT", "LEVEL", "FORMAT"] {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert!(!text.contains("canary"), "{text}");
    }

    #[test]
    fn headers_are_not_shown() {
        let config = Environment::from_pairs([("MAESTRO_TRACING_HEADERS", "x-key=canary, b=2")])
            .read::<TelemetryConfig>()
            .unwrap();
        assert!(!format!("{config:?}").contains("canary"));
        let headers = config.tracing.headers.unwrap();
        assert_eq!(
            headers.iter().collect::<Vec<_>>(),
            [("x-key", "canary"), ("b", "2")]
        );
    }
}
