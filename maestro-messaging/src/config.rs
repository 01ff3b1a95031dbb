//! Settings: raw variables in, valid values out, once.

use std::time::Duration;

use maestro_config::{
    FromEnvironment, Identity, Kind, Reader, ServerUrl, Table, TlsPaths, Variable,
};

/// Settings of the message broker, read from `MAESTRO_MESSAGING_*`.
///
/// ```
/// use std::time::Duration;
/// use maestro_config::Environment;
/// use maestro_messaging::MessagingConfig;
///
/// let environment = Environment::from_pairs([
///     ("MAESTRO_SERVICE_NAME", "conductor"),
///     ("MAESTRO_ENVIRONMENT", "development"),
///     ("MAESTRO_MESSAGING_URL", "amqp://conductor:secret@maestro-rabbitmq:5672/maestro"),
/// ]);
/// let config = environment.read::<MessagingConfig>()?;
/// assert_eq!(config.identity().service().to_string(), "conductor");
/// assert_eq!(config.retry_delays().len(), 3);
/// assert_eq!((config.prefetch(), config.concurrency()), (200, 32));
/// assert_eq!(config.confirm_timeout(), Duration::from_secs(10));
/// assert_eq!(config.handler_timeout(), Duration::from_mins(1));
/// assert_eq!(config.drain_timeout(), Duration::from_secs(20));
/// # Ok::<(), maestro_config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MessagingConfig {
    pub(crate) identity: Identity,
    /// Asked anew for every connection: user and password may rotate in their files.
    pub(crate) urls: ServerUrl,
    pub(crate) prefetch: u16,
    pub(crate) concurrency: usize,
    pub(crate) publish_window: usize,
    pub(crate) retry_delays: Vec<Duration>,
    pub(crate) confirm_timeout: Duration,
    pub(crate) handler_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) tls: TlsPaths,
}

impl MessagingConfig {
    /// Whose queues and exchanges these are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Deliveries held unacknowledged per subscription.
    pub fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Handlers running at a time per subscription.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// The rungs of the retry ladder; their number is the number of retries before the
    /// dead-letter queue.
    pub fn retry_delays(&self) -> &[Duration] {
        &self.retry_delays
    }

    /// Longest time a publish waits for the broker, connecting and retrying included.
    pub fn confirm_timeout(&self) -> Duration {
        self.confirm_timeout
    }

    /// Longest time a handler may take.
    pub fn handler_timeout(&self) -> Duration {
        self.handler_timeout
    }

    /// Longest time a drain waits for handlers in flight.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }
}

const SCHEMES: &[&str] = &["amqp", "amqps"];

const URL: Variable = Variable::new("MAESTRO_MESSAGING_URL", Kind::Urls { schemes: SCHEMES })
    .aliases(&["RABBITMQ_URL", "AMQP_URL"])
    .required()
    .secret()
    .doc("RabbitMQ, one URL or a list of nodes to fail over to; the path is the vhost.")
    .example("amqp://conductor:<password>@maestro-rabbitmq:5672/maestro")
    .hint("Inside the platform's network the port is 5672; 27672 is for the host.");
const PASSWORD: Variable = Variable::new("MAESTRO_MESSAGING_PASSWORD", Kind::String)
    .secret()
    .doc("Password of the broker user, from the URL when absent; kept apart so that it can rotate.")
    .example("<password>");
const PREFETCH: Variable = Variable::new(
    "MAESTRO_MESSAGING_PREFETCH",
    Kind::Count {
        min: 1,
        // basic.qos carries 16 bits; beyond some thousands memory grows and nothing gets faster.
        max: 10_000,
    },
)
.default("200")
.doc("Deliveries held unacknowledged per subscription.")
.example("200");
const CONCURRENCY: Variable = Variable::new(
    "MAESTRO_MESSAGING_CONCURRENCY",
    Kind::Count {
        min: 1,
        max: 10_000,
    },
)
.default("32")
.doc("Handlers running at a time per subscription; not above the prefetch.")
.example("32");
const PUBLISH_WINDOW: Variable = Variable::new(
    "MAESTRO_MESSAGING_PUBLISH_WINDOW",
    Kind::Count {
        min: 1,
        max: 65_536,
    },
)
.default("512")
.doc("Publishes waiting for the broker's confirm at a time; more wait in line.")
.example("512");
const RETRY_DELAYS: Variable = Variable::new("MAESTRO_MESSAGING_RETRY_DELAYS", Kind::Durations)
    .default("1s,10s,60s")
    .doc("Delays before each retry of a failed message; their number is the number of retries before the dead-letter queue.")
    .example("1s,10s,60s");
const CONFIRM_TIMEOUT: Variable =
    Variable::new("MAESTRO_MESSAGING_CONFIRM_TIMEOUT", Kind::Duration)
        .default("10s")
        .doc("Longest time a publish waits for the broker, connecting and retrying included.")
        .example("10s");
const HANDLER_TIMEOUT: Variable =
    Variable::new("MAESTRO_MESSAGING_HANDLER_TIMEOUT", Kind::Duration)
        .default("60s")
        .doc("Longest time a handler may take; then the attempt has failed. The broker's own acknowledgement timeout is 30 minutes.")
        .example("60s");
const DRAIN_TIMEOUT: Variable = Variable::new("MAESTRO_MESSAGING_DRAIN_TIMEOUT", Kind::Duration)
    .default("20s")
    .doc("Longest time a drain waits for handlers in flight; what is left goes back to the queue.")
    .example("20s");
const HEARTBEAT: Variable = Variable::new("MAESTRO_MESSAGING_HEARTBEAT", Kind::Duration)
    .default("60s")
    .doc("Heartbeat of the connections, in whole seconds; a silent peer is given up after two of them. `0` leaves it to the broker.")
    .example("60s");
const TLS_CA: Variable = Variable::new("MAESTRO_MESSAGING_TLS_CA", Kind::Path)
    .doc("PEM file of the certificate authority that signed the broker's certificate; added to the system's roots.")
    .example("/etc/maestro/tls/ca.pem");
const TLS_CERT: Variable = Variable::new("MAESTRO_MESSAGING_TLS_CERT", Kind::Path)
    .doc("PEM file of the client certificate, for mutual TLS.")
    .example("/etc/maestro/tls/client.pem");
const TLS_KEY: Variable = Variable::new("MAESTRO_MESSAGING_TLS_KEY", Kind::Path)
    .doc("PEM file of the client certificate's private key (PKCS #8).")
    .example("/etc/maestro/tls/client.key");

static TABLE: Table = Table {
    owner: "maestro-messaging",
    areas: &["MAESTRO_MESSAGING_"],
    variables: &[
        URL,
        PASSWORD,
        PREFETCH,
        CONCURRENCY,
        PUBLISH_WINDOW,
        RETRY_DELAYS,
        CONFIRM_TIMEOUT,
        HANDLER_TIMEOUT,
        DRAIN_TIMEOUT,
        HEARTBEAT,
        TLS_CA,
        TLS_CERT,
        TLS_KEY,
    ],
};

impl FromEnvironment for MessagingConfig {
    fn tables() -> Vec<&'static Table> {
        let mut tables = Identity::tables();
        tables.push(&TABLE);
        tables
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let identity = Identity::read(reader);
        let urls = reader.server_url(&URL, Some(&PASSWORD));
        let prefetch = reader.count(&PREFETCH);
        let concurrency = reader.count(&CONCURRENCY);
        let publish_window = reader.count(&PUBLISH_WINDOW);
        let retry_delays = reader.durations(&RETRY_DELAYS);
        let confirm_timeout = nonzero(reader, &CONFIRM_TIMEOUT);
        let handler_timeout = nonzero(reader, &HANDLER_TIMEOUT);
        let drain_timeout = reader.duration(&DRAIN_TIMEOUT);
        let heartbeat = reader.duration(&HEARTBEAT);
        let tls = reader.tls(&TLS_CA, &TLS_CERT, &TLS_KEY);

        if let Some(urls) = &urls {
            for url in urls.all() {
                if let Err(problem) = crate::address::Address::parse(url.expose()) {
                    reader.problem(
                        &URL,
                        problem,
                        "amqp://<user>:<password>@<host>:5672/<vhost>",
                    );
                }
            }
        }
        if let Some(delays) = &retry_delays {
            if delays.len() > 16
                || delays
                    .iter()
                    .any(|delay| delay.as_millis() > MAX_RUNG_MILLIS)
            {
                reader.problem(
                    &RETRY_DELAYS,
                    "expected at most 16 delays, none above 24h: each is a queue of its own",
                    "MAESTRO_MESSAGING_RETRY_DELAYS=1s,10s,60s",
                );
            }
            if delays.iter().any(Duration::is_zero) {
                reader.problem(
                    &RETRY_DELAYS,
                    "expected delays above zero",
                    "MAESTRO_MESSAGING_RETRY_DELAYS=1s,10s,60s",
                );
            }
        }
        if let Some(heartbeat) = heartbeat
            && (heartbeat.subsec_nanos() != 0 || heartbeat.as_secs() > u64::from(u16::MAX))
        {
            reader.problem(
                &HEARTBEAT,
                "expected whole seconds: the protocol knows no smaller unit",
                "MAESTRO_MESSAGING_HEARTBEAT=60s",
            );
        }
        let prefetch = u16::try_from(prefetch?).ok()?;
        Some(Self {
            identity: identity?,
            urls: urls?,
            prefetch,
            // More handlers than deliveries could never all be busy.
            concurrency: usize::try_from(concurrency?)
                .ok()?
                .min(usize::from(prefetch)),
            publish_window: usize::try_from(publish_window?).ok()?,
            retry_delays: retry_delays?,
            confirm_timeout: confirm_timeout?,
            handler_timeout: handler_timeout?,
            drain_timeout: drain_timeout?,
            heartbeat: heartbeat?,
            tls: tls?,
        })
    }
}

/// A rung is a queue with a TTL; beyond a day it is a schedule, which the outbox keeps better.
const MAX_RUNG_MILLIS: u128 = 24 * 60 * 60 * 1_000;

fn nonzero(reader: &mut Reader<'_>, variable: &Variable) -> Option<Duration> {
    let value = reader.duration(variable)?;
    if value.is_zero() {
        reader.problem(
            variable,
            "expected a duration above zero: every wait on the broker has a deadline",
            format!("{}=10s", variable.name()),
        );
        return None;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maestro_config::Environment;

    fn environment(extra: &[(&str, &str)]) -> Environment {
        let mut pairs = vec![
            ("MAESTRO_SERVICE_NAME", "conductor"),
            ("MAESTRO_ENVIRONMENT", "test"),
            (
                "MAESTRO_MESSAGING_URL",
                "amqp://c:canary@localhost:5672/maestro",
            ),
        ];
        pairs.extend_from_slice(extra);
        Environment::from_pairs(pairs)
    }

    #[test]
    fn defaults_are_those_of_the_platform() {
        let config = environment(&[]).read::<MessagingConfig>().unwrap();
        assert_eq!(config.prefetch(), 200);
        assert_eq!(config.concurrency(), 32);
        assert_eq!(config.publish_window, 512);
        assert_eq!(
            config.retry_delays(),
            [1, 10, 60].map(Duration::from_secs).as_slice()
        );
        assert_eq!(config.confirm_timeout(), Duration::from_secs(10));
        assert_eq!(config.handler_timeout(), Duration::from_mins(1));
        assert_eq!(config.drain_timeout(), Duration::from_secs(20));
        assert_eq!(config.heartbeat, Duration::from_mins(1));
    }

    #[test]
    fn every_wrong_value_is_reported_in_one_go() {
        let error = environment(&[
            ("MAESTRO_MESSAGING_CONFIRM_TIMEOUT", "0"),
            ("MAESTRO_MESSAGING_RETRY_DELAYS", "0,1s"),
            ("MAESTRO_MESSAGING_HEARTBEAT", "1500ms"),
            ("MAESTRO_MESSAGING_TLS_KEY", "/nowhere/key.pem"),
            ("MAESTRO_MESSAGING_TLS_CERT", "/nowhere/cert.pem"),
            ("MAESTRO_MESSAGING_PREFETCH", "0"),
        ])
        .read::<MessagingConfig>()
        .unwrap_err();
        let variables: Vec<_> = error
            .problems()
            .iter()
            .map(maestro_config::Problem::variable)
            .collect();
        for name in [
            "CONFIRM_TIMEOUT",
            "RETRY_DELAYS",
            "HEARTBEAT",
            "TLS_KEY",
            "PREFETCH",
        ] {
            let name = format!("MAESTRO_MESSAGING_{name}");
            assert!(
                variables.contains(&name.as_str()),
                "{name} not in {variables:?}"
            );
        }
        assert!(!error.to_string().contains("canary"), "{error}");
    }

    #[test]
    fn a_password_is_in_no_debug_output() {
        let config = environment(&[("MAESTRO_MESSAGING_PASSWORD", "canary")])
            .read::<MessagingConfig>()
            .unwrap();
        assert!(!format!("{config:?}").contains("canary"), "{config:?}");
    }
}
